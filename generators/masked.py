"""Masked generator: the law of every masked token, given those that are known (MaskGIT, arXiv:2202.04200)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from imgtok.generators.condition import LabelConditionConfig
from imgtok.generators.heads import LinearHead
from imgtok.generators.inputs import MaskedInputs
from imgtok.nn.block import ViTBlock
from imgtok.nn.mlp import init_normal
from imgtok.tokens import GridLayout, SequenceLayout


@dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    layout: GridLayout | SequenceLayout
    """How the tokens of an image lie: on a grid or in a sequence."""
    codebook_size: int
    """Number of codes of the tokenizer."""
    condition: LabelConditionConfig
    width: int
    depth: int
    """Number of blocks."""
    num_heads: int
    mlp_ratio: float = 4.0
    norm: Literal["before", "after"] = "before"
    """LayerNorms before each branch and before the head, or after each branch and after the inputs (BERT)."""
    norm_eps: float = 1e-5
    skips: bool = False
    """The second half of the blocks also sees what the first half gave, in reverse (U-ViT, arXiv:2209.12152)."""
    dropout: float = 0.0
    """On what the first block reads and what branches add, in training."""
    attention_dropout: float = 0.0
    """Of the attention weights, in training."""

    def build(self) -> MaskedGenerator:
        return MaskedGenerator(self)


class MaskedGenerator(nn.Module):
    """A transformer in which every token of an image sees all others; unknown ones are the mask token.

    One way to ask it, for training and for sampling: `forward`. It is told labels, in one slot in front.
    """

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        self.config = config
        width, eps, is_after = config.width, config.norm_eps, config.norm == "after"
        self.condition = config.condition.build(width)
        places = self.condition.num_slots + config.layout.num_tokens
        self.inputs = MaskedInputs(config.codebook_size, places, width, eps if is_after else None, config.dropout)
        self.blocks = nn.ModuleList(
            ViTBlock(
                width,
                config.num_heads,
                round(width * config.mlp_ratio),
                norm=config.norm,
                norm_eps=eps,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
            )
            for _ in range(config.depth)
        )
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(config.depth // 2 * config.skips))
        self.head = LinearHead(width, config.codebook_size, None if is_after else eps)
        self.apply(partial(init_normal, std=0.02))
        nn.init.normal_(self.inputs.positions, std=0.02)

    @property
    def num_tokens(self) -> int:
        return self.config.layout.num_tokens

    @property
    def mask_token(self) -> int:
        """What stands in the place of an unknown token: the number after the last code."""
        return self.config.codebook_size

    @property
    def device(self) -> torch.device:
        return self.inputs.positions.device

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs.positions.dtype

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens b n, some of them `mask_token`, and labels b k -> logits b n v of what each of them is."""
        x = self.inputs(self.condition(condition), tokens)
        kept, late = list[Tensor](), len(self.blocks) - len(self.skips)
        for i, block in enumerate(self.blocks):
            if i >= late:
                x = self.skips[i - late](torch.cat([x, kept.pop()], dim=-1))
            x = block(x)
            if i < len(self.skips):
                kept.append(x)
        return self.head(x[:, self.condition.num_slots :])
