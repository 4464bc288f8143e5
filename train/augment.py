"""Differentiable augmentation of what a discriminator sees (DiffAugment, arXiv:2006.10738); all draws are arguments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHANCES = 7  # of each picture: two to shift, three of colour, two to cut


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    translation: float = 0.125
    """Largest shift, as a share of the side, filled with grey; 0: none."""
    colour: bool = True
    """Other brightness, saturation and contrast."""
    cutout: float = 0.2
    """Side of a square that turns grey, as a share of the picture's; 0: none."""

    def __post_init__(self) -> None:
        for name in ("translation", "cutout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augment.{name} must be at least 0 and below 1, got {getattr(self, name)}")


def chances(count: int, generator: torch.Generator) -> Tensor:
    """What is random of so many pictures: [CHANCES, count], uniform in [0, 1), on the generator's device."""
    return torch.rand(CHANCES, count, generator=generator, device=generator.device)


def augmented(images: Tensor, config: AugmentConfig, dice: Tensor) -> Tensor:
    """b 3 h w in [-1, 1] -> float32, each picture by its own `dice` (of `chances`); it may leave the range."""
    images, dice = images.float(), dice.to(images.device)
    if config.translation:
        images = translated(images, config.translation, dice[0], dice[1])
    if config.colour:
        images = coloured(images, *dice[2:5])
    return cut(images, config.cutout, dice[5], dice[6]) if config.cutout else images


def translated(images: Tensor, share: float, down: Tensor, right: Tensor) -> Tensor:
    """Each picture shifted by at most `share` of its sides, every number of pixels equally likely; 0 comes in."""
    for axis, chance in ((2, down), (3, right)):
        length = images.shape[axis]
        most = round(length * share)
        source = torch.arange(length, device=images.device) + (chance * (2 * most + 1)).long()[:, None] - most
        there = along(axis, (source >= 0) & (source < length))
        index = along(axis, source.clamp(0, length - 1)).expand(images.shape)
        images = images.gather(axis, index) * there
    return images


def coloured(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness by up to half of 1, saturation by 0 to 2, contrast by 0.5 to 1.5 around the picture's mean."""
    images = images + (each(brightness) - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * each(saturation))
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (each(contrast) + 0.5)


def cut(images: Tensor, share: float, down: Tensor, right: Tensor) -> Tensor:
    """A rectangle of `share` of the sides becomes 0, wholly or, at the border, partly inside."""
    inside = images.new_ones((), dtype=torch.bool)
    for axis, chance in ((2, down), (3, right)):
        length = images.shape[axis]
        side = round(length * share)
        first = (chance * (length + 1 - side % 2)).long()[:, None] - side // 2
        place = torch.arange(length, device=images.device)
        inside = inside & along(axis, (place >= first) & (place < first + side))
    return images * ~inside


def along(axis: int, values: Tensor) -> Tensor:
    """b n -> b 1 n 1 or b 1 1 n, for axis 2 or 3."""
    return values[:, None, :, None] if axis == 2 else values[:, None, None, :]


def each(values: Tensor) -> Tensor:
    """b -> b 1 1 1"""
    return values[:, None, None, None]


def fitted(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Pictures b 3 h w for a network that sees size x size pixels: larger ones cropped, half of the time, or resized.

    The crop is the same for all of the batch. Otherwise areas are averaged; smaller ones are enlarged (bicubic).
    """
    height, width = images.shape[-2:]
    whole, down, right = torch.rand(3, generator=generator, device=generator.device).tolist()
    if min(height, width) > size and whole < 0.5:
        top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
        return images[..., top : top + size, left : left + size]
    if (height, width) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="area" if min(height, width) > size else "bicubic")
