"""Linear layers laid out for the processor that multiplies by them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """... i -> ... o on a CPU, its float32 or bfloat16 weights in blocks as oneDNN reads them.

    `nn.Linear` puts them into that order at every call, which for few rows takes longer than the product. For drawing
    only: it has no parameters, so there is nothing to train or save.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight o i, bias o."""
        super().__init__()
        self.shape = tuple(weight.shape)
        self.bias = None if bias is None else bias.detach()
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.then("none", x)

    def silu(self, x: Tensor) -> Tensor:
        """silu(W x)"""
        return self.then("swish", x)

    def gelu(self, x: Tensor) -> Tensor:
        """gelu(W x), by its tanh formula"""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, "gelu", [], "tanh"))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """W x + other"""
        return self.with_other("add", x, other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """W x * other"""
        return self.with_other("mul", x, other)

    def then(self, what: str, x: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, what, [], ""))

    def with_other(self, what: str, x: Tensor, other: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, other, self.blocks, self.bias, what))

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}"


def packed_linear(linear: nn.Linear) -> PackedLinear:
    return PackedLinear(linear.weight, linear.bias)


def can_pack(weight: Tensor) -> bool:
    """Whether this is a weight, and this a machine, that `PackedLinear` is for."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    half = weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return half or weight.dtype == torch.float32
