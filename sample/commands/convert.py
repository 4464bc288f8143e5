"""imgtok convert: a published weights file to a folder that everything here loads."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import torch
import tyro

from imgtok import hub
from imgtok.generators import hub as generator_hub
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.sample.commands.common import Flag, check_replaced_place, command_line, millions


def convert(
    *,
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    preset: str,
    out: Path,
    overwrite: Flag = False,
) -> None:
    """Convert a published weights file to our folder format, config.json and model.safetensors.

    Every parameter must be there and have the preset's shape. Nothing is unpickled.

    Args:
        file: The published .pt, .pth, .bin or .safetensors file.
        preset: The published model that it is; `imgtok presets` lists them.
        out: Folder to write.
        overwrite: Replace a converted model that is there already.
    """
    if preset not in TOKENIZERS and preset not in GENERATORS:
        raise ValueError(f"there is no preset {preset!r}{nearest(preset)}; `imgtok presets` lists them")
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give the path of the published weights")
    check_replaced_place(out, (hub.CONFIG_FILE, hub.WEIGHTS_FILE), overwrite)
    model: torch.nn.Module
    if preset in TOKENIZERS:
        model = hub.load(preset, weights=file)
    else:
        model = generator_hub.load(preset, weights=file)
    hub.save(model, out)
    print(f"{out}: {preset}, {millions(sum(p.numel() for p in model.parameters()))} parameters")
    print(f"next: {command_line(next_command(preset, out))}")


def nearest(preset: str) -> str:
    close = difflib.get_close_matches(preset, [*TOKENIZERS, *GENERATORS], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def next_command(preset: str, out: Path) -> list[object]:
    if preset in TOKENIZERS:
        return ["imgtok", "reconstruct", "photos", "--model", out, "--out", "reconstructions"]
    return ["imgtok", "generate", "--model", out, "--tokenizer", GENERATORS[preset].tokenizer]
