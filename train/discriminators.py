"""Discriminators: pictures to logits, high for real ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from imgtok.train.augment import AugmentConfig, augmented, chances, fitted
from imgtok.train.levels import Levels, levels_of

Norm = Literal["batch", "group", "none"]


class Discriminator(Protocol):
    """A module; what is random in it is drawn from `generator`."""

    @property
    def companions(self) -> tuple[nn.Module, ...]:
        """Frozen networks to bring to the device; never saved."""
        ...

    def hidden_weights(self) -> list[nn.Parameter]: ...

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class PatchGANConfig:
    """Sizes of a patch discriminator (arXiv:1611.07004, appendix 6.1); the defaults see patches of 70x70 pixels."""

    width: int = 64
    """Channels after the first convolution; they double with each, up to eight times as many."""
    num_layers: int = 3
    """Convolutions of stride 2; more of them see larger patches. Pictures need 3 * 2 ** num_layers pixels a side."""
    norm: Norm = "batch"
    """After every convolution but the first and last; "group" and "none" also suit batches of very few pictures."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.num_layers < 1:
            raise ValueError(f"width {self.width} and num_layers {self.num_layers} must both be at least 1")
        if self.norm not in ("batch", "group", "none"):
            raise ValueError(f"norm {self.norm!r} is unknown; use 'batch', 'group' or 'none'")

    def build(self) -> PatchGAN:
        return PatchGAN(self.width, self.num_layers, self.norm)


class Convolutional(nn.Module):
    """What discriminators have in common whose logits come from one convolution after the other."""

    layers: nn.Sequential

    @property
    def companions(self) -> tuple[nn.Module, ...]:
        return ()

    def hidden_weights(self) -> list[nn.Parameter]:
        """Of all convolutions but the first and the last."""
        return [p for layer in self.layers[1:-1] for p in layer.parameters() if p.ndim >= 2]


class PatchGAN(Convolutional):
    """4x4 convolutions, `num_layers` of stride 2 and two of stride 1, with LeakyReLU 0.2 between (arXiv:1611.07004).

    Each logit judges one patch. Weights start as N(0, 0.02), scales of norms as N(1, 0.02), biases at 0.
    """

    def __init__(self, width: int = 64, num_layers: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        self.minimum_size = 3 * 2**num_layers
        widths = [width * min(2**i, 8) for i in range(num_layers + 1)]
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *(downsample(widths[i], widths[i + 1], norm, stride=2) for i in range(num_layers - 1)),
            downsample(widths[-2], widths[-1], norm, stride=1),
            nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1),
        )
        self.apply(initialize)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:  # b 3 h w -> b 1 h' w'
        """Logits of the patches, h' = h // 2 ** num_layers - 2, of pictures in [-1, 1]; ValueError if too small."""
        if min(images.shape[-2:]) < self.minimum_size:
            size, least = tuple(images.shape[-2:]), self.minimum_size
            raise ValueError(f"pictures of {size} are smaller than {least}x{least}; use fewer num_layers")
        return self.layers(images)


def downsample(width_in: int, width_out: int, norm: Norm, stride: int) -> nn.Sequential:
    """Convolution, normalisation, LeakyReLU. Batch normalisation removes a bias before it, so there is none."""
    convolution = nn.Conv2d(width_in, width_out, 4, stride=stride, padding=1, bias=norm != "batch")
    return nn.Sequential(convolution, build_norm(norm, width_out), nn.LeakyReLU(0.2))


def build_norm(norm: Norm, width: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, width), width)
    return nn.Identity()


def initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


@dataclass(frozen=True, kw_only=True)
class BlurredPatchGANConfig:
    """Sizes of a patch discriminator that blurs before it drops pixels: that of TiTok (arXiv:2406.07550)."""

    width: int = 128
    """Channels after the first convolution and the first halving; they double with each further one."""
    num_layers: int = 3
    """Halvings."""
    places: int = 16
    """Logits along each side: the greatest features around each place are judged, whatever the size of pictures."""

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "places"):
            if getattr(self, name) < 1:
                raise ValueError(f"discriminator.{name} must be at least 1, got {getattr(self, name)}")

    def build(self) -> BlurredPatchGAN:
        return BlurredPatchGAN(self.width, self.num_layers, self.places)


