"""How a tokenizer learns whose decoder draws pictures by a flow: its velocity, and what a frozen teacher sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from imgtok.backbones.flow import Flow, FlowConfig
from imgtok.backbones.vae import KL, KLConfig
from imgtok.data import ImageSource, grid
from imgtok.data.transforms import to_float, to_uint8
from imgtok.metrics.image import psnr
from imgtok.metrics.tokens import code_usage, perplexity
from imgtok.nn.flow import FlowGuidance, FlowTimes
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.train.alignment import AlignmentHead, alignment_loss
from imgtok.train.config import ImageDataConfig, LoopConfig, OptimizerConfig
from imgtok.train.data import ImageBatch
from imgtok.train.tasks import Output, spread, validation_images
from imgtok.train.teachers import patch_teacher

SHOWN = 8  # pictures of a preview
SMALL = 0.02  # standard deviation of the first weights before the levels


@dataclass(frozen=True, kw_only=True)
class FlowLossConfig:
    """Weights of the named losses, and what is drawn for each image to learn them from."""

    velocity: float = 1.0
    """Of the mean squared error of the velocity."""
    alignment: float = 0.0
    """Of 1 minus the cosine between a teacher's features and what an MLP makes of the decoder's (REPA,
    arXiv:2410.06940); 0: no teacher."""
    teacher: Literal["none", "dinov2-s", "dinov2-b", "dinov2-l", "efficientnet-lite0"] = "none"
    """DINOv2 needs timm, and its weights. efficientnet-lite0, a classifier in an installed package, stands in for it
    where these are missing: it sees less."""
    teacher_weights: str | None = None
    """A file of the teacher's weights, instead of the hub or the installed package."""
    alignment_block: int = 1
    """Behind which block of the decoder, counted from 0, features are taken."""
    alignment_hidden: int = 2048
    """Width of the MLP."""
    times: FlowTimes = field(default_factory=FlowTimes)
    """Where between data and noise the velocity is learnt how often."""
    kept: NestedDropout = field(default_factory=partial(NestedDropout, per="image"))
    """How many of the first registers an image is drawn from."""
    null: float = 0.2
    """Probability of the null condition in place of all registers, for guidance."""

    def __post_init__(self) -> None:
        if (self.alignment > 0) != (self.teacher != "none"):
            raise ValueError(
                f"alignment weight {self.alignment} and teacher {self.teacher!r} contradict each other; "
                "set both or neither"
            )
        if not 0 <= self.null < 1:
            raise ValueError(f"null must be at least 0 and below 1, got {self.null}")


@dataclass(frozen=True, kw_only=True)
class FlowEvaluation:
    """What is drawn of validation pictures; always from the same noise, and without guidance."""

    images: int = 64
    """Pictures, spread over the set."""
    lengths: tuple[int, ...] = (1, 4, 16)
    """Numbers of first registers to draw from, beside all of them."""
    num_steps: int = 8
    """Of the solver."""


