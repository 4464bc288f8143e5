"""What the training of a generator is, beside what all training runs have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from imgtok.generators.condition import Label, LabelConditionConfig, length_label
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.masked import MaskedConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.nn.nested import NestedDropout
from imgtok.tokenizer import TokenizerConfig
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout
from imgtok.train.config import LoopConfig, OptimizerConfig, TokenDataConfig


@dataclass(frozen=True, kw_only=True)
class GeneratorSizes:
    """What all generators have that their data do not decide."""

    width: int
    depth: int
    num_heads: int
    drop_condition: float = 0.1
    """Probability of the null condition, for guidance."""
    drop_labels: dict[str, float] = field(default_factory=dict)
    """Probability of dropping a label alone, by its name."""

    def condition(self, labels: tuple[Label, ...]) -> LabelConditionConfig:
        """ValueError if `drop_labels` names labels that the data do not have."""
        check_drops(self.drop_labels, labels)
        return LabelConditionConfig(labels=labels, drop=self.drop_condition)


@dataclass(frozen=True, kw_only=True)
class TransformerSizes(GeneratorSizes):
    """A generator without what its data decide: grid, codebook and labels."""

    num_kv_heads: int | None = None
    mlp_hidden: int | None = None
    embedding_std: float = 0.02
    """Spread of the embeddings when training begins."""
    dropout: float = 0.1
    prefix: NestedDropout | None = None
    """Learn from the first tokens of each image alone, of a number that is drawn by this; None: from all. For
    tokenizers whose first tokens matter most."""
    tell_length: bool = False
    """Condition on how many tokens there will be, by a label "length"."""
    drop_length: float = 0.0
    """Probability of dropping it alone."""

    def __post_init__(self) -> None:
        if self.tell_length and self.prefix is None:
            raise ValueError("tell_length tells how many tokens are learnt from: give a prefix, or leave it out")

    def config(self, tokenizer: TokenizerConfig, labels: tuple[Label, ...]) -> GeneratorConfig:
        check_one_index(tokenizer)
        layout = one_map(tokenizer)
        if self.prefix is not None and not isinstance(layout, SequenceLayout):
            raise ValueError("prefix is for tokens in a sequence, but this tokenizer has them on a grid; leave it out")
        condition = self.condition(labels)
        if self.tell_length:
            told = length_label(layout.num_tokens, self.drop_length)
            condition = replace(condition, labels=(*condition.labels, told))
        return GeneratorConfig(
            layout=layout,
            codebook_size=tokenizer.quantizer.codebook_size,
            condition=condition,
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            mlp_hidden=self.mlp_hidden,
            embedding_std=self.embedding_std,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class MistakesConfig:
    """Tokens swapped in training, so that a next-scale generator learns to correct its own mistakes."""

    share: float = 0.3
    """An image has at most this share of its tokens swapped; how many is drawn uniformly."""
    neighbours: int = 32
    """Among how many of the codes nearest to the right one a swapped token is drawn."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.neighbours < 1:
            raise ValueError(
                f"mistakes.share must be above 0 and at most 1 and neighbours at least 1, "
                f"got {self.share} and {self.neighbours}"
            )


@dataclass(frozen=True, kw_only=True)
class NextScaleSizes(GeneratorSizes):
    """A next-scale generator without what its data decide: scales, codebook and labels."""

    mlp_ratio: float = 4.0
    shared_modulation: bool = False
    """One AdaLN layer for all blocks."""
    dropout: float = 0.0
    """On what the first block reads."""
    drop_path: float = 0.0
    """Probability of leaving out a branch of the last block for a row; it rises linearly from 0 at the first."""
    gate_init: float = 1e-3
    """What the weights behind the residual gates are scaled by when training begins."""
    mistakes: MistakesConfig | None = None
    """Mistakes to learn from; None: it only ever sees right tokens."""

    def config(self, tokenizer: TokenizerConfig, labels: tuple[Label, ...]) -> NextScaleConfig:
        check_one_index(tokenizer)
        layout = tokenizer.layout
        if not isinstance(layout, ScaleLayout):
            raise ValueError(
                "this generator predicts map after map, but the tokenizer codes an image in one grid or row"
            )
        return NextScaleConfig(
            layout=layout,
            codebook_size=tokenizer.quantizer.codebook_size,
            codebook_dim=tokenizer.quantizer.codebook_dim,
            condition=self.condition(labels),
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            shared_modulation=self.shared_modulation,
            dropout=self.dropout,
            drop_path=self.drop_path,
            gate_init=self.gate_init,
        )


@dataclass(frozen=True, kw_only=True)
class MaskedSizes(GeneratorSizes):
    """A masked generator without what its data decide, and how it is trained."""

    mlp_ratio: float = 4.0
    norm: Literal["before", "after"] = "before"
    """LayerNorms before each branch, or after it (BERT)."""
    skips: bool = False
    """The second half of the blocks also sees what the first half gave (U-ViT)."""
    dropout: float = 0.0
    """On what the first block reads and what branches add."""
    attention_dropout: float = 0.0
    """Of the attention weights."""
    label_smoothing: float = 0.1
    """Share of the target law that is uniform."""
    known_weight: float = 0.1
    """Of tokens that are not masked, in the loss; masked ones have 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1 or self.known_weight < 0:
            raise ValueError(
                "label_smoothing must be at least 0 and below 1 and known_weight at least 0, "
                f"got {self.label_smoothing} and {self.known_weight}"
            )

    def config(self, tokenizer: TokenizerConfig, labels: tuple[Label, ...]) -> MaskedConfig:
        check_one_index(tokenizer)
        return MaskedConfig(
            layout=one_map(tokenizer),
            codebook_size=tokenizer.quantizer.codebook_size,
            condition=self.condition(labels),
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            norm=self.norm,
            skips=self.skips,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )


def one_map(tokenizer: TokenizerConfig) -> GridLayout | SequenceLayout:
    """How its tokens lie. ValueError for several maps: these generators see all tokens as equals."""
    layout = tokenizer.layout
    if isinstance(layout, ScaleLayout):
        raise ValueError(
            "this generator reads one grid or sequence of tokens, but the tokenizer codes an image in several maps"
        )
    return layout


def check_one_index(tokenizer: TokenizerConfig) -> None:
    shape = tokenizer.quantizer.index_shape
    if shape:
        raise ValueError(
            f"this generator draws one index for each token, but the tokenizer has {shape[0]} numbers each"
        )


def check_drops(drops: Mapping[str, float], labels: tuple[Label, ...]) -> None:
    """ValueError for labels that the data do not have; data of a single set have none to drop alone."""
    unknown = sorted(drops.keys() - {label.name for label in labels})
    if unknown and len(labels) > 1:
        raise ValueError(f"drop_labels names {', '.join(unknown)}, which the data do not have")


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    model: TransformerSizes | NextScaleSizes | MaskedSizes
    loop: LoopConfig
    data: TokenDataConfig = field(default_factory=TokenDataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
