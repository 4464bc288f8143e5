"""Feature extractors for distances between sets of pictures, each under a name of its own. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.data.transforms import to_float
from imgtok.metrics.frozen import efficientnet_lite0_network, hub_file

INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
EFFICIENTNET_STAGES = {"efficientnet-lite0-112": 11, "efficientnet-lite0-320": 16}  # blocks; the width is in the name


class Features(NamedTuple):
    """What a network sees in pictures, float32."""

    pooled: Tensor
    """b d, averaged over places: for distances and neighbours."""
    logits: Tensor | None = None
    """b classes, for the inception score."""
    spatial: Tensor | None = None
    """b s, some channels at every place, for sFID."""


class Naming(NamedTuple):
    """What the numbers of an extractor are called."""

    frechet: str
    kernel: str
    score: str
    neighbours: str
    """Appended to precision, recall, density and coverage."""


class FeatureExtractor(nn.Module):
    """Pictures to features: resize, then a frozen network. It stays in evaluation mode."""

    def __init__(
        self, name: str, naming: Naming, network: nn.Module, resize: str, size: int, dimension: int, spatial: int = 0
    ) -> None:
        super().__init__()
        self.name, self.naming, self.network = name, naming, network
        self.resize, self.size, self.dimension, self.spatial_dimension = resize, size, dimension, spatial
        self.requires_grad_(False)
        self.eval()
        self.to(memory_format=torch.channels_last)  # half again as fast on a CPU

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Of b 3 h w, float in [-1, 1]; any size, squashed to a square. ValueError for other tensors."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected float b 3 h w in [-1, 1]")
        with torch.autocast(images.device.type, enabled=False):
            resized = RESIZES[self.resize](images.float(), self.size)
            return self.network(resized.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w in [-1, 1] -> b d, float32."""
        return self.features(images).pooled

    def train(self, mode: bool = True) -> FeatureExtractor:
        return super().train(False)


def feature_extractor(name: str, weights: str | Path | None = None, resize: str | None = None) -> FeatureExtractor:
    """The extractor called `name`, one of EXTRACTORS.

    `inception`: the network of FID, from pytorch-fid's file: `weights`, or else in the torch hub cache; 2048 features,
    with logits, and spatial features for sFID. `efficientnet-lite0`: ImageNet's EfficientNet-Lite0 from an installed
    package, 1280 features with logits; `efficientnet-lite0-320` and `efficientnet-lite0-112`: 320 and 112 features of
    its last block and of an earlier one, for sets too small for a covariance of 1280.
    `resize`: another rule of RESIZES than the extractor's own, to reproduce somebody's numbers.
    Raises ValueError for an unknown name or a file with other contents, FileNotFoundError for a missing file, and
    ImportError for a missing package.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"feature extractor {name!r} is unknown; use one of {', '.join(EXTRACTORS)}")
    if resize is not None and resize not in RESIZES:
        raise ValueError(f"resize rule {resize!r} is unknown; use one of {', '.join(RESIZES)}")
    return EXTRACTORS[name](name, weights, resize)


def extract(extractor: FeatureExtractor, images: Tensor, batch_size: int = 8) -> Tensor:
    """Pooled features of many pictures: n 3 h w, uint8 or float in [-1, 1] -> n d on the CPU, in small batches.

    A handful at a time is fastest on a CPU, whose caches then hold the activations; a GPU wants more.
    """
    device = next(extractor.parameters()).device
    parts = (part.to(device) for part in images.split(batch_size))
    return torch.cat([extractor(part if part.is_floating_point() else to_float(part)).cpu() for part in parts])


def inception(name: str, weights: str | Path | None, resize: str | None) -> FeatureExtractor:
    from imgtok.metrics.inception import load_inception

    network = load_inception(hub_file(INCEPTION_URL, weights))
    naming = Naming("FID", "KID", "IS", "")
    return FeatureExtractor(name, naming, network, resize or "tf1-bilinear", 299, 2048, spatial=7 * 17 * 17)


def efficientnet(name: str, weights: str | Path | None, resize: str | None) -> FeatureExtractor:
    model, blocks = efficientnet_lite0_network(weights), EFFICIENTNET_STAGES.get(name)
    network = EfficientNetHead(model) if blocks is None else EfficientNetStage(model, blocks)
    dimension = 1280 if blocks is None else int(name.rpartition("-")[2])
    tag = name.replace("efficientnet-lite0", "efflite0")
    naming = Naming(f"FD-{tag}", f"KD-{tag}", f"IS-{tag}", f"-{tag}")
    return FeatureExtractor(name, naming, network, resize or "bicubic", 224, dimension)


EXTRACTORS: dict[str, Callable[[str, str | Path | None, str | None], FeatureExtractor]] = {
    "inception": inception,
    "efficientnet-lite0": efficientnet,
    "efficientnet-lite0-320": efficientnet,
    "efficientnet-lite0-112": efficientnet,
}


class EfficientNetStage(nn.Module):
    """The first blocks, averaged over places."""

    def __init__(self, model: Any, blocks: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(model._conv_stem, model._bn0, model._swish, *model._blocks[:blocks])

    def forward(self, images: Tensor) -> Features:
        return Features(self.trunk(images).mean((2, 3)))


class EfficientNetHead(nn.Module):
    """All of it: what the classifier reads, and what it says."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        head = model._conv_head, model._bn1, model._swish
        self.trunk = nn.Sequential(model._conv_stem, model._bn0, model._swish, *model._blocks, *head)
        self.classifier: nn.Module = model._fc

    def forward(self, images: Tensor) -> Features:
        pooled = self.trunk(images).mean((2, 3))
        return Features(pooled, self.classifier(pooled))


def bicubic(images: Tensor, size: int) -> Tensor:
    """Bicubic with antialiasing, as Pillow's; clamped, since it overshoots."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def bilinear(images: Tensor, size: int) -> Tensor:
    """Bilinear between pixel centres, without antialiasing: pytorch-fid's."""
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)


def tf1_bilinear(images: Tensor, size: int) -> Tensor:
    """Bilinear as in TensorFlow 1: output pixel i reads place i * h / size, no half pixels, no antialiasing."""
    for axis in (-2, -1):
        length = images.shape[axis]
        place = torch.arange(size, device=images.device, dtype=torch.float32) * (length / size)
        low = place.long()
        high, share = (low + 1).clamp_max(length - 1), place - low
        if axis == -2:
            share = share[:, None]
        images = torch.lerp(images.index_select(axis, low), images.index_select(axis, high), share)
    return images


RESIZES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "tf1-bilinear": tf1_bilinear,
    "bilinear": bilinear,
    "bicubic": bicubic,
}
