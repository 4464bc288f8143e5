"""How the flat token sequence of an image lies over its latents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class GridLayout:
    """One token per cell of a grid, in raster order (row by row from the top left)."""

    height: int
    width: int

    @property
    def num_tokens(self) -> int:
        return self.height * self.width

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """There is one map, of all tokens."""
        return (self.num_tokens,)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each map."""
        return ((self.height, self.width),)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.height, self.width)

    def flatten(self, values: Tensor) -> Tensor:
        """b h w ... -> b n ..."""
        return rearrange(values, "b h w ... -> b (h w) ...")

    def unflatten(self, values: Tensor) -> Tensor:
        """b n ... -> b h w ...; ValueError if n is not the number of cells."""
        if values.shape[1] != self.num_tokens:
            raise ValueError(
                f"{values.shape[1]} tokens do not fill a grid of {self.height} x {self.width} = {self.num_tokens}; "
                "pass layout=GridLayout(height, width) of the image that was encoded"
            )
        return rearrange(values, "b (h w) ... -> b h w ...", h=self.height)

    def positions(self) -> Tensor:
        """Row and column of each token: n 2, float32."""
        rows, columns = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        return torch.stack([rows.flatten(), columns.flatten()], dim=-1).float()


@dataclass(frozen=True)
class SequenceLayout:
    """One token per latent of a sequence that lies on no grid; those that matter most may come first (1-D tokens)."""

    length: int

    @property
    def num_tokens(self) -> int:
        return self.length

    @property
    def group_sizes(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.length,)

    def flatten(self, values: Tensor) -> Tensor:
        """b n ... as they are."""
        return values

    def unflatten(self, values: Tensor) -> Tensor:
        """b n ... as they are; ValueError if n is another length."""
        if values.shape[1] != self.length:
            raise ValueError(
                f"{values.shape[1]} tokens were given, but an image has {self.length}; "
                f"pass layout=SequenceLayout({values.shape[1]}) to decode from the first {values.shape[1]} alone"
            )
        return values


@dataclass(frozen=True)
class ScaleLayout:
    """One token per cell of several growing maps: map after map, each in raster order (arXiv:2404.02905).

    Maps may be of equal sizes, as the stages of plain residual quantisation are.
    """

    sizes: tuple[tuple[int, int], ...]
    """Height and width of each stage's map; the last covers the latents cell by cell."""

    def __post_init__(self) -> None:
        heights, widths = (sorted(side) for side in zip(*self.sizes, strict=True)) if self.sizes else ([0], [0])
        if heights[0] < 1 or widths[0] < 1 or self.sizes != tuple(zip(heights, widths, strict=True)):
            raise ValueError(
                f"sizes must be one or more maps of at least 1 x 1, none smaller than before: {self.sizes}"
            )

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Tokens of each stage."""
        return tuple(height * width for height, width in self.sizes)

    @property
    def num_tokens(self) -> int:
        return sum(self.group_sizes)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of the last map, which is as large as the latents."""
        return self.sizes[-1]

    @property
    def height(self) -> int:
        return self.sizes[-1][0]

    @property
    def width(self) -> int:
        return self.sizes[-1][1]

    def flatten(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps b h_k w_k ... -> b n ...; ValueError if their sizes are others."""
        given = [tuple(each.shape[1:3]) for each in maps]
        if given != list(self.sizes):
            raise ValueError(f"maps of {sizes_text(given)} were given, but the stages are {sizes_text(self.sizes)}")
        return torch.cat([rearrange(each, "b h w ... -> b (h w) ...") for each in maps], dim=1)

    def unflatten(self, values: Tensor) -> tuple[Tensor, ...]:
        """b n ... -> maps b h_k w_k ...; ValueError if n is not the number of cells of all maps."""
        if values.shape[1] != self.num_tokens:
            raise ValueError(
                f"{values.shape[1]} tokens do not fill maps of {sizes_text(self.sizes)}, which have {self.num_tokens}; "
                "pass layout=tokenizer.config.layout_of(height, width) of the image that was encoded"
            )
        parts = values.split(self.group_sizes, dim=1)
        return tuple(
            rearrange(part, "b (h w) ... -> b h w ...", h=height)
            for part, (height, _) in zip(parts, self.sizes, strict=True)
        )


def plain_layout(latent_shape: tuple[int, ...]) -> GridLayout | SequenceLayout:
    """One token per latent, on a grid (height, width) or in a sequence (length,)."""
    return GridLayout(*latent_shape) if len(latent_shape) == 2 else SequenceLayout(*latent_shape)


TokenLayout = GridLayout | SequenceLayout | ScaleLayout


def sizes_text(sizes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(" x ".join(map(str, size)) for size in sizes)
