"""A made-up extractor and pictures for it, for tests of what is done with features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imgtok.data import ArraySource, to_uint8
from imgtok.metrics.features import FeatureExtractor, Features, Naming


class Colours(nn.Module):
    """A picture's mean colours, their squares as logits, and its corners."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Features:
        pooled = images.mean((2, 3)) * self.scale
        return Features(pooled, 9 * pooled, images[:, :2, 0, 0])


def colours(resize: str = "bilinear") -> FeatureExtractor:
    return FeatureExtractor("colours", Naming("FD-c", "KD-c", "IS-c", "-c"), Colours(), resize, 8, 3, spatial=2)


def source(count: int, seed: int = 0, size: int = 16) -> ArraySource:
    """Random blocks of four pixels; no two pictures are alike."""
    blocks = torch.rand(count, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(seed))
    images = to_uint8(nn.functional.interpolate(blocks * 2 - 1, size=(size, size)))
    return ArraySource(images, torch.zeros(count, 0, dtype=torch.int64), (), [str(i) for i in range(count)])
