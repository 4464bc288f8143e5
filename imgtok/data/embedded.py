"""The picture sets that come with the package (attribution in NOTICE)."""

import csv
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgtok.data.folder import check_split, split_of
from imgtok.data.source import ArraySource, FolderSource, ImageSource, LabelSet

EMBEDDED = ("emoji64", "photos")


def load_embedded(name: str, split: str | None = None, *, val_share: float = 0.1) -> ImageSource:
    """An embedded set by name. Raises ValueError for an unknown name or split.

    emoji64: 3,737 pictures of 64x64 with three label sets; its split keeps an emoji on one side in all styles.
    photos: 15 photographs without labels; their split is drawn as a folder's, with `val_share`.
    """
    check_split(split, val_share)
    if name == "emoji64":
        return _emoji64(split)
    if name == "photos":
        return _photos(split, val_share)
    raise ValueError(f"no embedded set {name!r}; use one of {', '.join(EMBEDDED)}")


def _emoji64(split: str | None) -> ArraySource:
    folder = _folder("emoji64")
    rows = _rows(folder)
    label_sets = tuple(_label_set(rows, name) for name in ("category", "subcategory", "style"))
    rows = [row for row in rows if split in (None, row["split"])]
    tiles = {style: _tiles(folder / f"{style}.webp") for style in sorted({row["style"] for row in rows})}
    images = torch.stack([tiles[row["style"]][int(row["tile"])] for row in rows])
    labels = torch.tensor([[labelling.values.index(row[labelling.name]) for labelling in label_sets] for row in rows])
    return ArraySource(images, labels, label_sets, [f"{row['name']} ({row['style']})" for row in rows])


def _photos(split: str | None, val_share: float) -> FolderSource:
    folder = _folder("photos")
    names = [row["file"] for row in _rows(folder)]
    if split is not None:
        names = [name for name, at in zip(names, split_of(names, val_share), strict=True) if at == split]
    labels = torch.zeros(len(names), 0, dtype=torch.int64)
    return FolderSource([folder / name for name in names], labels, (), names)


def _folder(name: str) -> Path:
    return Path(str(resources.files("imgtok.data") / name))


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _label_set(rows: list[dict[str, str]], column: str) -> LabelSet:
    return LabelSet(column, tuple(sorted({row[column] for row in rows})))


def _tiles(sheet: Path, size: int = 64) -> Tensor:  # n 3 size size
    """The tiles of a sprite sheet in row-major order."""
    with Image.open(sheet) as image:
        pixels = np.array(image.convert("RGB"))
    h, w, c = pixels.shape
    tiles = torch.from_numpy(pixels).reshape(h // size, size, w // size, size, c)
    return tiles.permute(0, 2, 4, 1, 3).reshape(-1, c, size, size)
