"""Transformer blocks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from imgtok.nn.attention import Attention, LayerCache
from imgtok.nn.mlp import MLP, SwiGLU
from imgtok.nn.norm import RMSNorm, layer_norm
from imgtok.nn.position import Rope


class Block(nn.Module):
    """Pre-norm block: attention, then SwiGLU, each added to its input (after dropout). b n c -> b n c."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_hidden: int,
        num_kv_heads: int | None = None,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, norm_eps)
        self.attention = Attention(width, num_heads, num_kv_heads)
        self.mlp_norm = RMSNorm(width, norm_eps)
        self.mlp = SwiGLU(width, mlp_hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None = None, causal: bool = False, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rope, mask, causal, cache))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class AdaLNBlock(nn.Module):
    """Pre-norm block whose norms and residuals are set by the condition (AdaLN, arXiv:2212.09748). b n c -> b n c.

    x += gate_a attention(norm(x) (1 + scale_a) + shift_a), then the same with the MLP. The six vectors come from the
    condition by a linear layer of the block, or of all blocks together (`shared`), to which each adds its own.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_hidden: int,
        *,
        shared: bool = False,
        attention_scale: float | Literal["learned"] | None = None,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        """`drop_path`: probability of leaving a branch out for a row, in training (arXiv:1603.09382)."""
        super().__init__()
        self.norm_eps, self.drop_path = norm_eps, drop_path
        self.attention = Attention(width, num_heads, bias=True, scale=attention_scale)
        self.mlp = MLP(width, mlp_hidden)
        self.modulation: nn.Parameter | nn.Linear = (
            nn.Parameter(torch.randn(6, width) / width**0.5) if shared else nn.Linear(width, 6 * width)
        )

    def modulate(self, condition: Tensor) -> Tensor:
        """What the condition makes of this block, once for all its positions: b 1 6 c.

        `condition`: b c after its SiLU, or of a shared layer its outputs b 6c.
        """
        if isinstance(self.modulation, nn.Linear):
            return self.modulation(condition).unflatten(-1, (1, 6, -1))
        return condition.unflatten(-1, (1, 6, -1)) + self.modulation

    def forward(
        self, x: Tensor, modulation: Tensor, mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        gate_a, gate_m, scale_a, scale_m, shift_a, shift_m = modulation.unbind(-2)
        h = layer_norm(x, self.norm_eps) * (1 + scale_a) + shift_a
        x = x + self.kept(gate_a * self.attention(h, mask=mask, cache=cache))
        h = layer_norm(x, self.norm_eps) * (1 + scale_m) + shift_m
        return x + self.kept(gate_m * self.mlp(h))

    def kept(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        rows = torch.empty(len(branch), 1, 1, device=branch.device).bernoulli_(1 - self.drop_path)
        return branch * (rows / (1 - self.drop_path)).to(branch.dtype)
