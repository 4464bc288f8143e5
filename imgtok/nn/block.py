"""The transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from imgtok.nn.attention import Attention, LayerCache
from imgtok.nn.mlp import SwiGLU
from imgtok.nn.norm import RMSNorm
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
