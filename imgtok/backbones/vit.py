"""A vision transformer over patches (arXiv:2010.11929): the trunk that others build upon, and features of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from imgtok.nn.block import ViTBlock
from imgtok.nn.position import resize_table


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    norm_first: bool = False
    """A LayerNorm before the first block too, as in CLIP."""
    layer_scale: float | None = None
    """What residual branches are scaled by when training begins (LayerScale, as in DINOv2); None: no scales."""
    drop_path: float = 0.0
    """Probability of leaving out a branch of the last block for a row; it rises linearly from 0 at the first."""

    def build(self) -> ViT:
        return ViT(self)


class ViT(nn.Module):
    """Norm if wanted, blocks, norm: b n c -> b n c. Every token sees all others, or what `mask` shows it."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, last = config.width, max(config.depth - 1, 1)
        self.norm_in = nn.LayerNorm(width, config.norm_eps) if config.norm_first else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                ViTBlock(
                    width,
                    config.num_heads,
                    int(width * config.mlp_ratio),
                    norm_eps=config.norm_eps,
                    layer_scale=config.layer_scale,
                    drop_path=config.drop_path * i / last,
                )
                for i in range(config.depth)
            )
        )
        self.norm_out = nn.LayerNorm(width, config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm_out(x)

    def hidden_weights(self) -> list[nn.Parameter]:
        """Matrices from hidden layer to hidden layer."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim >= 2]


class PatchTokens(nn.Module):
    """Images b 3 h w -> a class token, then one token per patch in raster order: b (1 + n) c.

    `grid`: rows and columns of patches that the table of positions has; for others it is resized. The class token's
    position is part of the token.
    """

    def __init__(self, width: int, patch_size: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.class_token = table(width)
        self.positions = table(*grid, width)

    def forward(self, images: Tensor) -> Tensor:
        patches = rearrange(self.project(images), "b c h w -> b h w c")
        patches = patches + resize_table(self.positions, tuple(patches.shape[1:3]))
        return torch.cat([self.class_token.expand(len(images), 1, -1), patches.flatten(1, 2)], dim=1)


@dataclass(frozen=True, kw_only=True)
class ImageFeaturesConfig:
    vit: ViTConfig
    patch_size: int = 16
    grid: tuple[int, int] = (16, 16)
    """Rows and columns of patches in the pictures it was trained on; other sizes work."""

    def build(self) -> ImageFeatures:
        return ImageFeatures(self)


class Features(NamedTuple):
    whole: Tensor
    """b c, the class token after the last norm."""
    patches: Tensor
    """b h w c"""


class ImageFeatures(nn.Module):
    """Features of pictures b 3 h w, of the range that the weights expect (DINOv2, arXiv:2304.07193, for one)."""

    def __init__(self, config: ImageFeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchTokens(config.vit.width, config.patch_size, config.grid)
        self.vit = config.vit.build()

    def forward(self, images: Tensor) -> Features:
        tokens = self.vit(self.patches(images))
        return Features(tokens[:, 0], tokens[:, 1:].unflatten(1, (images.shape[-2] // self.config.patch_size, -1)))


def table(*shape: int) -> nn.Parameter:
    """Learned vectors of about unit length: ... c."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)
