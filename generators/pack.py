"""A generator laid out for fast drawing on a CPU: the same laws up to rounding, from fewer and larger operations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.generators.generator import Generator
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.nn.attention import LayerCache
from imgtok.nn.block import AdaLNBlock, Block
from imgtok.nn.mlp import MLP
from imgtok.nn.norm import RMSNorm
from imgtok.nn.packed import PackedLinear, can_pack, packed_linear, packed_weight
from imgtok.nn.position import Rope

G = TypeVar("G", bound=nn.Module)


class PackedBlock(nn.Module):
    """A `Block` for few rows on a CPU, where each small operation costs about as much as the next.

    What follows or precedes a product is done within it: the sum with its input, the gate's SiLU, the product with the
    gate. Attention is computed in float32.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        gate, up = mlp.gate_up.weight.chunk(2)
        self.heads, self.kv_heads, self.head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
        self.attention_norm, self.mlp_norm = block.attention_norm, block.mlp_norm
        self.qkv, self.proj = packed_linear(attention.qkv), packed_linear(attention.proj)
        self.gate, self.up, self.down = packed_weight(gate), packed_weight(up), packed_linear(mlp.down)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None = None, causal: bool = False, cache: LayerCache | None = None
    ) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(normalized(self.attention_norm, x)).view(b, n, -1, self.head_dim)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q, k = turned(qk, rope).transpose(1, 2).split([self.heads, self.kv_heads], dim=1)
        v = v.transpose(1, 2)
        k, v = (k, v.float()) if cache is None else cache.append(k, v)
        grouped = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        x = self.proj.plus(out.transpose(1, 2).to(x.dtype).reshape(b, n, -1), x)
        h = normalized(self.mlp_norm, x)
        return self.down.plus(self.up.times(h, self.gate.silu(h)), x)


class PackedMLP(nn.Module):
    """An `MLP` whose GELU is done within the product."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.fc1, self.fc2 = packed_linear(mlp.fc1), packed_linear(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1.gelu(x))


def normalized(norm: RMSNorm, x: Tensor) -> Tensor:
    """What the norm gives, in fewer operations."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(length.square_() * (1 / x.shape[-1]) + norm.eps)
    return (x * scale).to(x.dtype) * norm.weight


def turned(x: Tensor, rope: Rope) -> Tensor:
    """`rotate` in fewer operations, float32: b n h d -> b n h d."""
    half = x.shape[-1] // 2
    x = x.float()
    cos = torch.cat([rope.cos, rope.cos], dim=-1).unsqueeze(-2)
    sin = torch.cat([-rope.sin, rope.sin], dim=-1).unsqueeze(-2)
    return torch.addcmul(x * cos, x.roll(half, -1), sin)


def is_packed(generator: nn.Module) -> bool:
    return any(isinstance(module, PackedLinear) for module in generator.modules())


def packed(generator: G) -> G:
    """What draws faster on this machine: of a generator on a CPU a copy with packed weights, else itself.

    The copy cannot be trained, compiled or saved; its embeddings are shared.
    """
    if not isinstance(generator, (Generator, NextScaleGenerator)) or not can_pack(next(generator.parameters())):
        return generator
    instead: dict[int, Any] = {id(p): p for p in generator.parameters()}
    head = generator.head.logits
    if isinstance(head, nn.Linear):
        instead[id(head)] = packed_linear(head)
    for block in generator.blocks:
        assert isinstance(block, (Block, AdaLNBlock))
        if isinstance(block.attention.qkv, nn.Linear):
            instead |= packed_parts(block)
    return deepcopy(generator, instead)


def packed_parts(block: Block | AdaLNBlock) -> dict[int, nn.Module]:
    """What takes the place of the block, or the places of its parts."""
    if isinstance(block, Block):
        return {id(block): PackedBlock(block)}
    qkv, proj, mlp = block.attention.qkv, block.attention.proj, block.mlp
    return {id(qkv): packed_linear(qkv), id(proj): packed_linear(proj), id(mlp): PackedMLP(mlp)}
