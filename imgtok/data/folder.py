"""Any folder of images as a source: classes by sub-folder, splits by sub-folder or by a hash of the path."""

import logging
import os
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from imgtok.data.pictures import header_fault
from imgtok.data.source import FolderSource, LabelSet

logger = logging.getLogger(__name__)

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLITS = ("train", "val")
VAL_FOLDERS = ("val", "valid", "validation")
NAMED_AT_MOST = 10


@dataclass(frozen=True)
class _Found:
    path: Path
    name: str  # path relative to the root, posix
    label: str | None  # first-level sub-folder, None if there is none
    split: str | None  # None if the folder does not say


def read_folder(path: str | Path, split: str | None = None, val_share: float = 0.1) -> FolderSource:
    """The images of a folder and its sub-folders, sorted by path; hidden files and folders are left out.

    Labels: first-level sub-folders are the values of the label set "class" (images deeper down belong to theirs);
    images beside them are left out, with a warning. No sub-folders with images: no label set.
    Splits: sub-folders `train` and `val` (or `valid`, `validation`) if both are there, with classes inside them.
    Otherwise the hash of an image's path relative to the folder decides, with a chance of `val_share` for "val": the
    same on every machine, whatever the other images are. Of two or more images each split gets at least one.
    Files that cannot be opened are left out, with one warning. Class numbers do not depend on the split or on them.
    Raises ValueError for a path that is no folder, no images, an unknown split and val_share outside (0, 1).
    """
    check_split(split, val_share)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"{str(path)!r} is not a folder; give the path of an existing folder of images")
    found = _drop_unlabelled(root, _find(root))
    classes = sorted({f.label for f in found if f.label is not None})
    chosen = _choose(root, found, split, val_share)
    if not chosen:
        raise ValueError(_nothing(root, found, split))
    if len(classes) == 1:
        logger.info("%s has one class, %r", root, classes[0])
    label_sets = (LabelSet("class", tuple(classes)),) if classes else ()
    return FolderSource([f.path for f in chosen], _labels(chosen, classes), label_sets, [f.name for f in chosen])


def check_split(split: str | None, val_share: float) -> None:
    """Raises ValueError for a split that is not "train", "val" or None, and for a share outside (0, 1)."""
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use 'train', 'val' or None for all images")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share {val_share} must lie between 0 and 1; use split None to get all images")


def split_of(names: Sequence[str], val_share: float) -> list[str]:
    """A split, "train" or "val", for each name: by its hash alone, unless that leaves one of them empty.

    Then the name nearest to the empty split changes sides. A single name is in "train".
    """
    places = [_place(name) for name in names]
    is_val = [place < val_share for place in places]
    if len(names) > 1 and not any(is_val):
        is_val[places.index(min(places))] = True
    if names and all(is_val):
        is_val[places.index(max(places))] = False
    return ["val" if chosen else "train" for chosen in is_val]


def _place(name: str) -> float:  # [0, 1)
    # File systems differ in how they write accents, and allow names that are not valid Unicode.
    return zlib.crc32(unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")) / 2**32


def _find(root: Path) -> list[_Found]:
    """All files below root that look like images, sorted by name."""
    split_folders = _split_folders(root)
    if not split_folders:
        return sorted((_describe(path, root, root, None) for path in _image_files(root)), key=lambda f: f.name)
    pairs = [(path, split) for split, folder in split_folders.items() for path in _image_files(folder)]
    return sorted((_describe(path, root, split_folders[s], s) for path, s in pairs), key=lambda f: f.name)


def _describe(path: Path, root: Path, base: Path, split: str | None) -> _Found:
    inner = path.relative_to(base).parts
    return _Found(path, path.relative_to(root).as_posix(), inner[0] if len(inner) > 1 else None, split)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of "train" and "val"; empty if one of them is missing."""
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir()) if entry.is_dir()}
    val = next((name for name in VAL_FOLDERS if name in folders), None)
    if "train" not in folders or val is None:
        if "train" in folders:
            logger.warning(
                "%s has 'train' but no 'val': taken as a class; give the path of 'train' to read inside", root
            )
        return {}
    others = sorted(entry.name for name, entry in folders.items() if name not in ("train", val) and name[0] != ".")
    if others:
        logger.warning("%s has 'train' and %r; not read: %s", root, val, _listed(others))
    return {"train": folders["train"], "val": folders[val]}


def _image_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files below the folder with an image's extension. Links are followed, save back to a folder they lie in."""
    real = folder.resolve()
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _image_files(folder / entry.name, (*above, real))
            elif entry.name.lower().endswith(EXTENSIONS):
                yield folder / entry.name


def _drop_unlabelled(root: Path, found: list[_Found]) -> list[_Found]:
    """Without the images that lie beside class folders; all of them if there are no class folders."""
    labelled = [f for f in found if f.label is not None]
    if not labelled or len(labelled) == len(found):
        return found
    stray = [f.name for f in found if f.label is None]
    logger.warning("%s has class folders; %d images beside them left out: %s", root, len(stray), _listed(stray))
    return labelled


def _choose(root: Path, found: list[_Found], split: str | None, val_share: float) -> list[_Found]:
    """The readable images of the split."""
    if split is None:
        return _drop_unreadable(root, found)
    if any(f.split for f in found):  # then only the files asked for need opening
        return _drop_unreadable(root, [f for f in found if f.split == split])
    found = _drop_unreadable(root, found)
    return [f for f, at in zip(found, split_of([f.name for f in found], val_share), strict=True) if at == split]


def _drop_unreadable(root: Path, found: list[_Found]) -> list[_Found]:
    faults = [header_fault(f.path) for f in found]
    broken = [f"{f.name} ({fault})" for f, fault in zip(found, faults, strict=True) if fault is not None]
    if broken:
        logger.warning("%s: %d unreadable files left out: %s", root, len(broken), _listed(broken))
    return [f for f, fault in zip(found, faults, strict=True) if fault is None]


def _labels(found: list[_Found], classes: list[str]) -> Tensor:  # n 1, or n 0 without classes
    if not classes:
        return torch.zeros(len(found), 0, dtype=torch.int64)
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([[numbers[f.label]] for f in found if f.label is not None], dtype=torch.int64)


def _nothing(root: Path, found: list[_Found], split: str | None) -> str:
    """Why there is no image, and what to do, in one sentence."""
    if not found:
        return (
            f"{str(root)!r} has no images; put files ending in {', '.join(EXTENSIONS)} in it or in a folder per class"
        )
    if split is None:
        return f"none of the {len(found)} image files in {str(root)!r} can be read; the log has the reasons"
    return f"split {split!r} of {str(root)!r} ({len(found)} image files in all) is empty; use split None for all images"


def _listed(names: list[str]) -> str:
    """The first ten names, and how many there are if that is not all."""
    rest = f", ... ({len(names)} in all)" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + rest