class BlurredPatchGAN(Convolutional):
    """3x3 convolutions, each before a blur of stride 2, group normalisation and LeakyReLU 0.1, between two of 5x5."""

    def __init__(self, width: int = 128, num_layers: int = 3, places: int = 16) -> None:
        super().__init__()
        widths = [width] + [width * 2**i for i in range(num_layers)]
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2),
            nn.LeakyReLU(0.1),
            *(blurred(before, after) for before, after in pairwise(widths)),
            nn.AdaptiveMaxPool2d(places),
            nn.Conv2d(widths[-1], widths[-1], 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(widths[-1], 1, 5, padding=2),
        )

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:  # b 3 h w -> b 1 n n
        """Logits of the places of pictures in [-1, 1], of any size."""
        return self.layers(images)


def blurred(width_in: int, width_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, 3, padding=1)
    return nn.Sequential(convolution, Blur(), build_norm("group", width_out), nn.LeakyReLU(0.1))


class Blur(nn.Module):
    """b c h w -> b c ceil(h / 2) ceil(w / 2): each channel weighted 1, 3, 3, 1 along both sides, zeros around it."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2))
        return F.conv2d(x, self.kernel.expand(x.shape[1], 1, -1, -1).to(x.dtype), stride=2, groups=x.shape[1])


@dataclass(frozen=True, kw_only=True)
class FrozenFeaturesConfig:
    """Heads on a frozen network's features: the discriminator of RobusTok, ImageFolder and VAR ("dinodisc")."""

    network: Literal["dino-s", "efficientnet-lite0"] = "dino-s"
    """DINO's ViT-S/16 needs its weights. efficientnet-lite0, a classifier in an installed package, stands in for it
    where these are missing."""
    weights: str | None = None
    """A file of the network's weights, instead of timm or the installed package."""
    size: int = 224
    """Side in pixels of what the network sees: a crop, half of the time, or the picture resized. A multiple of 16."""
    kernel: int = 9
    """Tokens in a row that the middle convolution of a head sees; odd."""
    virtual_batch: int = 8
    """Pictures that share the statistics of batch normalisation."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 16:
            raise ValueError(f"discriminator.size must be a multiple of 16, got {self.size}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"discriminator.kernel must be odd and at least 1, got {self.kernel}")
        if self.virtual_batch < 1:
            raise ValueError(f"discriminator.virtual_batch must be at least 1, got {self.virtual_batch}")

    def build(self) -> FrozenDiscriminator:
        """Errors as those of `imgtok.train.levels`."""
        return FrozenDiscriminator(levels_of(self.network, self.weights), self)


class FrozenDiscriminator(nn.Module):
    """Heads on the features of a frozen network at several depths, whose pictures are augmented (arXiv:2301.09515).

    The frozen network is no part of its parameters: neither trained nor saved.
    """

    def __init__(self, levels: Levels, config: FrozenFeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.companions = (levels,)
        self.heads = nn.ModuleList(head(width, config) for width in levels.widths)

    def hidden_weights(self) -> list[nn.Parameter]:
        """None: spectral normalisation has its own idea of how long they are."""
        return []

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:  # b 3 h w -> b n
        """Logits of all tokens of all depths of pictures in [-1, 1], of any size."""
        images = augmented(images, self.config.augment, chances(len(images), generator))
        (levels,) = self.companions
        features = levels(fitted(images, self.config.size, generator))
        return torch.cat([each(x)[:, 0] for each, x in zip(self.heads, features, strict=True)], dim=1)


def head(width: int, config: FrozenFeaturesConfig) -> nn.Sequential:
    """b c n -> b 1 n: by itself, with its neighbours in the row, which is a ring, and by itself again."""
    return nn.Sequential(
        convolution(width, 1, config.virtual_batch),
        Residual(convolution(width, config.kernel, config.virtual_batch)),
        spectral_norm(nn.Conv1d(width, 1, 1)),
    )


def convolution(width: int, kernel: int, virtual_batch: int) -> nn.Sequential:
    layer = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(layer), VirtualBatchNorm(width, virtual_batch), nn.LeakyReLU(0.2))


class Residual(nn.Module):
    """(x + f(x)) / sqrt(2), which keeps the variance where the two are independent."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.branch(x)) / math.sqrt(2)


class VirtualBatchNorm(nn.Module):
    """Batch normalisation b c n -> b c n, by the statistics of `size` rows at most, in evaluation mode too.

    So it does not depend on how large a batch is, nor on how many processes share it. Rows are cut evenly.
    """

    def __init__(self, width: int, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.float().tensor_split(math.ceil(len(x) / self.size))
        normal = torch.cat([self.normalize(part) for part in parts])
        return normal * self.weight[:, None] + self.bias[:, None]

    def normalize(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(0, 2), correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(variance + self.eps)
