"""What a training run is: frozen dataclasses, written as JSON beside its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.train.discriminators import BlurredPatchGANConfig, FrozenFeaturesConfig, PatchGANConfig
from imgtok.train.semantic import SemanticConfig

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
    undecayed: tuple[str, ...] = ()
    """Parts of names: weights that have one of them in theirs are not decayed either."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or half a cosine down to `final_share`."""
    warmup_steps: int = 0
    """Steps of linear rise from 0."""
    final_share: float = 0.05
    """Last learning rate of the cosine as a share of the highest."""
    start: int = 0
    """Step from which warm-up and schedule count, for a discriminator that begins late."""


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
    """Compile the networks of a training step with torch.compile: quicker after a minute or more."""

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
class PictureLossConfig:
    """Weights of the named losses of pictures beside their originals; 0 leaves one out."""

    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.0
    perceptual_network: Literal["none", "lpips-vgg", "lpips-alex", "efficientnet-lite0", "vgg-hed"] = "none"
    perceptual_weights: str | None = None
    """A file of the network's weights, instead of the torch hub cache or the installed package."""
    classifier: float = 0.0
    """Of the squared difference of what a classifier, ConvNeXt-S, says of both pictures, as TiTok has it."""
    classifier_weights: str | None = None
    """A file of torchvision's weights of it, instead of the torch hub cache."""
    adversarial: float = 0.0
    adversarial_start: int = 0
    """First step of the discriminator and of the adversarial loss."""
    adversarial_loss: Literal["hinge", "non-saturating"] = "hinge"
    adaptive: bool = True
    """Scale the adversarial loss so that its gradient at the last layer equals that of the reconstruction losses."""
    lecam: float = 0.0
    """Of LeCam regularisation in the discriminator's loss, for few pictures (arXiv:2104.03310)."""
    lecam_form: Literal["paper", "released", "means"] = "paper"
    """The paper's squares; those of its released code, which RobusTok took over: of one sign only; or TiTok's: those of
    the means of the batch."""
    lecam_decay: float = 0.999
    """Of the running means of logits that LeCam compares with."""
    discriminator: PatchGANConfig | BlurredPatchGANConfig | FrozenFeaturesConfig = field(default_factory=PatchGANConfig)
    """PatchGAN, with blurs or without, or heads on the features of a frozen network."""

    def __post_init__(self) -> None:
        if (self.perceptual > 0) != (self.perceptual_network != "none"):
            raise ValueError(
                f"perceptual weight {self.perceptual} and perceptual_network {self.perceptual_network!r} contradict "
                "each other; set both or neither"
            )
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"lecam_decay must be at least 0 and below 1, got {self.lecam_decay}")


@dataclass(frozen=True, kw_only=True)
class TokenizerLossConfig(PictureLossConfig):
    """And of what keeps latents and codes together."""

    commitment: float = 0.25
    codebook: float = 1.0
    kl: float = 1e-6
    """Of the distance of continuous tokens from a standard normal distribution."""
    blend: float = 1.0
    """Of the convolutions that smooth the codes of a residual quantizer, where its codes are running means."""
    entropy: float = 0.0
    semantic: float = 0.0
    """Of the contrast between a picture's mean code and what a frozen teacher sees in it (arXiv:2503.08354)."""
    semantics: SemanticConfig = field(default_factory=SemanticConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.semantic > 0) != (self.semantics.teacher != "none"):
            raise ValueError(
                f"semantic weight {self.semantic} and semantics.teacher {self.semantics.teacher!r} contradict each "
                "other; set both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class PerturbConfig:
    """Codes swapped in training, so that the decoder survives a generator's mistakes (RobusTok, arXiv:2503.08354).

    Losses of the codebook, and what keeps it alive, see clean codes. Off unless `share` is above 0.
    """

    share: float = 0.0
    """Share of the images of a batch whose codes are swapped (beta); the paper's is 0.1."""
    rate: float = 1.0
    """Probability that a code of theirs is (alpha)."""
    neighbours: int = 0
    """Among how many of the codes nearest to the latent it is drawn (delta); 0: the paper's 100 for each 4096 codes."""
    hold: float = 0.2
    """Share of the steps after which rate and neighbours begin to fall."""
    until: float = 0.6
    """Share of the steps after which they have fallen to `final`; the paper's 200 epochs fall from 40 to 120."""
    final: float = 0.5
    """Last rate and neighbours, as a share of the first; 1: they never fall."""

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("share", "rate", "final")}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"perturb.{name} must lie between 0 and 1, got {value}")
        if not 0 <= self.hold <= self.until <= 1:
            raise ValueError(
                f"perturb.hold and perturb.until must rise between 0 and 1, got {self.hold} and {self.until}"
            )
        if self.neighbours < 0:
            raise ValueError(
                f"perturb.neighbours must be 0 (in proportion to the codes) or more, got {self.neighbours}"
            )

    def neighbours_of(self, codebook_size: int) -> int:
        """At first."""
        return self.neighbours or max(2, round(codebook_size * 100 / 4096))


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    tokenizer: TokenizerConfig
    loop: LoopConfig
    data: ImageDataConfig = ImageDataConfig()
    loss: TokenizerLossConfig = TokenizerLossConfig()
    perturb: PerturbConfig = PerturbConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig()
