"""Rotary position embeddings (arXiv:2104.09864), given to attention from outside."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Cosines and sines of the rotation of each position: n d/2, or b n d/2 where rows differ; float32."""

    cos: Tensor
    sin: Tensor

    def at(self, positions: Tensor) -> Rope:
        """The rows for `positions` (any shape of integers)."""
        return Rope(self.cos[positions], self.sin[positions])


def rope_2d(positions: Tensor, head_dim: int, base: float = 10000.0) -> Rope:
    """Half of the pairs turn with the row, half with the column (LlamaGen, arXiv:2406.06525).

    positions n 2 (row, column) -> Rope of n head_dim/2. ValueError if head_dim is not divisible by 4.
    """
    if head_dim % 4:
        raise ValueError(f"2-D rotary positions need a head width divisible by 4, got {head_dim}")
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
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
