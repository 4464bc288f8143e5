"""What a training run is: frozen dataclasses, written as JSON beside its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.masked import MaskedConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout
from imgtok.train.discriminators import PatchGANConfig

__all__ = ["VectorConfig"]  # named in field types, which JSON reading resolves here


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    lr: float = 1e-4
    """Highest learning rate of AdamW."""
    muon_lr: float = 0.0
    """Highest learning rate of Muon, which then moves the weights between hidden layers; 0: AdamW moves all."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled (arXiv:1711.05101), on tensors of two or more axes only."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or half a cosine down to `final_share`."""
    warmup_steps: int = 0
    """Steps of linear rise from 0."""
    final_share: float = 0.05
    """Last learning rate of the cosine as a share of the highest."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    steps: int
    """Optimiser steps of the whole run."""
    batch_size: int
    """Rows of one optimiser step, over all processes and accumulated micro-batches together."""
    accumulate: int = 1
    """Micro-batches a step is made of."""
    seed: int = 0
    precision: Literal["no", "bf16"] = "bf16"
    """Automatic mixed precision; parameters and losses stay in float32."""
    ema_decay: float = 0.999
    """Of the averaged weights that are evaluated and saved (rises to this over the first steps); 0: no averaging."""
    log_every: int = 20
    """Steps between two lines of the log."""
    evaluate_every: int = 500
    """Steps between two evaluations, with pictures; 0: only at the end."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Older checkpoints are removed."""
    workers: int = 0
    """Processes that read pictures; 0: in the training process (best for data in memory)."""
    compile: bool = False
    """Compile the training step with torch.compile."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    source: str = "emoji64"
    """An embedded set (emoji64, photos) or a folder of images, classes as sub-folders."""
    val_share: float = 0.1
    """Share of a folder that is held out for validation."""
    crop_scale: tuple[float, float] = (1.0, 1.25)
    """Short side before the random crop, in image sizes; pictures that already have the size are not cropped."""
    flip: bool = True
    """Mirror half of the pictures."""
    shift: int = 0
    """Largest random translation in pixels, filled with white; for pictures on a white ground."""


@dataclass(frozen=True, kw_only=True)
class TokenDataConfig:
    source: str = "emoji64"
    """The images, as for a tokenizer."""
    val_share: float = 0.1
    flip: bool = True
    """Mirrored pictures as further rows."""
    shifts: int = 0
    """Further rows: as many randomly translated versions of every picture."""
    max_shift: int = 4
    """Their largest translation in pixels."""


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig:
    """Weights of the named losses; 0 leaves one out."""

    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.0
    perceptual_network: Literal["none", "lpips-vgg", "lpips-alex", "efficientnet-lite0", "vgg-hed"] = "none"
    perceptual_weights: str | None = None
    """A file of the network's weights, instead of the torch hub cache or the installed package."""
    commitment: float = 0.25
    codebook: float = 1.0
    kl: float = 1e-6
    """Of the distance of continuous tokens from a standard normal distribution."""
    blend: float = 1.0
    """Of the convolutions that smooth the codes of a residual quantizer, where its codes are running means."""
    entropy: float = 0.0
    adversarial: float = 0.0
    adversarial_start: int = 0
    """First step of the discriminator and of the adversarial loss."""
    adversarial_loss: Literal["hinge", "non-saturating"] = "hinge"
    adaptive: bool = True
    """Scale the adversarial loss so that its gradient at the last layer equals that of the reconstruction losses."""
    discriminator: PatchGANConfig = field(default_factory=PatchGANConfig)

    def __post_init__(self) -> None:
        if (self.perceptual > 0) != (self.perceptual_network != "none"):
            raise ValueError(
                f"perceptual weight {self.perceptual} and perceptual_network {self.perceptual_network!r} contradict "
                "each other; set both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    tokenizer: TokenizerConfig
    loop: LoopConfig
    data: ImageDataConfig = ImageDataConfig()
    loss: TokenizerLossConfig = TokenizerLossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig()


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

    def config(self, tokenizer: TokenizerConfig, labels: tuple[Label, ...]) -> GeneratorConfig:
        check_one_index(tokenizer)
        return GeneratorConfig(
            layout=one_map(tokenizer),
            codebook_size=tokenizer.quantizer.codebook_size,
            condition=self.condition(labels),
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
    data: TokenDataConfig = TokenDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
