"""Linear layers laid out for the processor that multiplies by them."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 2**19  # float32 weights: a product of so few takes less time than oneDNN needs to begin


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


class SmallLinear(PackedLinear):
    """The same for few float32 weights: transposed once, as the processor's plain product reads them fastest."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.shape = tuple(weight.shape)
        self.bias = None if bias is None else bias.detach()
        self.transposed = weight.detach().T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = rows @ self.transposed if self.bias is None else torch.addmm(self.bias, rows, self.transposed)
        return out.view(*x.shape[:-1], -1)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(self(x), inplace=True)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(self(x), approximate="tanh")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        if self.bias is not None:
            return cast(Tensor, self(x)).add_(other)
        rows, added = x.reshape(-1, x.shape[-1]), other.reshape(-1, other.shape[-1])
        return torch.addmm(added, rows, self.transposed).view(other.shape)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return cast(Tensor, self(x)).mul_(other)


def packed_linear(weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
    """weight o i, bias o: whatever is faster for so many."""
    small = weight.dtype == torch.float32 and weight.numel() <= SMALL
    return SmallLinear(weight, bias) if small else PackedLinear(weight, bias)


def can_pack(weight: Tensor) -> bool:
    """Whether this is a weight, and this a machine, that `PackedLinear` is for."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    half = weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return half or weight.dtype == torch.float32
