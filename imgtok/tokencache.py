"""Tokens of a data set on disk: encoded once, then memory-mapped. Small integers, one row per version of an image."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imgtok import config as configs
from imgtok.atomic import replacing_folder
from imgtok.data import ImageSource, LabelSet, UnreadableImage
from imgtok.data.transforms import center_crop, random_shift, to_float
from imgtok.tokenizer import Tokenizer
from imgtok.tokens import TokenLayout

logger = logging.getLogger(__name__)

Integers = npt.NDArray[np.integer[Any]]
DESCRIPTION, TOKENS, LABELS, NAMES = "tokens.json", "tokens.npy", "labels.npy", "names.json"


@dataclass(frozen=True, kw_only=True)
class CacheLabels:
    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CacheDescription:
    layout: TokenLayout
    index_shape: tuple[int, ...] = ()
    """Axes of the indices of one token: none for one index, (k,) for k side by side."""
    codebook_size: int
    tokenizer: str
    """Fingerprint of the tokenizer's configuration and weights."""
    versions: int
    """Rows per image: as it is, mirrored, translated."""
    labels: tuple[CacheLabels, ...]


class TokenCache:
    """Rows of tokens n (n k, if a token has k indices) and labels. Row i * versions + j is version j of image i;
    version 0 is the image as it is.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file():
            raise ValueError(f"{folder} holds no tokens (no {DESCRIPTION}); make them with `imgtok encode`")
        self.description = configs.load(CacheDescription, folder / DESCRIPTION)
        try:
            self.tokens = np.load(folder / TOKENS, mmap_mode="r", allow_pickle=False)
            self.labels = np.load(folder / LABELS, mmap_mode="r", allow_pickle=False)
            self.names: list[str] = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"the tokens in {folder} are damaged: {error}") from error
        self.check(folder)

    def check(self, folder: Path) -> None:
        if not isinstance(self.names, list) or not all(isinstance(name, str) for name in self.names):
            raise ValueError(f"the tokens in {folder} are damaged: {NAMES} is no list of names")
        rows = len(self.names) * self.versions
        expected = (rows, self.description.layout.num_tokens, *self.description.index_shape)
        if self.tokens.shape != expected or self.labels.shape != (rows, len(self.description.labels)):
            raise ValueError(
                f"the tokens in {folder} are damaged: {self.tokens.shape} tokens and {self.labels.shape} labels, "
                f"expected {expected} and {(rows, len(self.description.labels))}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def versions(self) -> int:
        return self.description.versions

    @property
    def images(self) -> int:
        return len(self) // self.versions

    @property
    def label_sets(self) -> tuple[LabelSet, ...]:
        return tuple(LabelSet(label.name, label.values) for label in self.description.labels)

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens b n and labels b k, int64, of the given rows."""
        chosen = indices.numpy()
        return torch.from_numpy(self.tokens[chosen].astype(np.int64)), torch.from_numpy(np.array(self.labels[chosen]))


@torch.no_grad()
def encode_source(
    tokenizer: Tokenizer,
    fingerprint: str,
    source: ImageSource,
    folder: str | Path,
    *,
    flip: bool = False,
    shifts: int = 0,
    max_shift: int = 4,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> TokenCache:
    """Encodes every readable picture (centre-cropped to the tokenizer's size) and writes the cache in one move.

    `flip` adds mirrored versions, `shifts` as many versions translated by at most `max_shift` pixels on white.
    """
    if not tokenizer.quantizer.codebook_size:
        raise ValueError("the tokenizer's tokens are vectors, but only indices of codes can be written")
    device = tokenizer.from_codes.weight.device
    source_labels, label_sets = labels_of(source)
    small = np.uint16 if tokenizer.quantizer.codebook_size <= 1 << 16 else np.int32
    tokens, labels, names = [], [], []
    for start in range(0, len(source), batch_size):
        images, kept = readable(source, range(start, min(start + batch_size, len(source))), tokenizer.config.image_size)
        if kept:
            versions = all_versions(images, flip, shifts, max_shift, torch.Generator().manual_seed(seed + start))
            encoded = torch.stack([tokenizer.encode(to_float(v).to(device)).cpu() for v in versions], dim=1)
            tokens.append(encoded.numpy().astype(small))
            labels.append(source_labels[kept].numpy())
            names += [source.names[i] for i in kept]
        if progress is not None:
            progress(min(start + batch_size, len(source)), len(source))
    if not names:
        raise ValueError("not one picture of the data can be read")
    all_tokens = np.concatenate(tokens)
    description = CacheDescription(
        layout=tokenizer.config.layout,
        index_shape=tokenizer.config.quantizer.index_shape,
        codebook_size=tokenizer.quantizer.codebook_size,
        tokenizer=fingerprint,
        versions=all_tokens.shape[1],
        labels=tuple(CacheLabels(name=s.name, values=tuple(s.values)) for s in label_sets),
    )
    write_cache(folder, description, all_tokens, np.concatenate(labels), names)
    return TokenCache(folder)


def write_cache(
    folder: str | Path, description: CacheDescription, tokens: Integers, labels: Integers, names: list[str]
) -> None:
    """tokens i v n ... (image, version, token), labels i k."""
    with replacing_folder(folder) as temporary:
        np.save(temporary / TOKENS, tokens.reshape(-1, *tokens.shape[2:]))
        np.save(temporary / LABELS, labels.repeat(description.versions, axis=0))
        (temporary / NAMES).write_text(json.dumps(names), encoding="utf-8")
        configs.save(description, temporary / DESCRIPTION)


def labels_of(source: ImageSource) -> tuple[Tensor, tuple[LabelSet, ...]]:
    """Labels n k and their sets; pictures without classes count as one class."""
    if source.label_sets:
        return source.labels, source.label_sets
    return torch.zeros(len(source), 1, dtype=torch.int64), (LabelSet("class", ("image",)),)


def readable(source: ImageSource, indices: Iterable[int], image_size: int) -> tuple[Tensor, list[int]]:
    """The pictures that can be decoded, b 3 s s uint8, and their indices; others are named in the log."""
    images, kept = [], []
    for i in indices:
        try:
            images.append(center_crop(source.image(i), image_size))
            kept.append(i)
        except UnreadableImage as error:
            logger.warning("skipped: %s", error)
    return torch.stack(images) if images else torch.empty(0, 3, image_size, image_size, dtype=torch.uint8), kept


def all_versions(images: Tensor, flip: bool, shifts: int, max_shift: int, generator: torch.Generator) -> list[Tensor]:
    """As they are; translated; and each of these mirrored."""
    versions = [images] + [random_shift(images, max_shift, generator) for _ in range(shifts)]
    return versions + [version.flip(-1) for version in versions] if flip else versions
