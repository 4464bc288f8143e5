"""Discriminators: pictures to a map of logits, high for real ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group", "none"]


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


class PatchGAN(nn.Module):
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

    def hidden_weights(self) -> list[nn.Parameter]:
        """Of all convolutions but the first and the last."""
        return [p for layer in self.layers[1:-1] for p in layer.parameters() if p.ndim >= 2]

    def forward(self, images: Tensor) -> Tensor:  # b 3 h w -> b 1 h' w'
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
