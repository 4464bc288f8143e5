"""How the flat token sequence of an image lies over its latents."""

from __future__ import annotations

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
