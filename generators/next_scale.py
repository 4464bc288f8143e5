"""Next-scale generator: all tokens of a stage at once, given the stages before (VAR, arXiv:2404.02905)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.generators.cache import KVCache
from imgtok.generators.condition import LabelConditionConfig, Prefix
from imgtok.generators.heads import ModulatedHead
from imgtok.generators.inputs import CumulativeInputs
from imgtok.nn.block import AdaLNBlock
from imgtok.nn.mask import group_causal
from imgtok.tokens import ScaleLayout


@dataclass(frozen=True, kw_only=True)
class NextScaleConfig:
    layout: ScaleLayout
    """The token maps of an image, coarse to fine."""
    codebook_size: int
    """Number of codes of the tokenizer."""
    codebook_dim: int
    """Length of its code vectors: stages see the latents so far."""
    condition: LabelConditionConfig
    width: int
    depth: int
    """Number of blocks."""
    num_heads: int
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    attention_scale: float | Literal["learned"] | None = "learned"
    """As in `Attention`; "learned" is that of all released models."""
    shared_modulation: bool = False
    """One AdaLN layer for all blocks, as in VAR-d36."""
    dropout: float = 0.0
    """On what the first block reads, in training."""
    drop_path: float = 0.0
    """Of the last block; it rises linearly from 0 at the first."""
    gate_init: float = 1e-3
    """What the weights behind the residual gates are scaled by when training begins."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, got {self.drop_path}")
        if isinstance(self.attention_scale, str) and self.attention_scale != "learned":
            raise ValueError(f'attention_scale must be "learned", a number or None, got {self.attention_scale!r}')

    def build(self) -> NextScaleGenerator:
        return NextScaleGenerator(self)


class Told(NamedTuple):
    """What the condition makes of the network, computed once for an image."""

    prefix: Prefix
    blocks: tuple[Tensor, ...]
    """b 1 6 c of each block."""
    head: Tensor
    """b 1 2 c"""
    places: Tensor
    """n c, what each token's place adds to its input; the condition has no part in it."""

    def rows(self, index: Tensor) -> Told:
        """What is told of these rows of the batch."""
        prefix = Prefix(self.prefix.embeddings[index], None)
        return Told(prefix, tuple(block[index] for block in self.blocks), self.head[index], self.places)


class NextScaleGenerator(nn.Module):
    """A transformer over the stages of a multi-scale tokenizer; the condition sets its norms (AdaLN).

    It reads latents, not tokens: `seen` is what `ResidualQuantizer.inputs` makes of tokens, and
    `ResidualQuantizer.seen` of the latents so far. Two ways to ask it: `forward` (teacher forcing, training), and
    `tell` then `score` for one stage after the other (with a KVCache, sampling); `score_first` asks several.
    """

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.config = config
        width, depth = config.width, config.depth
        self.condition = config.condition.build(width)
        self.inputs = CumulativeInputs(config.layout.group_sizes, config.codebook_dim, width)
        self.dropout = nn.Dropout(config.dropout)
        self.shared = nn.Linear(width, 6 * width) if config.shared_modulation else None
        self.blocks = nn.ModuleList(
            AdaLNBlock(
                width,
                config.num_heads,
                round(width * config.mlp_ratio),
                shared=config.shared_modulation,
                attention_scale=config.attention_scale,
                norm_eps=config.norm_eps,
                drop_path=config.drop_path * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.head = ModulatedHead(width, config.codebook_size, config.norm_eps)
        self.reset()

    @property
    def num_tokens(self) -> int:
        return self.config.layout.num_tokens

    @property
    def num_stages(self) -> int:
        return len(self.config.layout.group_sizes)

    @property
    def device(self) -> torch.device:
        return self.inputs.positions.device

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.positions.dtype

    @torch.no_grad()
    def reset(self) -> None:
        """VAR's beginning: small weights, residual branches nearly shut, a nearly uniform first law."""
        width, std = self.config.width, (1 / (3 * self.config.width)) ** 0.5
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for parameter in (self.inputs.positions, self.inputs.start):
            nn.init.trunc_normal_(parameter, std=std)
        for block in self.blocks:
            assert isinstance(block, AdaLNBlock)
            for branch in (block.attention.proj, block.mlp.fc2):
                branch.weight.div_((2 * len(self.blocks)) ** 0.5)
        for modulation in (self.shared, *(block.modulation for block in self.blocks)):
            if isinstance(modulation, nn.Linear):
                modulation.weight[: 2 * width].mul_(self.config.gate_init)
                modulation.weight[2 * width :].mul_(0.5)
        self.head.modulation.weight.mul_(0.5)
        self.head.logits.weight.mul_(0.02)

    def forward(self, seen: Tensor, condition: Tensor) -> Tensor:
        """Teacher forcing: what all stages but the first see, b n-n0 d, and labels b k -> logits b n v."""
        told = self.tell(condition)
        x = self.dropout(self.inputs(told.prefix, seen.to(self.dtype), told.places))
        mask = group_causal(self.config.layout.group_sizes, x.device)
        for block, modulation in zip(self.blocks, told.blocks, strict=True):
            x = block(x, modulation, mask)
        return self.head(x, told.head)

    def tell(self, condition: Tensor) -> Told:
        """labels b k"""
        prefix = self.condition(condition)
        vector = F.silu(prefix.embeddings[:, 0])
        for_blocks = vector if self.shared is None else self.shared(vector)
        blocks = tuple(cast(AdaLNBlock, block).modulate(for_blocks) for block in self.blocks)
        return Told(prefix, blocks, self.head.modulate(vector), self.inputs.places())

    def score(self, told: Told, stage: int, seen: Tensor | None, cache: KVCache) -> Tensor:
        """Logits b n_k v of all tokens of a stage; stages are asked in order. `seen` b n_k d, None for the first."""
        sizes = self.config.layout.group_sizes
        end = sum(sizes[: stage + 1])
        x = self.inputs.stage(told.prefix, stage, None if seen is None else seen.to(self.dtype), told.places)
        layers = cache.stretch(end - sizes[stage], end)
        for block, modulation, layer in zip(self.blocks, told.blocks, layers, strict=True):
            x = block(x, modulation, cache=layer)
        return self.head(x, told.head)

    def score_first(self, told: Told, seen: Tensor, cache: KVCache) -> Tensor:
        """`score` of the first stages in one call: logits b n v. `seen` b n-n0 d: what each but the very first sees."""
        sizes = self.config.layout.group_sizes
        end = sizes[0] + seen.shape[1]
        x = self.inputs(told.prefix, seen.to(self.dtype), told.places[:end])
        mask = group_causal(sizes, x.device)[:end, :end]
        for block, modulation, layer in zip(self.blocks, told.blocks, cache.stretch(0, end), strict=True):
            x = block(x, modulation, mask, layer)
        return self.head(x, told.head)

    def new_cache(self, rows: int) -> KVCache:
        """Memory for `rows` images (guidance counts twice), of the parameters' type."""
        config = self.config
        return KVCache(
            layers=config.depth,
            rows=rows,
            heads=config.num_heads,
            length=self.num_tokens,
            head_dim=config.width // config.num_heads,
            width=config.width,
            dtype=self.dtype,
            device=self.device,
        )
