"""Keys and values of all layers, allocated once."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Fixed memory for `rows` sequences of up to `length` positions.

    Rolling back is not advancing: later columns are hidden.
    One `KVCache` serves any number of samplings; `reset` takes back what guidance rows were dropped.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.length = length
        self.memory = torch.zeros(layers, 2, rows, heads, length, head_dim, dtype=dtype, device=device)
        self.visible = torch.ones(rows, length, dtype=torch.bool, device=device)
        self.rows = rows

    def reset(self) -> None:
        self.rows = len(self.visible)
        self.visible.fill_(True)

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows only; nothing is copied."""
        self.rows = rows

    def layers(self, positions: Tensor, length: int) -> list[Layer]:
        """Views to write at `positions` (rows w) and attend over the first `length` columns."""
        return [Layer(memory[:, : self.rows], positions, length) for memory in self.memory]


class Layer:
    """One layer of a KVCache during one call."""

    def __init__(self, memory: Tensor, positions: Tensor, length: int) -> None:
        self.memory, self.length = memory, length
        self.index = positions[:, None, :, None]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores b h w d at its positions; returns b h length d."""
        keys, values = self.memory
        index = self.index.expand_as(k)
        keys.scatter_(2, index, k.to(keys.dtype))
        values.scatter_(2, index, v.to(values.dtype))
        return keys[:, :, : self.length].to(k.dtype), values[:, :, : self.length].to(v.dtype)
