"""Positions: rotary embeddings (arXiv:2104.09864), given to attention from outside, and learned tables."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class Rope(NamedTuple):
    """Cosines and sines of the rotation of each position: n d/2, or b n d/2 where rows differ; float32."""

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> Rope:
        """The rows for `positions` (any shape of integers)."""
        return Rope(self.cos[positions], self.sin[positions])


def axial_rope(positions: Tensor, head_dim: int, base: float = 10000.0) -> Rope:
    """The pairs are shared out to the axes of the positions, and turn with the number on theirs.

    positions n 1 (RoPE, arXiv:2104.09864) or n 2: half turn with the row, half with the column (LlamaGen,
    arXiv:2406.06525) -> Rope of n head_dim/2. ValueError if head_dim cannot be shared out.
    """
    axes = positions.shape[1]
    if head_dim % (2 * axes):
        raise ValueError(f"{axes}-D rotary positions need a head width divisible by {2 * axes}, got {head_dim}")
    share = head_dim // axes
    exponents = torch.arange(0, share, 2, device=positions.device, dtype=torch.float32) / share
    angles = (positions.float()[:, :, None] * base**-exponents).flatten(1)
    return Rope(angles.cos(), angles.sin())


def after_prefix(rope: Rope, length: int, rotation: str) -> Rope:
    """`rope` with `length` rows in front: "identity" leaves queries and keys alone, "zero" makes them zero vectors.

    LlamaGen's released weights expect "zero": their condition slots act through values only.
    """
    ones = 1.0 if rotation == "identity" else 0.0
    cos = torch.cat([rope.cos.new_full((length, rope.cos.shape[1]), ones), rope.cos])
    return Rope(cos, torch.cat([rope.sin.new_zeros(length, rope.sin.shape[1]), rope.sin]))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turns the pairs (x[i], x[i + d/2]) of each head: b n h d -> b n h d, in float32."""
    cos, sin = rope.cos.unsqueeze(-2), rope.sin.unsqueeze(-2)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def resize_table(table: Tensor, size: tuple[int, ...]) -> Tensor:
    """Learned vectors of the places of a grid, h w c, for a grid of another size: h' w' c.

    Bicubic with antialiasing, in float32; a constant table stays constant, and one of the right size is left alone.
    """
    if tuple(table.shape[:2]) == size:
        return table
    maps = rearrange(table.float(), "h w c -> 1 c h w")
    return rearrange(F.interpolate(maps, size, mode="bicubic", antialias=True), "1 c h w -> h w c").to(table.dtype)


def waves_2d(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Fixed vectors of the places of a grid: h w c, float32 (MoCo v3, arXiv:2104.02057).

    Sines and cosines of the row, then of the column, with c / 4 frequencies from 1 down to nearly 1 / 10000.
    ValueError if c is not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"2-D waves need a number of channels divisible by 4, got {channels}")
    frequencies = 10000.0 ** -(torch.arange(channels // 4, device=device, dtype=torch.float32) * 4 / channels)
    rows = (torch.arange(height, device=device)[:, None] * frequencies)[:, None].expand(-1, width, -1)
    columns = (torch.arange(width, device=device)[:, None] * frequencies).expand(height, -1, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=-1)
