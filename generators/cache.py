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
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.length = length
        self.memory = torch.zeros(layers, 2, rows, heads, length, head_dim, dtype=dtype, device=device)
        self.visible = torch.ones(rows, length, dtype=torch.bool, device=device)
        self.root = torch.zeros(rows, width, dtype=dtype, device=device)
        """Embedding of the last condition slot, which is read with the first token's law."""
        self.rows = rows

    def reset(self) -> None:
        self.rows = len(self.visible)
        self.visible.fill_(True)

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows only; nothing is copied."""
        self.rows = rows

    def layers(self, columns: Tensor, length: int) -> list[Layer]:
        """Views to write at `columns` (rows w) and attend over the first `length` columns."""
        return [Layer(memory[:, : self.rows], columns, length) for memory in self.memory]

    def move(self, columns: Tensor, to: Tensor) -> None:
        """Copies what stands at `columns` (rows m) to the columns `to` (rows m), in all layers."""
        memory = self.memory[:, :, : self.rows]
        shape = (*memory.shape[:2], -1, memory.shape[3], -1, memory.shape[5])
        source, target = (where[:, None, :, None].expand(shape) for where in (columns, to))
        memory.scatter_(4, target, memory.gather(4, source))


class Layer:
    """One layer of a KVCache during one call."""

    def __init__(self, memory: Tensor, columns: Tensor, length: int) -> None:
        self.memory, self.length = memory, length
        self.index = (torch.arange(len(columns), device=columns.device)[:, None], columns)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores b h w d at its columns; returns b h length d, in the cache's type."""
        for part, new in zip(self.memory, (k, v), strict=True):
            part.transpose(1, 2).index_put_(self.index, new.transpose(1, 2).to(part.dtype))
        keys, values = self.memory
        return keys[:, :, : self.length], values[:, :, : self.length]
