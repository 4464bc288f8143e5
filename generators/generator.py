"""Generator: order + inputs + blocks + head. It gives the law of the next tokens; it draws nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgtok.generators.cache import KVCache, fastest_type
from imgtok.generators.condition import Condition, LabelConditionConfig, TextConditionConfig
from imgtok.generators.heads import CategoricalHead
from imgtok.generators.inputs import TokenInputs
from imgtok.generators.order import RasterOrder
from imgtok.generators.tree import Tree
from imgtok.nn.block import Block
from imgtok.nn.mask import cached, drafted, padded_causal
from imgtok.nn.mlp import init_normal, swiglu_hidden
from imgtok.nn.position import Rope, after_prefix, axial_rope
from imgtok.tokens import GridLayout, SequenceLayout


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    layout: GridLayout | SequenceLayout
    """How the tokens of an image lie over it, or in a sequence."""
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

    def __post_init__(self) -> None:
        head_dim, axes = self.width // self.num_heads, len(self.layout.latent_shape)
        if self.width % self.num_heads == 0 and head_dim % (2 * axes):
            raise ValueError(f"{axes}-D rotary positions need a head width divisible by {2 * axes}, got {head_dim}")

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

    @property
    def device(self) -> torch.device:
        return self.inputs.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.embedding.weight.dtype

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

    def prefill(self, condition: Any, cache: KVCache) -> None:
        """Reads the condition into the cache: all its slots but the last, which is read at place -1 of `score`."""
        prefix = self.condition(condition)
        x, before = prefix.embeddings, self.num_slots - 1
        cache.root[: len(x)] = x[:, -1]
        self.rope(x.device)  # made before `score` may be compiled
        if prefix.visible is not None:
            cache.visible[: len(x), : self.num_slots] = prefix.visible
        if before:
            columns = torch.arange(before, device=x.device).expand(len(x), -1)
            self.run(x[:, :-1], columns, columns, cached(columns, cache.visible[: len(x), :before]), cache, before)

    def score(
        self,
        tokens: Tensor,
        start: Tensor,
        cache: KVCache,
        length: int,
        tree: Tree | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Reads tokens b w that stand at start, start + 1, … (b): logits b w v of the tokens after each of them.

        The token at place -1 is the condition, whatever its number here. `length`: how many columns of the cache to
        look at, at least `num_slots + start + w`; few different values mean few different shapes. With a `tree`, token
        j is node j: `start` is the root's place, and siblings share one. Scoring another token at an old place
        overwrites it: so a draft is rolled back; of a tree, `commit` keeps a path. `depth`: ask the first blocks only.
        """
        columns = self.num_slots + start[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        places = columns if tree is None else self.num_slots + start[:, None] + tree.depths
        x = torch.where(
            (columns == self.num_slots - 1)[..., None],
            cache.root[: len(tokens), None].to(self.dtype),
            self.inputs.embed(tokens),
        )
        visible = cache.visible[: len(tokens), :length]
        if tree is None:
            mask = cached(columns, visible)
        else:
            mask = drafted(columns[:, 0], columns.shape[1], visible, tree.sees)
        return self.head(self.run(x, places, columns, mask, cache, length, depth))

    def commit(self, path: Tensor, start: Tensor, cache: KVCache) -> None:
        """Of a scored tree with its root at `start` (b), keeps the nodes `path` (b m) as the tokens after the root."""
        root = self.num_slots + start[:, None]
        cache.move(root + path, root + 1 + torch.arange(path.shape[1], device=path.device))

    def run(
        self,
        x: Tensor,
        places: Tensor,
        columns: Tensor,
        mask: Tensor,
        cache: KVCache,
        length: int,
        depth: int | None = None,
    ) -> Tensor:
        """x b w c through the blocks, turned as its `places` say and kept in `columns` of the cache (both b w)."""
        rope = self.rope(x.device)
        rope = rope.at(places.clamp_max(len(rope.cos) - 1))  # drafts may run past the end
        for block, layer in zip(self.blocks[:depth], cache.layers(columns, length), strict=False):
            x = block(x, rope, mask, cache=layer)
        return x

    def new_cache(self, rows: int, extra: int = 0) -> KVCache:
        """Memory for `rows` images (guidance counts twice); `extra`: spare columns.

        Of the type that attention is fastest in.
        """
        config = self.config
        return KVCache(
            layers=len(self.blocks),
            rows=rows,
            heads=config.num_kv_heads or config.num_heads,
            length=self.num_slots + self.num_tokens + extra,
            head_dim=config.width // config.num_heads,
            width=config.width,
            dtype=fastest_type(self.dtype, self.device),
            device=self.device,
        )

    def rope(self, device: torch.device) -> Rope:
        """Rotations of all slots and tokens, in the order of prediction; made once, as the copy to `device` waits."""
        if device not in self.ropes:
            config = self.config
            with torch.inference_mode(False):  # else training after sampling could not use them
                positions = config.order.positions(config.layout).to(device)
                rope = axial_rope(positions, config.width // config.num_heads, config.rope_base)
                self.ropes[device] = after_prefix(rope, self.num_slots, config.prefix_rotation)
        return self.ropes[device]
