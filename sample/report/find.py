"""What a folder holds: kinds of runs and evaluations, recognised by the files they write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from imgtok.sample.report.drawn import reconstructions_part, samples_part
from imgtok.sample.report.files import parsed
from imgtok.sample.report.part import Part, Place
from imgtok.sample.report.quickstart import quickstart_part
from imgtok.sample.report.scores import bench_part, distortion_part, evaluation_part
from imgtok.sample.report.training import training_part

DEPTH = 3  # of folders below the first
MOST_PARTS = 40
PICTURE_BYTES = 3_600_000  # of all pictures of a page, which base64 makes a third more
BENCH_KEYS = {"machine", "settings", "rows"}
LARGEST_BENCH = 2_000_000


class Kind(NamedTuple):
    file: str
    """It is recognised by; a pattern."""
    written_by: str
    read: Callable[[Place], Part]
    own: tuple[str, ...] = ()
    """Sub-folders that belong to it and are not looked into."""
    accepts: Callable[[Path], bool] = Path.is_file


def is_bench(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > LARGEST_BENCH:
        return False
    content = parsed(path.read_text(encoding="utf-8", errors="replace"))
    return isinstance(content, dict) and content.keys() >= BENCH_KEYS


RUN_FOLDERS = ("tokenizer", "tokens", "checkpoints", "previews")
KINDS = (
    Kind("metrics.json", "imgtok quickstart", quickstart_part, ("tokenizer", "generator", "pictures")),
    Kind("train.json", "imgtok train", training_part, RUN_FOLDERS),
    Kind("evaluation.json", "imgtok evaluate", evaluation_part),
    Kind("rate-distortion.json", "imgtok rate-distortion", distortion_part),
    Kind("samples.json", "imgtok generate and edit", samples_part),
    Kind("comparison.png", "imgtok reconstruct", reconstructions_part),
    Kind("*.json", "imgtok bench --json", bench_part, accepts=is_bench),
)


class Found(NamedTuple):
    parts: list[Part]
    faults: list[str]
    """Of files that could not be read."""


def find(folder: Path) -> Found:
    """The parts of a folder and of those in it, in order of their names.

    Raises ValueError if there is none, and if there are more than a page can hold.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one that an imgtok command has written")
    places = list(recognised(folder))
    if len(places) > MOST_PARTS:
        raise ValueError(f"{folder} holds {len(places)} runs and evaluations; a page takes at most {MOST_PARTS}")
    parts, faults = [], []
    for number, (path, kind) in enumerate(places):
        name = name_of(path, folder, kind)
        try:
            parts.append(kind.read(Place(path, name, f"p{number}", PICTURE_BYTES // len(places))))
        except ValueError as error:
            faults.append(str(error))
    if not parts:
        known = ", ".join(f"{kind.file} ({kind.written_by})" for kind in KINDS)
        nothing = f"{folder} holds nothing to report; looked for {known}, there and in its folders"
        raise ValueError("; ".join(faults) or nothing)
    return Found(parts, faults)


def recognised(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, Kind]]:
    found = [(path, kind) for kind in KINDS for path in sorted(folder.glob(kind.file)) if kind.accepts(path)]
    yield from found
    own = {name for _, kind in found for name in kind.own}
    with os.scandir(folder) as entries:
        inner = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
    for name in inner if depth else ():
        if name not in own and not name.startswith("."):
            yield from recognised(folder / name, depth - 1)


def name_of(path: Path, folder: Path, kind: Kind) -> str:
    """Of the file where a folder may hold several of the kind, else of its folder."""
    place = path if "*" in kind.file else path.parent
    name = place.relative_to(folder).as_posix()
    return "" if name == "." else name
