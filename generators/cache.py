"""Keys and values of all layers, allocated once."""

from __future__ import annotations

import torch
from torch import Tensor


def fastest_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of keys and values for parameters of `dtype`.

    That of the parameters, but at least float32 on a CPU without units for bfloat16 matrices (AMX): its fused
    attention is slow in half precision.
    """
    if device.type != "cpu" or (dtype == torch.bfloat16 and has_matrix_units()):
        return dtype
    return torch.promote_types(dtype, torch.float32)


def has_matrix_units() -> bool:
    """Whether this processor has AMX; False where torch cannot tell."""
    tell = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return tell is not None and bool(tell())


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
        shape = (rows, heads, length, head_dim)
        # Tensors of their own: compiled code would copy one common piece of memory to write a part of it.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
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

    def copy_row(self, row: int, *, to: int, length: int) -> None:
        """Goes on with `to` rows, those after `row` beginning with the same first `length` columns."""
        for memory in (*self.keys, *self.values):
            memory[row + 1 : to, :, :length] = memory[row, :, :length]
        self.rows = to

    def layers(self, columns: Tensor, length: int) -> list[Layer]:
        """Views to write at `columns` (rows w) and attend over the first `length` columns."""
        index = (torch.arange(len(columns), device=columns.device)[:, None], columns)
        pairs = zip(self.keys, self.values, strict=True)
        return [Layer(keys[: self.rows], values[: self.rows], index, length) for keys, values in pairs]

    def stretch(self, start: int, end: int) -> list[Stretch]:
        """The same where all rows write at columns start to end and attend over all before the end."""
        pairs = zip(self.keys, self.values, strict=True)
        return [Stretch(keys[: self.rows, :, :end], values[: self.rows, :, :end], start) for keys, values in pairs]

    def move(self, columns: Tensor, to: Tensor) -> None:
        """Copies what stands at `columns` (rows m) to the columns `to` (rows m), in all layers."""
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        for memory in (*self.keys, *self.values):
            places = memory.transpose(1, 2)
            places.index_put_((rows, to), places[rows, columns])


class Layer:
    """One layer of a KVCache during one call."""

    def __init__(self, keys: Tensor, values: Tensor, index: tuple[Tensor, Tensor], length: int) -> None:
        """`index`: rows and columns to write."""
        self.keys, self.values, self.index, self.length = keys, values, index, length

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores b h w d at its columns; returns b h length d, in the cache's type."""
        for part, new in ((self.keys, k), (self.values, v)):
            part.transpose(1, 2).index_put_(self.index, new.transpose(1, 2).to(part.dtype))
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Stretch:
    """One layer of a KVCache up to where a call ends that all rows write at the same columns."""

    def __init__(self, keys: Tensor, values: Tensor, start: int) -> None:
        """`start`: first column to write."""
        self.keys, self.values, self.start = keys, values, start

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores b h w d; returns all there is, in the cache's type."""
        self.keys[:, :, self.start :].copy_(k)
        self.values[:, :, self.start :].copy_(v)
        return self.keys, self.values
