"""Frozen networks that tokenizers learn from: DINOv2 (arXiv:2304.07193), or a classifier where that is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.backbones.vit import ImageFeatures, ImageFeaturesConfig, ViTConfig
from imgtok.convert import State, read_state
from imgtok.hub import build_from_state
from imgtok.metrics.features import EfficientNetStage
from imgtok.metrics.frozen import efficientnet_lite0_network
from imgtok.presets.robusttok import convert_timm

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
DINOV2_TIMM = {
    "dinov2-s": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-l": "vit_large_patch14_dinov2.lvd142m",
}
DINOV2_SIZES = {"dinov2-s": (384, 12, 6), "dinov2-b": (768, 12, 12), "dinov2-l": (1024, 24, 16)}  # width, depth, heads
DINOV2_PATCH, DINOV2_GRID = 14, (37, 37)  # 518 pixels a side, as these networks were trained last
CLASSIFIER_SIZE = 224  # pixels a side: 16 x 16 patches of DINOv2
LITE0_MAPS, LITE0_ALL = (11, 112), (16, 320)  # blocks and channels: up to a sixteenth of the resolution; all


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


class PatchMap(nn.Module):
    """b 3 h w -> b c h' w', the patches in their places."""

    def __init__(self, network: ImageFeatures) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).patches.permute(0, 3, 1, 2)


class ClassToken(nn.Module):
    """b 3 h w -> b c 1 1: a map of one place, the whole picture."""

    def __init__(self, network: ImageFeatures) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).whole[:, :, None, None]


def patch_teacher(name: str, weights: str | None = None) -> FrozenTeacher:
    """Whose maps tell what is where: DINOv2's patches, or a classifier's features at a sixteenth of the resolution.

    `weights`: a file of them with timm's names, for efficientnet-lite0 one of its package's, in place of timm and the
    installed package. ImportError if either is missing, FileNotFoundError and ValueError for a wrong file.
    """
    if name not in DINOV2_TIMM:
        return classifier(*LITE0_MAPS, weights)
    network = dinov2(name, weights)
    return FrozenTeacher(
        PatchMap(network), network.config.vit.width, DINOV2_PATCH * DINOV2_GRID[0], IMAGENET_MEAN, IMAGENET_STD
    )


def whole_picture_teacher(name: str, weights: str | None = None) -> FrozenTeacher:
    """Whose map's mean is of the whole picture: DINOv2's class token, or a classifier's last features.

    `weights` and errors as those of `patch_teacher`.
    """
    if name not in DINOV2_TIMM:
        return classifier(*LITE0_ALL, weights)
    network = dinov2(name, weights)
    return FrozenTeacher(ClassToken(network), network.config.vit.width, CLASSIFIER_SIZE, IMAGENET_MEAN, IMAGENET_STD)


def classifier(blocks: int, width: int, weights: str | None) -> FrozenTeacher:
    """The first blocks of EfficientNet-Lite0."""
    return FrozenTeacher(EfficientNetStage(efficientnet_lite0_network(weights), blocks).trunk, width, CLASSIFIER_SIZE)


def dinov2(name: str, weights: str | None) -> ImageFeatures:
    state, source = (read_state(weights), weights) if weights else (timm_state(DINOV2_TIMM[name]), name)
    return build_from_state(dinov2_config(name), convert_timm(state), source)


def dinov2_config(name: str) -> ImageFeaturesConfig:
    width, depth, heads = DINOV2_SIZES[name]
    vit = ViTConfig(width=width, depth=depth, num_heads=heads, layer_scale=1e-5)
    return ImageFeaturesConfig(vit=vit, patch_size=DINOV2_PATCH, grid=DINOV2_GRID)


def timm_state(name: str) -> State:
    """Published weights, from timm's cache or the hub; ImportError if timm is missing."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"{name} comes through timm: pip install imgtok[teachers], or give a file of its weights"
        ) from error
    model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    return model.state_dict()
