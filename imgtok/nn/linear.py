"""Linear layers whose weights are kept in fewer bits."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

FEW_ROWS = 8  # up to so many, PyTorch's CPU kernel for bfloat16 rows and int8 weights is faster than a product
STRIDE = 32  # the kernel reads beyond the end of rows whose length is no multiple of its vectors'


class Int8Linear(nn.Module):
    """... i -> ... o without bias; row r of the weights is levels[r] * scale[r], each level one of -127 ... 127.

    A quarter of the memory of float32. It gives no gradient to its weights.
    """

    levels: Tensor
    """o i, int8"""
    scale: Tensor
    """o, like the inputs"""

    def __init__(self, levels: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        if is_small(x):
            return few_rows(x, self.levels, self.scale)
        return x @ self.levels.to(x.dtype).T * self.scale

    def extra_repr(self) -> str:
        out, into = self.levels.shape
        return f"{into}, {out}"


def is_small(x: Tensor) -> bool:
    """Whether these are rows for `few_rows`."""
    few = x.shape[:-1].numel() <= FEW_ROWS and x.shape[-1] % STRIDE == 0
    return few and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def few_rows(x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    """The same product by a kernel that reads the weights as they are stored."""
    rows = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, x.shape[-1]).contiguous(), levels, scale)
    return cast(Tensor, rows).reshape(*x.shape[:-1], len(levels))


@torch.no_grad()
def int8(linear: nn.Linear, bits: int = 8) -> Int8Linear:
    """Each row of weights rounded to 2^bits - 1 levels, equally far apart up to its largest weight.

    Raises:
        ValueError: the layer has a bias, or bits outside [2, 8].
    """
    if linear.bias is not None:
        raise ValueError(f"{linear} has a bias, which Int8Linear has not; build the layer with bias=False")
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be between 2 and 8, got {bits}")
    most = 2 ** (bits - 1) - 1
    weight = linear.weight.float()
    scale = (weight.abs().amax(1) / most).to(linear.weight.dtype)
    steps = scale.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]  # a row of zeros stays one
    return Int8Linear((weight / steps).round().clamp(-most, most).to(torch.int8), scale)
