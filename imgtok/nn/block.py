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


class ViTBlock(nn.Module):
    """Block of a vision transformer (arXiv:2010.11929): LayerNorms, biases, exact GELU. b n c -> b n c.

    `norm`: "before" each branch, or "after" it is added to its input (BERT, arXiv:1810.04805). `layer_scale`: what the
    channels of each branch are multiplied by when training begins (LayerScale, arXiv:2103.17239); None: branches are
    added as they are. `drop_path` as in AdaLNBlock; `dropout` of what branches add, `attention_dropout` of the
    attention weights.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_hidden: int,
        *,
        norm: Literal["before", "after"] = "before",
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm, self.drop_path = norm, drop_path
        self.attention_norm = nn.LayerNorm(width, norm_eps)
        self.attention = Attention(width, num_heads, bias=True, dropout=attention_dropout)
        self.mlp_norm = nn.LayerNorm(width, norm_eps)
        self.mlp = MLP(width, mlp_hidden, gelu="exact")
        self.dropout = nn.Dropout(dropout)
        scales = [None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale)) for _ in range(2)]
        self.attention_scale, self.mlp_scale = scales

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.norm == "after":
            x = self.attention_norm(x + self.branch(self.attention(x, mask=mask), self.attention_scale))
            return self.mlp_norm(x + self.branch(self.mlp(x), self.mlp_scale))
        x = x + self.branch(self.attention(self.attention_norm(x), mask=mask), self.attention_scale)
        return x + self.branch(self.mlp(self.mlp_norm(x)), self.mlp_scale)

    def branch(self, outcome: Tensor, scale: Tensor | None) -> Tensor:
        kept = dropped_rows(self.dropout(outcome), self.drop_path if self.training else 0.0)
        return kept if scale is None else kept * scale


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
        h = torch.addcmul(shift_a, layer_norm(x, self.norm_eps), 1 + scale_a)
        x = torch.addcmul(x, self.kept(gate_a), self.attention(h, mask=mask, cache=cache))
        h = torch.addcmul(shift_m, layer_norm(x, self.norm_eps), 1 + scale_m)
        return torch.addcmul(x, self.kept(gate_m), self.mlp(h))

    def kept(self, gate: Tensor) -> Tensor:
        """A branch is left out by shutting its gate."""
        return dropped_rows(gate, self.drop_path if self.training else 0.0)


def dropped_rows(branch: Tensor, probability: float) -> Tensor:
    """b n c: each row is zero with this probability, and otherwise larger, so that the mean stays the same."""
    if probability == 0:
        return branch
    rows = torch.empty(len(branch), 1, 1, device=branch.device).bernoulli_(1 - probability)
    return branch * (rows / (1 - probability)).to(branch.dtype)