@dataclass(frozen=True, kw_only=True)
class FlowTraining:
    """The training of a tokenizer with a flow for its decoder."""

    tokenizer: TokenizerConfig
    loop: LoopConfig
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    loss: FlowLossConfig = field(default_factory=FlowLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    autoencoder: str | None = None
    """Weights of the frozen autoencoder: a folder that diffusers saved, or a repository of the hub; None: it has none,
    as pixels do."""
    evaluation: FlowEvaluation = field(default_factory=FlowEvaluation)

    def __post_init__(self) -> None:
        backbone, quantizer = self.tokenizer.backbone, self.tokenizer.quantizer
        if not isinstance(backbone, FlowConfig) or not isinstance(quantizer, ScalarConfig):
            raise ValueError(
                f"a flow is trained with registers on scalar levels, not with {type(backbone).__name__} and "
                f"{type(quantizer).__name__}; use the training of other tokenizers"
            )
        if isinstance(backbone.vae, KLConfig) != (self.autoencoder is not None):
            raise ValueError(
                f"the tokenizer reads {type(backbone.vae).__name__}, but autoencoder is {self.autoencoder!r}; "
                "give the trained weights of a KLConfig, and none of others"
            )
        if self.loss.teacher != "none" and not 0 <= self.loss.alignment_block < backbone.decoder.depth:
            raise ValueError(
                f"alignment_block must be 0 to {backbone.decoder.depth - 1}, a block of the decoder, "
                f"got {self.loss.alignment_block}"
            )


class FlowTask(nn.Module):
    """A tokenizer with a `Flow` learns the velocity between pictures and noise, from any number of first registers."""

    adversary = None

    def __init__(self, config: FlowTraining, validation: ImageSource | None = None) -> None:
        super().__init__()
        self.config, loss = config, config.loss
        self.origins: dict[str, str] = {}  # fingerprints of trained models that it begins with: none
        self.model = config.tokenizer.build()
        nn.init.normal_(self.model.to_codes.weight, std=SMALL)  # where tanh is steep: no level beyond it learns to move
        if config.autoencoder is not None:
            cast(KL, self.model.backbone.vae).read(config.autoencoder)
        self.upkeep = self.model.quantizer.upkeep()
        teacher = None if loss.teacher == "none" else patch_teacher(loss.teacher, loss.teacher_weights)
        self.companions: tuple[nn.Module, ...] = () if teacher is None else (teacher,)
        width, hidden = self.model.backbone.config.decoder_channels, loss.alignment_hidden
        self.head = None if teacher is None else AlignmentHead(width, hidden, teacher.width)
        size, most = config.tokenizer.image_size, config.evaluation.images
        self.validation = None if validation is None else validation_images(validation, size, most)

    def hidden_weights(self) -> list[nn.Parameter]:
        return self.model.backbone.hidden_weights()

    def networks(self) -> list[nn.Module]:
        flow = cast(Flow, self.model.backbone)
        return [flow.encoder, *flow.decoder.blocks]

    def forward(self, batch: ImageBatch, step: int, generator: torch.Generator) -> Output:
        """Numbers are drawn on the CPU, so that they are the same on any device."""
        images, config, model = batch.images, self.config.loss, self.model
        flow, count = cast(Flow, model.backbone), len(images)
        maps = flow.maps(model.pixels(images)).float()
        latents = model.to_codes(flow.encoder(maps.to(model.to_codes.weight.dtype)))
        quantized = model.quantizer(latents)
        kept = config.kept.draw(count, latents.shape[1])
        kept = kept.masked_fill(torch.rand(count, generator=generator) < config.null, 0)
        noise, times = torch.randn(maps.shape, generator=generator), config.times.draw(count, generator)
        velocity, patches = flow.watched_loss(
            maps,
            model.from_codes(quantized.latents),
            noise.to(maps.device),
            times.to(maps.device),
            kept.to(maps.device),
            config.alignment_block,
        )
        losses = {"velocity": config.velocity * velocity}
        if self.head is not None:
            (teacher,) = self.companions
            losses["alignment"] = config.alignment * alignment_loss(self.head(patches), teacher(images))
        return Output(losses, {}, (latents.detach(), quantized.indices))

    def observe(self, output: Output, generator: torch.Generator) -> dict[str, Tensor]:
        latents, indices = output.kept
        return self.upkeep.update(self.model.quantizer, latents, indices, generator)

    @torch.no_grad()
    def evaluate(self, model: Tokenizer) -> dict[str, float]:
        """PSNR from all registers (`val_psnr`) and from the first k (`val_psnr_k`), the velocity's error, code use."""
        if self.validation is None:
            return {}
        device, size = model.from_codes.weight.device, model.quantizer.codebook_size
        images = to_float(self.validation)
        indices = torch.cat([model.encode(part.to(device)) for part in images.split(32)])
        scores = {}
        for length in self.lengths:
            drawn = self.drawn(model, indices[:, :length])
            name = "val_psnr" if length == indices.shape[1] else f"val_psnr_{length}"
            scores[name] = float(psnr(drawn, images).mean())
        counts = torch.bincount(indices.flatten().cpu(), minlength=size)
        usage = {"code_usage": code_usage(counts), "code_perplexity": perplexity(counts)}
        return scores | {"val_velocity": self.velocity_error(model, images, indices)} | usage

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of registers to draw from; the last is all."""
        total = self.model.config.layout.num_tokens
        return (*(length for length in self.config.evaluation.lengths if length < total), total)

    def drawn(self, model: Tokenizer, indices: Tensor) -> Tensor:
        """Pictures of the first indices b k, on the CPU."""
        with unguided(cast(Flow, model.backbone), self.config.evaluation.num_steps):
            return torch.cat([model.decode(part).cpu() for part in indices.split(32)])

    def velocity_error(self, model: Tokenizer, images: Tensor, indices: Tensor) -> float:
        """From all registers, at times that stand for the law of training, and with noise that is always the same."""
        flow, device, count, total = cast(Flow, model.backbone), indices.device, len(images), 0.0
        dice = torch.Generator().manual_seed(0)
        shares = (torch.randperm(count, generator=dice) + 0.5) / count
        for rows in torch.arange(count).split(32):
            maps = flow.maps(model.pixels(images[rows].to(device))).float()
            codes = model.quantizer.codes(indices[rows.to(device)])
            latents = model.from_codes(codes.to(model.from_codes.weight.dtype))
            noise, times = torch.randn(maps.shape, generator=dice), self.config.loss.times.at(shares[rows])
            kept = torch.full((len(rows),), latents.shape[1], device=device)
            total += float(flow.loss(maps, latents, noise.to(device), times.to(device), kept)) * len(rows)
        return total / count

    @torch.no_grad()
    def preview(self, model: Tokenizer) -> Tensor | None:
        """Validation pictures; under them, row by row, what is drawn from more and more registers."""
        if self.validation is None:
            return None
        originals = self.validation[spread(len(self.validation), SHOWN)]
        indices = model.encode(to_float(originals).to(model.from_codes.weight.device))
        rows = [to_uint8(self.drawn(model, indices[:, :length])) for length in self.lengths]
        return grid(torch.cat([originals, *rows]), columns=len(originals))


@contextmanager
def unguided(flow: Flow, num_steps: int) -> Iterator[None]:
    """Meanwhile the flow draws in so many steps, without guidance."""
    before = flow.solver, flow.guidance
    flow.solver, flow.guidance = replace(flow.solver, num_steps=num_steps), FlowGuidance()
    try:
        yield
    finally:
        flow.solver, flow.guidance = before
