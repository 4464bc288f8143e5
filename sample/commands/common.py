"""What the commands share: devices, threads, where output may go, names of picture files, progress."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from imgtok.data.folder import EXTENSIONS
from imgtok.hub import load
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.tokenizer import Tokenizer

Device = Literal["auto", "cpu", "cuda", "mps"]
Flag = tyro.conf.FlagCreatePairsOff[bool]  # an option without its --no- form


def find_device(name: Device) -> torch.device:
    """ "auto" is CUDA where there is one and the CPU otherwise; ValueError for a device that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if not there[name]:
        raise ValueError(f"--device {name}: this machine or this build of torch has none; use cpu or auto")
    return torch.device(name)


def set_threads(threads: int | None) -> None:
    """How many CPU threads torch uses from here on; None leaves its choice."""
    if threads is not None:
        check_positive("threads", threads)
        torch.set_num_threads(threads)


def check_positive(name: str, value: int, least: int = 1) -> None:
    if value < least:
        raise ValueError(f"--{name} must be at least {least}, got {value}")


def check_place(out: Path) -> None:
    """ValueError if the folder `out` could not be made or written. Makes nothing."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give the path of a folder")
    there = next(place for place in (out, *out.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--out {out} cannot be written, {there} is no folder that you may write to; choose another")


def check_pictures_place(out: Path, overwrite: bool) -> None:
    """`out` may take pictures: a new or empty folder, or with `overwrite` any."""
    check_place(out)
    if not overwrite and contents(out):
        raise ValueError(
            f"--out {out} is not empty; choose another, or add --overwrite to replace files of equal names"
        )


def check_replaced_place(out: Path, own: Collection[str], overwrite: bool) -> None:
    """`out` may be replaced whole: it holds nothing, or with `overwrite` nothing but the files `own`."""
    check_place(out)
    if out.resolve() == Path.cwd():
        raise ValueError(f"--out {out} is the current folder, which cannot be replaced; choose another")
    foreign = sorted(contents(out) - set(own))
    if foreign:
        raise ValueError(f"--out {out} holds {foreign[0]!r}, which would be lost; choose another")
    if contents(out) and not overwrite:
        raise ValueError(
            f"--out {out} already holds {', '.join(sorted(contents(out)))}; add --overwrite to replace them"
        )


def contents(folder: Path) -> set[str]:
    """Names in a folder; none if there is no folder."""
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def picture_names(names: Iterable[str], reserved: Collection[str] = ()) -> list[str]:
    """A relative path ending in .png for each name, all different, also where upper and lower case are the same."""
    taken, chosen = {name.casefold() for name in reserved}, []
    for name in names:
        stem, number = safe_stem(name), 2
        candidate = stem
        while f"{candidate}.png".casefold() in taken:
            candidate, number = f"{stem}-{number}", number + 1
        taken.add(f"{candidate}.png".casefold())
        chosen.append(f"{candidate}.png")
    return chosen


def safe_stem(name: str) -> str:
    """`name` without its picture extension, without steps out of the folder and what file systems refuse."""
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            name = name[: -len(extension)]
            break
    parts = [re.sub(r'[<>:"|?*\\\x00-\x1f]', "_", part).strip(" ") for part in name.split("/")]
    return "/".join("_" if part.strip(".") == "" else part for part in parts if part) or "_"


def progress(name: str, unit: str, total: int) -> tqdm:
    """A bar on the error stream, if that is a terminal."""
    return tqdm(total=total, desc=name, unit=unit, disable=not sys.stderr.isatty())


def load_tokenizer(model: str, weights: Path | None, device: torch.device) -> Tokenizer:
    """What --model and --weights name."""
    check_weights("weights", weights, model, TOKENIZERS)
    return load(model, weights=weights, device=device)


def check_weights(option: str, weights: Path | None, model: str, presets: Collection[str]) -> None:
    """A file of weights is only for a preset: a folder has its own."""
    if weights is not None and model not in presets:
        raise ValueError(f"--{option} {weights} is for a preset, but {model!r} is none; presets: {', '.join(presets)}")


def command_line(words: Sequence[object]) -> str:
    """Words as one would type them."""
    return shlex.join(str(word) for word in words)


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"
