"""Frozen feature teachers: what a network that learnt to see finds at each place of a picture, for others to align to.

Any module with a `width` that maps images b 3 h w in [-1, 1] to b width h' w' without gradient is a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
DINOV2 = {
    "dinov2-s": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
}
DINOV2_SIZE = 518  # pixels a side: 37 x 37 patches, as these networks were trained last


class Teacher(Protocol):
    width: int
    """Channels of its features."""

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 h w in [-1, 1] -> b width h' w', float32, without gradient."""
        ...


class FrozenTeacher(nn.Module):
    """Images squashed to a square and normalised, then a frozen network that gives maps. It stays in evaluation mode.

    `mean` and `std` are of RGB in [0, 1]; by default the network gets [-1, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        width: int,
        size: int,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.network, self.width, self.size = network, width, size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w in [-1, 1] -> b width h' w', float32."""
        pixels = (images.float() + 1) / 2
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.network((pixels - self.mean) / self.std).float()

    def train(self, mode: bool = True) -> FrozenTeacher:
        return super().train(False)


class PatchMaps(nn.Module):
    """A vision transformer of timm whose patches, in their rows, are the map: b 3 s s -> b c h w."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        patches = self.model.forward_features(images)[:, self.model.num_prefix_tokens :]
        return rearrange(patches, "b (h w) c -> b c h w", h=math.isqrt(patches.shape[1]))


def dinov2(name: str, weights: str | Path | None = None) -> FrozenTeacher:
    """DINOv2 (arXiv:2304.07193), one of DINOV2, through timm. `weights`: a .safetensors file as timm publishes it,
    instead of a download from the hub. ImportError if timm is missing.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError("DINOv2 needs timm: pip install imgtok[teachers]") from error
    model: Any = timm.create_model(DINOV2[name], pretrained=weights is None, num_classes=0, img_size=DINOV2_SIZE)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return FrozenTeacher(PatchMaps(model), model.num_features, DINOV2_SIZE, IMAGENET_MEAN, IMAGENET_STD)


class AlignmentHead(nn.Module):
    """Hidden features b c h w to a teacher's channels, place by place: three layers (REPA, arXiv:2410.06940)."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        layers = (nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return rearrange(self.layers(rearrange(features, "b c h w -> b h w c")), "b h w c -> b c h w")


def alignment_loss(features: Tensor, target: Tensor) -> Tensor:
    """1 minus the mean cosine of b c h w and the target b c h' w', to whose places the former are resized; a scalar."""
    resized = features.float()
    if resized.shape[-2:] != target.shape[-2:]:
        resized = F.interpolate(resized, target.shape[-2:], mode="bilinear", antialias=True)
    return 1 - F.cosine_similarity(resized, target.float(), dim=1).mean()
