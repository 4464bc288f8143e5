"""Frozen networks read at several depths, through which gradients pass to the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from imgtok.backbones.vit import ImageFeatures, ImageFeaturesConfig, ViTConfig
from imgtok.convert import read_state
from imgtok.hub import build_from_state
from imgtok.metrics.frozen import efficientnet_lite0_network
from imgtok.presets.robusttok import convert_timm
from imgtok.train.teachers import IMAGENET_MEAN, IMAGENET_STD, timm_state

DINO = ImageFeaturesConfig(vit=ViTConfig(width=384, depth=12, num_heads=6), patch_size=16, grid=(14, 14))
DINO_BLOCKS = (2, 5, 8, 11)
DINO_TIMM = "vit_small_patch16_224.dino"
LITE0_BLOCKS, LITE0_WIDTHS = (5, 11, 16), (40, 112, 320)  # an eighth, a sixteenth, a thirty-second of the resolution


class Levels(nn.Module):
    """Pictures in [-1, 1] to features at several depths, in rows: b 3 h w -> b c n each, float32.

    Frozen, and always in evaluation mode. `mean` and `std` are of RGB in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def normalize(self, images: Tensor) -> Tensor:
        return ((images.float() + 1) / 2 - self.mean) / self.std

    def train(self, mode: bool = True) -> Levels:
        return super().train(False)


class ViTLevels(Levels):
    """What a vision transformer's first block reads, and what some of its blocks give: patches plus the class token."""

    def __init__(self, network: ImageFeatures, blocks: Sequence[int]) -> None:
        super().__init__([network.config.vit.width] * (1 + len(blocks)), IMAGENET_MEAN, IMAGENET_STD)
        self.network, self.blocks = network, tuple(blocks)
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        tokens = self.network.patches(self.normalize(images))
        levels = [with_class(tokens)]
        for number, block in enumerate(self.network.vit.blocks[: max(self.blocks) + 1]):
            tokens = block(tokens, None)
            if number in self.blocks:
                levels.append(with_class(tokens))
        return levels


class ConvLevels(Levels):
    """What each of several parts of a network of maps gives, in raster order; its pictures are in [-1, 1]."""

    def __init__(self, parts: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__(widths, (0.5,) * 3, (0.5,) * 3)
        self.parts = nn.ModuleList(parts)
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        x, levels = self.normalize(images), []
        for part in self.parts:
            x = part(x)
            levels.append(x.float().flatten(2))
        return levels


def with_class(tokens: Tensor) -> Tensor:
    """Class token and patches b (1 + n) c -> b c n"""
    return (tokens[:, 1:].float() + tokens[:, :1].float()).transpose(1, 2)


def levels_of(name: str, weights: str | None = None) -> Levels:
    """ "dino-s" or "efficientnet-lite0"; errors as those of `dino` and of `imgtok.metrics.frozen`."""
    return dino(weights) if name == "dino-s" else efficientnet(weights)


def dino(weights: str | None = None) -> ViTLevels:
    """DINO's ViT-S/16 (arXiv:2104.14294), after the embedding and blocks 2, 5, 8 and 11.

    `weights`: a file with timm's names, as timm and DINO's authors publish it; None: through timm, from its cache or
    the hub. ImportError if that is missing.
    """
    state, source = (read_state(weights), weights) if weights else (timm_state(DINO_TIMM), DINO_TIMM)
    return ViTLevels(build_from_state(DINO, convert_timm(state), source), DINO_BLOCKS)


def efficientnet(weights: str | None = None) -> ConvLevels:
    """EfficientNet-Lite0, a classifier in an installed package, at three depths: a stand-in where DINO is missing."""
    model = efficientnet_lite0_network(weights)
    stem = (model._conv_stem, model._bn0, model._swish)
    parts = [nn.Sequential(*model._blocks[start:stop]) for start, stop in pairwise((0, *LITE0_BLOCKS))]
    return ConvLevels([nn.Sequential(*stem, *parts[0]), *parts[1:]], LITE0_WIDTHS)
