"""Where pictures come from: `ImageSource`, in memory (`ArraySource`) or read on demand (`FolderSource`)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from imgtok.data.pictures import UnreadableImage, read_picture

__all__ = ["ArraySource", "FolderSource", "ImageSource", "LabelSet", "UnreadableImage"]


@dataclass(frozen=True)
class LabelSet:
    """One way of labelling pictures. Label i means `values[i]`; the same in all splits of a set."""

    name: str
    values: tuple[str, ...]


class ImageSource(ABC):
    """Numbered pictures with labels.

    labels: int64 [n, number of label sets], on the CPU; column k counts in `label_sets[k].values`.
    names: one a picture, for logs and file names.
    """

    labels: Tensor
    label_sets: tuple[LabelSet, ...]
    names: list[str]

    def __init__(self, labels: Tensor, label_sets: Sequence[LabelSet], names: Sequence[str]):
        """Raises ValueError if labels are not [len(names), len(label_sets)] int64 or out of a label set's range."""
        self.labels, self.label_sets, self.names = labels, tuple(label_sets), list(names)
        expected = (len(self.names), len(self.label_sets))
        if labels.dtype != torch.int64 or labels.shape != expected:
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"labels are {got}, expected torch.int64 {list(expected)} [pictures, label sets]")
        for column, labelling in zip(labels.T, self.label_sets, strict=True):
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < len(labelling.values):
                raise ValueError(f"labels {labelling.name!r} leave the range of its {len(labelling.values)} values")

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def image(self, i: int) -> Tensor:
        """Picture i: uint8 3 h w, RGB, what was transparent is white. Raises UnreadableImage for a damaged file."""

    @abstractmethod
    def select(self, indices: Sequence[int] | Tensor) -> "ImageSource":
        """The pictures at `indices`, in that order, with the same label sets. Raises ValueError for a mask."""


class ArraySource(ImageSource):
    """Pictures held in memory: images uint8 n 3 h w."""

    def __init__(self, images: Tensor, labels: Tensor, label_sets: Sequence[LabelSet], names: Sequence[str]):
        super().__init__(labels, label_sets, names)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(self), 3):
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}, expected torch.uint8 [{len(self)}, 3, h, w]"
            )
        self.images = images

    def image(self, i: int) -> Tensor:
        return self.images[i]

    def select(self, indices: Sequence[int] | Tensor) -> "ArraySource":
        index = _positions(indices)
        names = [self.names[i] for i in index.tolist()]
        return ArraySource(self.images[index], self.labels[index], self.label_sets, names)


class FolderSource(ImageSource):
    """Pictures read from their files each time they are asked for, each in its own size."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Tensor,
        label_sets: Sequence[LabelSet],
        names: Sequence[str] | None = None,
    ):
        super().__init__(labels, label_sets, [str(path) for path in paths] if names is None else names)
        if len(paths) != len(self):
            raise ValueError(f"{len(paths)} paths do not match {len(self)} names")
        self.paths = list(paths)

    def image(self, i: int) -> Tensor:
        return read_picture(self.paths[i])

    def select(self, indices: Sequence[int] | Tensor) -> "FolderSource":
        index = _positions(indices)
        paths, names = [self.paths[i] for i in index.tolist()], [self.names[i] for i in index.tolist()]
        return FolderSource(paths, self.labels[index], self.label_sets, names)


def _positions(indices: Sequence[int] | Tensor) -> Tensor:
    positions = torch.as_tensor(indices)
    if positions.dtype == torch.bool:  # would silently be read as pictures 0 and 1
        raise ValueError("select() got a mask, expected the positions of pictures; use mask.nonzero()[:, 0]")
    return positions.long()
