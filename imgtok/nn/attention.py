"""Multi-head attention; what differs between systems (rope, mask, cache) comes in from outside."""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.nn.norm import layer_norm
from imgtok.nn.position import Rope, rotate


class LayerCache(Protocol):
    """Keys and values of one layer that earlier calls left behind."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores b h w d and returns all keys and values to attend to: b h l d."""
        ...


class Attention(nn.Module):
    """b n c -> b n c. With `num_kv_heads` below `num_heads`, groups of queries share keys (arXiv:2305.13245).

    `scale`: what products of queries and keys are multiplied by; None: 1 / sqrt(head width). `learned`: queries and
    keys become unit vectors, and each head learns its scale (arXiv:2404.02905, as in arXiv:2111.09883 eq. 2).
    `dropout`: of the attention weights, in training. `qk_norm`: queries and keys are layer-normed in each head, without
    weights (arXiv:2302.05442).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool = False,
        scale: float | Literal["learned"] | None = None,
        dropout: float = 0.0,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads or num_heads % (num_kv_heads or num_heads):
            raise ValueError(
                f"width {width}, num_heads {num_heads}, num_kv_heads {num_kv_heads}: each must divide the former"
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        self.head_dim, self.dropout, self.qk_norm = width // num_heads, dropout, qk_norm
        self.qkv = nn.Linear(width, (num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(4.0))) if scale == "learned" else None
        self.scale = None if scale is None else 1.0 if scale == "learned" else float(scale)

    def forward(
        self,
        x: Tensor,
        rope: Rope | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv = rearrange(self.qkv(x), "b n (h d) -> b n h d", d=self.head_dim)
        qk, v = qkv.split([heads + kv_heads, kv_heads], dim=2)
        if self.qk_norm:
            qk = layer_norm(qk, 1e-5)
        if self.log_scale is not None:
            qk = self.unit(qk)
        if rope is not None:
            qk = rotate(qk, rope)
        q, k = qk.transpose(1, 2).split([heads, kv_heads], dim=1)
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)
        out = attend(q, k, v, mask, causal, self.scale, self.dropout if self.training else 0.0)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))

    def unit(self, qk: Tensor) -> Tensor:
        """b n h d: unit vectors, the queries times their head's scale, at most 100."""
        assert self.log_scale is not None
        scale = self.log_scale.float().clamp_max(math.log(100)).exp()
        scales = torch.cat([scale, scale.new_ones(self.num_kv_heads)])
        return (F.normalize(qk.float(), dim=-1) * scales[:, None]).to(qk.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """q b h n d over k, v b g l d, where h / g heads share keys: b h n d.

    `mask` b 1 n l, True: may be seen; or numbers that are added to the scaled products.
    Computed in the type of k and v, which a cache may keep more precisely than the rest.
    """
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q.to(k.dtype), k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return out.to(q.dtype)
