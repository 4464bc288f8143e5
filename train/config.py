"""What a training run is: frozen dataclasses, written as JSON beside its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.tokens import GridLayout, ScaleLayout
from imgtok.train.discriminators import PatchGANConfig

__all__ = ["GridLayout", "VectorConfig"]  # named in field types, which JSON reading resolves here


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
class TransformerSizes:
    """A generator without what its data decide: grid, codebook and labels."""

    width: int
    depth: int
    num_heads: int
    num_kv_heads: int | None = None
    mlp_hidden: int | None = None
    embedding_std: float = 0.02
    """Spread of the embeddings when training begins."""
    dropout: float = 0.1
    drop_condition: float = 0.1
    """Probability of the null condition, for guidance."""
    drop_labels: dict[str, float] = field(default_factory=dict)
    """Probability of dropping a label alone, by its name."""

    def config(self, tokenizer: TokenizerConfig, labels: tuple[Label, ...]) -> GeneratorConfig:
        check_drops(self.drop_labels, labels)
        layout = tokenizer.layout
        if not isinstance(layout, GridLayout):  # what this generator can read, a property of it and not of the layout
            raise ValueError(
                "this generator reads one grid of tokens, but the tokenizer codes an image in several maps"
            )
        return GeneratorConfig(
            layout=layout,
            codebook_size=tokenizer.quantizer.codebook_size,
            condition=LabelConditionConfig(labels=labels, drop=self.drop_condition),
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            mlp_hidden=self.mlp_hidden,
            embedding_std=self.embedding_std,
            dropout=self.dropout,
        )


@dataclass(frozen=True, kw_only=True)
class NextScaleSizes:
    """A next-scale generator without what its data decide: scales, codebook and labels."""

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    shared_modulation: bool = False
    """One AdaLN layer for all blocks."""
    dropout: float = 0.0
    """On what the first block reads."""
    drop_path: float = 0.0
    """Probability of leaving out a branch of the last block for a row; it rises linearly from 0 at the first."""
    gate_init: float = 1e-3
    """What the weights behind the residual gates are scaled by when training begins."""
    drop_condition: float = 0.1
    """Probability of the null condition, for guidance."""
    drop_labels: dict[str, float] = field(default_factory=dict)
    """Probability of dropping a label alone, by its name."""

    def config(self, tokenizer: TokenizerConfig, labels: tuple[Label, ...]) -> NextScaleConfig:
        check_drops(self.drop_labels, labels)
        layout = tokenizer.layout
        if not isinstance(layout, ScaleLayout):
            raise ValueError("this generator predicts map after map, but the tokenizer codes an image in one grid")
        return NextScaleConfig(
            layout=layout,
            codebook_size=tokenizer.quantizer.codebook_size,
            codebook_dim=tokenizer.quantizer.codebook_dim,
            condition=LabelConditionConfig(labels=labels, drop=self.drop_condition),
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            shared_modulation=self.shared_modulation,
            dropout=self.dropout,
            drop_path=self.drop_path,
            gate_init=self.gate_init,
        )


def check_drops(drops: Mapping[str, float], labels: tuple[Label, ...]) -> None:
    """ValueError for labels that the data do not have; data of a single set have none to drop alone."""
    unknown = sorted(drops.keys() - {label.name for label in labels})
    if unknown and len(labels) > 1:
        raise ValueError(f"drop_labels names {', '.join(unknown)}, which the data do not have")


@dataclass(frozen=True, kw_only=True)
class GeneratorTraining:
    model: TransformerSizes | NextScaleSizes
    loop: LoopConfig
    data: TokenDataConfig = TokenDataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
