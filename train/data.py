"""Batches as a function of the step alone: a run resumes anywhere, any number of processes sees the same data."""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from imgtok.data import ImageSource, UnreadableImage
from imgtok.data.transforms import random_crop, random_flip, random_shift, to_float
from imgtok.tokencache import TokenCache
from imgtok.train.config import ImageDataConfig, LoopConfig
from imgtok.train.randomness import derived_generator, derived_seed

logger = logging.getLogger(__name__)


class ImageBatch(NamedTuple):
    images: Tensor
    """b 3 h w in [-1, 1]"""


class TokenBatch(NamedTuple):
    tokens: Tensor
    """b n"""
    labels: Tensor
    """b k"""


class Share(NamedTuple):
    """Which part of every batch a process takes."""

    rank: int = 0
    processes: int = 1

    def of(self, config: LoopConfig, micro: int) -> slice:
        """The rows of micro-batch `micro` (0 <= micro < accumulate)."""
        parts = self.processes * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size {config.batch_size} cannot be cut into {config.accumulate} micro-batches on "
                f"{self.processes} processes; choose a multiple of {parts}"
            )
        rows, part = config.batch_size // parts, micro * self.processes + self.rank
        return slice(part * rows, (part + 1) * rows)


ALONE = Share()


class Batches(Protocol):
    """Item i is micro-batch i % accumulate of step i // accumulate."""

    def __getitem__(self, index: int) -> ImageBatch | TokenBatch: ...


class ImageBatches(Dataset[ImageBatch]):
    """Augmented pictures of one size. An unreadable picture is named in the log and its successor taken."""

    def __init__(
        self, source: ImageSource, image_size: int, data: ImageDataConfig, loop: LoopConfig, share: Share = ALONE
    ) -> None:
        if len(source) == 0:
            raise ValueError("there are no pictures to train on")
        share.of(loop, 0)
        self.source, self.image_size, self.data, self.loop, self.share = source, image_size, data, loop, share

    def __len__(self) -> int:
        return self.loop.steps * self.loop.accumulate

    def __getitem__(self, index: int) -> ImageBatch:
        step, micro = divmod(index, self.loop.accumulate)
        rows = self.share.of(self.loop, micro)
        positions = batch_positions(len(self.source), self.loop.batch_size, self.loop.seed, step)
        pictures = [self.picture(int(positions[row]), step, row) for row in range(rows.start, rows.stop)]
        return ImageBatch(to_float(torch.stack(pictures)))

    def picture(self, position: int, step: int, row: int) -> Tensor:
        """The picture at `position`, cropped, translated and mirrored at random: uint8 3 s s."""
        image, size = self.readable(position), self.image_size
        generator = derived_generator(self.loop.seed, "augment", step, row)
        if image.shape[-2:] != (size, size):
            image = random_crop(image, size, self.data.crop_scale, generator=generator)
        if self.data.shift:
            image = random_shift(image[None], self.data.shift, generator)[0]
        return random_flip(image[None], generator)[0] if self.data.flip else image

    def readable(self, position: int) -> Tensor:
        """The picture at `position`, or the next one that can be read."""
        for offset in range(len(self.source)):
            try:
                return self.source.image((position + offset) % len(self.source))
            except UnreadableImage as error:
                report_once(str(error))
        raise ValueError("not one picture of the data can be read")


class TokenBatches(Dataset[TokenBatch]):
    """Rows of a token cache with their labels."""

    def __init__(self, cache: TokenCache, loop: LoopConfig, share: Share = ALONE) -> None:
        if len(cache) == 0:
            raise ValueError("the token cache is empty")
        share.of(loop, 0)
        self.cache, self.loop, self.share = cache, loop, share

    def __len__(self) -> int:
        return self.loop.steps * self.loop.accumulate

    def __getitem__(self, index: int) -> TokenBatch:
        """Every image once an epoch, each time as one of its versions (mirrored, translated)."""
        step, micro = divmod(index, self.loop.accumulate)
        rows = self.share.of(self.loop, micro)
        positions = batch_positions(self.cache.images, self.loop.batch_size, self.loop.seed, step)
        generator = derived_generator(self.loop.seed, "version", step)
        versions = torch.randint(self.cache.versions, (self.loop.batch_size,), generator=generator)
        return TokenBatch(*self.cache.rows((positions * self.cache.versions + versions)[rows]))


def batch_positions(size: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Which of `size` items make the batch of `step`: one shuffled epoch after the other, without gaps."""
    stream = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = stream // size, stream % size
    positions = torch.empty_like(stream)
    for epoch in epochs.unique().tolist():
        chosen = epochs == epoch
        positions[chosen] = shuffled(size, derived_seed(seed, "epoch", epoch))[offsets[chosen]]
    return positions


@lru_cache(maxsize=4)
def shuffled(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@cache
def report_once(message: str) -> None:
    logger.warning("skipped: %s", message)
