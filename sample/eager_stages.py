"""Next-scale sampling the straightforward way: what our own is measured beside, and compared with in tests.

It follows VAR's published loop (arXiv:2404.02905): a cache that grows by concatenation, modulation computed anew at
every stage, guidance rows from the first stage to the last, each operation by itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.backbones.cnn import CNN
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.nn.attention import Attention
from imgtok.nn.block import AdaLNBlock
from imgtok.nn.resnet import Upsample
from imgtok.quantizers.residual import ResidualQuantizer

M = TypeVar("M", bound=nn.Module)
Choose = Callable[[Tensor, int], Tensor]  # guided logits b n_k v, number of the stage's first token -> tokens b n_k
Grown = list[tuple[Tensor, Tensor] | None]  # keys and values b h l d of each block so far


@torch.no_grad()
def draw_eagerly(
    generator: NextScaleGenerator, quantizer: ResidualQuantizer, labels: Tensor, scales: list[float], choose: Choose
) -> Tensor:
    """Tokens b n for labels b k, guided at stage k by scales[k]."""
    layout, rows = generator.config.layout, len(labels)
    prefix = generator.condition(generator.condition.with_null(labels))
    condition = prefix.embeddings[:, 0]
    latents, start = quantizer.start(rows, layout), 0
    grown: Grown = [None] * len(generator.blocks)
    tokens: list[Tensor] = []
    for stage, (height, width) in enumerate(layout.sizes):
        seen = None
        if stage > 0:
            seen = quantizer.seen(latents, stage, layout).flatten(1, 2).repeat(2, 1, 1).to(generator.dtype)
        x = generator.inputs.stage(prefix, stage, seen, generator.inputs.places())
        for i, block in enumerate(generator.blocks):
            x, grown[i] = eager_block(cast(AdaLNBlock, block), x, modulation(generator, i, condition), grown[i])
        scale, shift = generator.head.modulation(F.silu(condition)).unflatten(-1, (1, 2, -1)).unbind(-2)
        logits = generator.head.logits(norm(x, generator.config.norm_eps).mul(scale.add(1)).add(shift)).float()
        conditional, null = logits.chunk(2)
        guided = scales[stage] * conditional + (1 - scales[stage]) * null
        tokens.append(choose(guided, start))
        latents = quantizer.accumulate(latents, tokens[-1].unflatten(1, (height, width)), stage, layout)
        start += height * width
    return torch.cat(tokens, dim=1)


def modulation(generator: NextScaleGenerator, block: int, condition: Tensor) -> Tensor:
    """b 1 6 c"""
    vector = F.silu(condition)
    if generator.shared is not None:
        vector = generator.shared(vector)
    return cast(AdaLNBlock, generator.blocks[block]).modulate(vector)


def eager_block(
    block: AdaLNBlock, x: Tensor, modulation: Tensor, grown: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    gate_a, gate_m, scale_a, scale_m, shift_a, shift_m = modulation.unbind(-2)
    h, grown = eager_attention(block.attention, norm(x, block.norm_eps).mul(scale_a.add(1)).add(shift_a), grown)
    x = x + h.mul(gate_a)
    return x + block.mlp(norm(x, block.norm_eps).mul(scale_m.add(1)).add(shift_m)).mul(gate_m), grown


def eager_attention(
    attention: Attention, x: Tensor, grown: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    qkv = rearrange(attention.qkv(x), "b n (three h d) -> three b h n d", three=3, h=attention.num_heads)
    q, k, v = qkv.unbind(0)
    scale = attention.scale
    if attention.log_scale is not None:
        q = F.normalize(q, dim=-1) * attention.log_scale[:, None, None].clamp_max(math.log(100)).exp()
        k = F.normalize(k, dim=-1)
    if grown is not None:
        k, v = torch.cat([grown[0], k], dim=2), torch.cat([grown[1], v], dim=2)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return attention.proj(rearrange(out, "b h n d -> b n (h d)")), (k, v)


def norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def decoding_plainly(model: M) -> M:
    """A tokenizer that decodes all pictures at once, maps enlarged by nearest neighbour before they are convolved.

    Changes it.
    """
    for module in model.modules():
        if isinstance(module, CNN):
            module.most_pixels = sys.maxsize
        for name, child in module.named_children():
            if isinstance(child, Upsample) and child.kind != "shuffle":
                setattr(module, name, nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), child.conv))
    return model
