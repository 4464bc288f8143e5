"""Convolutional parts of the VQGAN line (arXiv:2012.09841): residual block, spatial attention, change of resolution."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Resample = Literal["conv", "shuffle", "mean"]


class ResBlock(nn.Module):
    """norm, SiLU, conv, twice, beside a shortcut: b c h w -> b c' h w. `kernel` is odd."""

    def __init__(
        self, channels: int, out_channels: int, norm_groups: int, dropout: float = 0.0, kernel: int = 3
    ) -> None:
        super().__init__()
        self.norm1 = map_norm(channels, norm_groups)
        self.conv1 = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
        self.norm2 = map_norm(out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(norm_silu(self.norm1, x))
        h = self.conv2(self.dropout(norm_silu(self.norm2, h)))
        h += self.shortcut(x)  # in place: of large maps, fresh memory costs more than the sum
        return h


class PlaceNorm(nn.Module):
    """LayerNorm over the channels of each place of a map: b c h w -> b c h w.

    GroupNorm lets every place see the whole picture; after this one, equal surroundings have equal features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        places = x.permute(0, 2, 3, 1)
        return F.layer_norm(places, self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class SpatialAttention(nn.Module):
    """One head of attention over all places of a map: b c h w -> b c h w."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = map_norm(channels, norm_groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halves height and width. "conv": zero column right, zero row below, 3x3 stride 2; "shuffle": 4x4 stride 2;
    "mean": of 2x2 places, without weights.
    """

    def __init__(self, channels: int, out_channels: int, kind: Resample) -> None:
        super().__init__()
        self.kind = kind
        if kind == "conv":
            self.conv = nn.Conv2d(channels, out_channels, 3, stride=2)
        elif kind == "shuffle":
            self.conv = nn.Conv2d(channels, out_channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mean":
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.kind == "conv" else x)


class Upsample(nn.Module):
    """Doubles height and width. "conv", "mean": nearest neighbour, 3x3; "shuffle": 1x1, pixel-shuffle
    (arXiv:1609.05158).
    """

    def __init__(self, channels: int, out_channels: int, kind: Resample) -> None:
        super().__init__()
        self.kind = kind
        if kind == "shuffle":
            self.conv = nn.Conv2d(channels, 4 * out_channels, 1)
        else:
            self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "shuffle":
            return F.pixel_shuffle(self.conv(x), 2)
        return convolve_doubled(x, self.conv)


class MapConv(nn.Conv2d):
    """A convolution of a channel-last map: b h w c -> b h w c'. `kernel` is odd."""

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(rearrange(x, "b h w c -> b c h w")), "b c h w -> b h w c")


def convolve_doubled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The 3x3 `conv` of x doubled in size by nearest neighbour: b c h w -> b c' 2h 2w.

    A pixel of the outcome sees 2x2 different ones of x. Where no gradient is kept, four 2x2 convolutions, one for each
    place in a pair of rows and a pair of columns, take four products for it instead of nine.
    """
    if torch.is_grad_enabled():
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert conv.bias is not None
    taps = conv.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # place, tap of 2, tap of 3
    weight = torch.einsum("pay, qbx, oiyx -> pqoiab", taps, taps, conv.weight).flatten(0, 2)
    last = x.is_contiguous(memory_format=torch.channels_last)
    memory = torch.channels_last if last else torch.contiguous_format
    each = F.conv2d(F.pad(x, (1, 1, 1, 1)), weight.contiguous(memory_format=memory), conv.bias.repeat(4))
    height, width = x.shape[2:]
    shape = len(x), len(conv.weight), 2 * height, 2 * width
    out = torch.empty(shape, dtype=each.dtype, device=each.device, memory_format=memory)
    for place, part in enumerate(each.chunk(4, dim=1)):
        row, column = divmod(place, 2)
        out[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
    return out


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """silu(norm(x)), in place where no gradient is kept. In training, that would cost a copy."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def map_norm(channels: int, groups: int) -> nn.Module:
    """GroupNorm with eps 1e-6, as everywhere in this line; for 0 groups `PlaceNorm`.

    ValueError if the groups do not divide the channels.
    """
    if groups == 0:
        return PlaceNorm(channels)
    if channels % groups:
        raise ValueError(f"norm_groups {groups} does not divide {channels} channels; use a divisor of every width")
    return nn.GroupNorm(groups, channels, eps=1e-6)
