"""Generator: order + inputs + blocks + head. It gives the law of the next tokens; it draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgtok.generators.cache import KVCache
from imgtok.generators.condition import Condition, LabelConditionConfig, TextConditionConfig
from imgtok.generators.heads import CategoricalHead
from imgtok.generators.inputs import TokenInputs
from imgtok.generators.order import RasterOrder
from imgtok.nn.block import Block
from imgtok.nn.mask import cached, padded_causal
from imgtok.nn.mlp import init_normal, swiglu_hidden
from imgtok.nn.position import Rope, after_prefix, rope_2d
from imgtok.tokens import GridLayout


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    layout: GridLayout
    """How the tokens of an image lie over it."""
    codebook_size: int
    """Number of codes of the tokenizer."""
    condition: LabelConditionConfig | TextConditionConfig
    order: RasterOrder = field(default_factory=RasterOrder)
    """In which order tokens are predicted."""
    width: int
    depth: int
    """Number of blocks."""
    num_heads: int
    num_kv_heads: int | None = None
    """Heads of keys and values, if fewer than `num_heads`."""
    mlp_hidden: int | None = None
    """Width inside the SwiGLU; None: Llama's rule."""
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    prefix_rotation: Literal["zero", "identity"] = "identity"
    """Rotation of the condition slots: "zero" is what LlamaGen's released weights expect."""
    embedding_std: float = 0.02
    """Spread of the embeddings when training begins. LlamaGen: 0.02; small models learn much faster with about 0.5."""
    dropout: float = 0.1
    """On the input embeddings, after attention and after the SwiGLU."""

    def build(self) -> Generator:
        return Generator(self)


class Generator(nn.Module):
    """A decoder-only transformer over the tokens of an image, as in LlamaGen (arXiv:2406.06525).

    Conditions are what `config.condition` describes: labels b k, or TextFeatures. Three ways to ask it:
    `forward` (teacher forcing, training), and `prefill` then `score` (with a KVCache, sampling).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.mlp_hidden or swiglu_hidden(config.width)
        self.condition: Condition = config.condition.build(config.width)
        self.inputs = TokenInputs(config.codebook_size, config.width, config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, hidden, config.num_kv_heads, config.norm_eps, config.dropout)
            for _ in range(config.depth)
        )
        self.head = CategoricalHead(config.width, config.codebook_size, config.norm_eps)
        self.ropes: dict[torch.device, Rope] = {}
        self.apply(partial(init_normal, embedding_std=config.embedding_std))
        self.head.reset()

    @property
    def num_tokens(self) -> int:
        return self.config.layout.num_tokens

    @property
    def num_slots(self) -> int:
        """Condition slots in front of the first token."""
        return self.condition.num_slots

    def forward(self, tokens: Tensor, condition: Any) -> Tensor:
        """Teacher forcing: tokens b n and condition -> logits b n v; row k is the law of token k given those before."""
        prefix = self.condition(condition)
        x = self.inputs(prefix, tokens)
        rope = self.rope(x.device)
        rope = Rope(rope.cos[: x.shape[1]], rope.sin[: x.shape[1]])
        mask = None if prefix.visible is None else padded_causal(prefix.visible, x.shape[1])
        for block in self.blocks:
            x = block(x, rope, mask, causal=mask is None)
        return self.head(x[:, self.num_slots - 1 :])

    def prefill(self, condition: Any, cache: KVCache) -> Tensor:
        """Reads the condition into the cache: logits of the first token, b v."""
        prefix = self.condition(condition)
        x, slots = prefix.embeddings, self.num_slots
        positions = torch.arange(slots, device=x.device).expand(len(x), -1)
        if prefix.visible is not None:
            cache.visible[: len(x), :slots] = prefix.visible
        return self.run(x, positions, cache, slots)[:, -1]

    def score(self, tokens: Tensor, start: Tensor, cache: KVCache, length: int) -> Tensor:
        """Reads tokens b w that stand at start, start + 1, … (b): logits b w v of the tokens after each of them.

        `length`: how many columns of the cache to look at, at least `num_slots + start + w`; few different values mean
        few different shapes. Scoring another token at an old position overwrites it: so a draft is rolled back.
        """
        places = start[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        return self.run(self.inputs.embed(tokens), self.num_slots + places, cache, length)

    def run(self, x: Tensor, positions: Tensor, cache: KVCache, length: int) -> Tensor:
        """x b w c at `positions` (b w) through all blocks and the head."""
        rope = self.rope(x.device).at(positions)
        mask = cached(positions, cache.visible[: len(x), :length])
        for block, layer in zip(self.blocks, cache.layers(positions, length), strict=True):
            x = block(x, rope, mask, cache=layer)
        return self.head(x)

    def new_cache(self, rows: int, extra: int = 0) -> KVCache:
        """Memory for `rows` images (guidance counts twice) like the parameters; `extra`: spare columns."""
        config, weight = self.config, self.head.logits.weight
        return KVCache(
            layers=len(self.blocks),
            rows=rows,
            heads=config.num_kv_heads or config.num_heads,
            length=self.num_slots + self.num_tokens + extra,
            head_dim=config.width // config.num_heads,
            dtype=weight.dtype,
            device=weight.device,
        )

    def rope(self, device: torch.device) -> Rope:
        """Rotations of all slots and tokens, in the order of prediction; made once, as the copy to `device` waits."""
        if device not in self.ropes:
            config = self.config
            with torch.inference_mode(False):  # else training after sampling could not use them
                positions = config.order.positions(config.layout).to(device)
                rope = rope_2d(positions, config.width // config.num_heads, config.rope_base)
                self.ropes[device] = after_prefix(rope, self.num_slots, config.prefix_rotation)
        return self.ropes[device]
