"""What each stage of a residual quantizer sees of the latents, and how its codes come back to their full size.

A view of stage k reads latents and the sum of the stages before, b h w d, and gives the map b h_k w_k d to quantise;
`restore` brings that map's codes back to b h w d.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.tokens import ScaleLayout

Size = tuple[int, int]
Scale = int | Size


class View(Protocol):
    def rest(self, latents: Tensor, total: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        """What `stage` quantises of latents b h w d when `total` b h w d is coded already: b h_k w_k d."""
        ...

    def restore(self, codes: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        """What the codes b h_k w_k d of `stage` add to the total: b h w d."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]: ...


@dataclass(frozen=True, kw_only=True)
class ScalesConfig:
    """Maps of growing size: the rest shrunk by area, its codes enlarged and blended (VAR, arXiv:2404.02905)."""

    scales: tuple[Scale, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """Side, or height and width, of each stage's map; the last is the size of the latents that it is for."""
    other_scales: tuple[tuple[Scale, ...], ...] = ()
    """Lists for latents of other sizes, of as many scales. Where a size has no list, `scales` are stretched to it."""
    blends: int = 4
    """Convolutions that smooth enlarged codes: 0: none, 1: one for all scales, n: shared by neighbouring scales."""
    blend_ratio: float = 0.5
    """Share of the convolution's outcome in the smoothed codes."""

    def __post_init__(self) -> None:
        for scales in (self.scales, *self.other_scales):
            ScaleLayout(pairs(scales))  # which refuses what is no list of growing maps
            if len(scales) != len(self.scales):
                raise ValueError(
                    f"each of other_scales must have {len(self.scales)} scales, as `scales` has, got {scales}; "
                    "leave it out"
                )
        if not 0 <= self.blends <= len(self.scales):
            raise ValueError(f"blends must be from 0 to {len(self.scales)}, one for each scale, got {self.blends}")

    @property
    def num_stages(self) -> int:
        return len(self.scales)

    def sizes_of(self, height: int, width: int) -> tuple[Size, ...]:
        """Of each stage's map, for latents of height x width: the list for this size, or `scales` in proportion."""
        for scales in (self.scales, *self.other_scales):
            if pairs(scales)[-1] == (height, width):
                return pairs(scales)
        last_height, last_width = pairs(self.scales)[-1]
        return tuple(
            (stretched(h, height, last_height), stretched(w, width, last_width)) for h, w in pairs(self.scales)
        )

    def build(self, dim: int) -> ScalesView:
        return ScalesView(self, dim)


@dataclass(frozen=True, kw_only=True)
class BandsConfig:
    """Bands of growing frequency on maps of growing size (NFIG, arXiv:2503.07076).

    A stage codes what is missing of all frequencies up to those of its band: the band, and what earlier stages lost.
    """

    scales: ScalesConfig = field(default_factory=ScalesConfig)
    """Sizes of the maps, and how codes are enlarged and blended."""
    rule: Literal["share", "sqrt", "nyquist"] = "sqrt"
    """Where bands end. "share": radius in proportion to the tokens so far, as in the paper, which leaves low bands
    empty; "sqrt": area in proportion to them; "nyquist": at what a map of the stage's size can carry."""

    @property
    def num_stages(self) -> int:
        return self.scales.num_stages

    def sizes_of(self, height: int, width: int) -> tuple[Size, ...]:
        return self.scales.sizes_of(height, width)

    def build(self, dim: int) -> BandsView:
        return BandsView(self, dim)


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """Every stage sees the whole rest as it is: residual vector quantisation (arXiv:2107.03312)."""

    count: int = 8
    """Number of stages."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    @property
    def num_stages(self) -> int:
        return self.count

    def sizes_of(self, height: int, width: int) -> tuple[Size, ...]:
        return ((height, width),) * self.count

    def build(self, dim: int) -> StagesView:
        return StagesView()


class ScalesView(nn.Module):
    def __init__(self, config: ScalesConfig, dim: int) -> None:
        super().__init__()
        self.blends = nn.ModuleList(Blend(dim, config.blend_ratio) for _ in range(config.blends))
        self.blend_of_stage = nearest_ticks(config.num_stages, config.blends) if config.blends else ()

    def rest(self, latents: Tensor, total: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        return shrink(latents - total, layout.sizes[stage])

    def restore(self, codes: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        codes = enlarge(codes, layout.sizes[-1])
        return self.blends[self.blend_of_stage[stage]](codes) if self.blend_of_stage else codes


class BandsView(nn.Module):
    def __init__(self, config: BandsConfig, dim: int) -> None:
        super().__init__()
        self.rule = config.rule
        self.scales = config.scales.build(dim)

    def rest(self, latents: Tensor, total: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        return self.scales.rest(self.low_pass(latents, stage, layout), total, stage, layout)

    def restore(self, codes: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        return self.scales.restore(codes, stage, layout)

    def low_pass(self, latents: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        """The bands up to that of `stage`, together: b h w d -> b h w d."""
        if stage == len(layout.sizes) - 1:
            return latents
        passed = band_limit(self.rule, stage, layout).to(latents.device)
        spectrum = torch.fft.rfft2(latents, dim=(1, 2)) * passed[..., None]
        return torch.fft.irfft2(spectrum, s=layout.sizes[-1], dim=(1, 2))


class StagesView(nn.Module):
    def rest(self, latents: Tensor, total: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        return latents - total

    def restore(self, codes: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        return codes


class Blend(nn.Conv2d):
    """(1 - ratio) x + ratio conv(x) of b h w d, in float32 whatever the weights are in: VAR's phi."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        with torch.autocast(x.device.type, enabled=False):
            x = rearrange(x.float(), "b h w d -> b d h w")
            smooth = F.conv2d(x, self.weight.float(), self.bias.float(), padding=1)
            return rearrange((1 - self.ratio) * x + self.ratio * smooth, "b d h w -> b h w d")


def shrink(x: Tensor, size: Size) -> Tensor:
    """b h w d -> b h_k w_k d: the mean of the area under each cell."""
    if tuple(x.shape[1:3]) == size:
        return x
    return rearrange(F.interpolate(rearrange(x, "b h w d -> b d h w"), size, mode="area"), "b d h w -> b h w d")


def enlarge(x: Tensor, size: Size) -> Tensor:
    """b h_k w_k d -> b h w d, bicubic (a = -0.75, as torch has it)."""
    if tuple(x.shape[1:3]) == size:
        return x
    return rearrange(F.interpolate(rearrange(x, "b h w d -> b d h w"), size, mode="bicubic"), "b d h w -> b h w d")


def pairs(scales: Sequence[Scale]) -> tuple[Size, ...]:
    return tuple((scale, scale) if isinstance(scale, int) else scale for scale in scales)


def stretched(scale: int, length: int, last: int) -> int:
    """scale * length / last, rounded half up, at least 1: growing scales keep growing, and `last` becomes `length`."""
    return max(1, (2 * scale * length + last) // (2 * last))


def nearest_ticks(stages: int, blends: int) -> tuple[int, ...]:
    """The blend of each stage: that with its tick nearest to the stage's place in [0, 1], the first of two as near.

    VAR's weights expect its rounding: stages 2 and 7 of 10 lie half-way between ticks, and float64 decides for 1 and 3.
    """
    margin = 1 / 3 / blends if blends == 4 else 1 / 2 / blends
    step = ((1 - margin) - margin) / max(blends - 1, 1)
    ticks = [margin + i * step for i in range(blends - 1)] + [1 - margin]
    places = [stage / max(stages - 1, 1) for stage in range(stages)]
    return tuple(min(range(blends), key=lambda i: abs(ticks[i] - place)) for place in places)


def band_limit(rule: Literal["share", "sqrt", "nyquist"], stage: int, layout: ScaleLayout) -> Tensor:
    """Which frequencies belong to the bands up to that of `stage`, not the last: h w//2+1, as rfft2 orders them."""
    height, width = layout.sizes[-1]
    rows = torch.fft.fftfreq(height, dtype=torch.float64).abs()[:, None]  # cycles per cell, at most 1/2
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)[None]
    if rule == "nyquist":
        return (rows < layout.sizes[stage][0] / height / 2) & (columns < layout.sizes[stage][1] / width / 2)
    radius = (rows.square() + columns.square()).sqrt()
    share = sum(layout.group_sizes[: stage + 1]) / layout.num_tokens
    return radius <= (share if rule == "share" else math.sqrt(share)) * radius.max()
