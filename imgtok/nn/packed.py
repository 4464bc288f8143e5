"""Linear layers laid out for the processor that multiplies by them."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 2**19  # float32 weights: a product of so few takes less time than oneDNN needs to begin


class PackedLinear(nn.Module):
    """... i -> ... o on a CPU, its float32 or bfloat16 weights in the order that a kind of product reads them fastest.

    For drawing only: it has no parameters, so there is nothing to train or save.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight o i, bias o."""
        super().__init__()
        self.shape = tuple(weight.shape)
        self.bias = None if bias is None else bias.detach()
        self.weights = self.laid_out(weight.detach())

    def laid_out(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def silu(self, x: Tensor) -> Tensor:
        """silu(W x)"""
        return F.silu(self(x), inplace=True)

    def gelu(self, x: Tensor) -> Tensor:
        """gelu(W x), by its tanh formula"""
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """W x + other"""
        return cast(Tensor, self(x)).add_(other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """W x * other"""
        return cast(Tensor, self(x)).mul_(other)

    def extra_repr(self) -> str:
        return f"{self.shape[1]}, {self.shape[0]}"


class SmallLinear(PackedLinear):
    """Few float32 weights, transposed: the plain product reads them so."""

    def laid_out(self, weight: Tensor) -> Tensor:
        return weight.T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = rows @ self.weights if self.bias is None else torch.addmm(self.bias, rows, self.weights)
        return out.view(*x.shape[:-1], -1)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        if self.bias is not None:
            return super().plus(x, other)
        rows, added = x.reshape(-1, x.shape[-1]), other.reshape(-1, other.shape[-1])
        return torch.addmm(added, rows, self.weights).view(other.shape)


class BlockedLinear(PackedLinear):
    """Weights in blocks as oneDNN reads them, which does what follows a product within it.

    `nn.Linear` puts them into that order at every call, which for few rows takes longer than the product.
    """

    def laid_out(self, weight: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()))

    def forward(self, x: Tensor) -> Tensor:
        return self.then("none", x)

    def silu(self, x: Tensor) -> Tensor:
        return self.then("swish", x)

    def gelu(self, x: Tensor) -> Tensor:
        return self.then("gelu", x, "tanh")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self.with_other("add", x, other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self.with_other("mul", x, other)

    def then(self, what: str, x: Tensor, formula: str = "") -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.weights, self.bias, what, [], formula))

    def with_other(self, what: str, x: Tensor, other: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weights, self.bias, what))


def packed_linear(linear: nn.Linear) -> PackedLinear:
    return packed_weight(linear.weight, linear.bias)


def packed_weight(weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
    """weight o i, bias o: whatever is faster for so many."""
    small = weight.dtype == torch.float32 and weight.numel() <= SMALL
    return SmallLinear(weight, bias) if small else BlockedLinear(weight, bias)


def can_pack(weight: Tensor) -> bool:
    """Whether this is a weight, and this a machine, that `PackedLinear` is for."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    half = weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return half or weight.dtype == torch.float32
