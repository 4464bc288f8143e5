"""Pictures to train on and to measure with: embedded sets and folders, all as an `ImageSource`."""

from pathlib import Path

from imgtok.data.embedded import EMBEDDED, load_embedded
from imgtok.data.folder import read_folder
from imgtok.data.pictures import UnreadableImage, grid, png_bytes, read_picture, save_png
from imgtok.data.source import ArraySource, FolderSource, ImageSource, LabelSet
from imgtok.data.transforms import center_crop, random_crop, random_flip, random_shift, to_float, to_uint8

__all__ = [
    "EMBEDDED",
    "ArraySource",
    "FolderSource",
    "ImageSource",
    "LabelSet",
    "UnreadableImage",
    "center_crop",
    "grid",
    "load",
    "png_bytes",
    "random_crop",
    "random_flip",
    "random_shift",
    "read_folder",
    "read_picture",
    "save_png",
    "to_float",
    "to_uint8",
]


def load(source: str | Path, split: str | None = None, *, val_share: float = 0.1) -> ImageSource:
    """An embedded set by name ("emoji64", "photos"), or else a folder of images.

    `split` is "train", "val" or None for all pictures. `val_share` applies where the split is drawn by hash: photos
    and folders without `train` and `val` inside; emoji64 comes with its split. A folder of yours that has the name of
    an embedded set is read when written as a path ("./photos") or given as a `Path`.
    Raises ValueError for an unknown name, a missing folder, a folder without images and an unknown split.
    """
    if isinstance(source, str) and source in EMBEDDED:
        return load_embedded(source, split, val_share=val_share)
    path = Path(source).expanduser()
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "is neither an embedded set nor an existing folder"
        remedy = f"use one of the embedded sets ({', '.join(EMBEDDED)}) or the path of a folder of images"
        raise ValueError(f"image source {str(source)!r} {problem}; {remedy}")
    return read_folder(path, split, val_share)
