"""Tasks: from a batch to named, weighted losses. The loop knows nothing of images or tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from imgtok.data import ImageSource, grid
from imgtok.data.transforms import to_float, to_uint8
from imgtok.metrics.image import psnr
from imgtok.metrics.perceptual import convnext_small, perceptual_distance
from imgtok.metrics.tokens import code_usage, perplexity
from imgtok.quantizers.base import Quantized
from imgtok.quantizers.perturb import draw, perturbed
from imgtok.tokencache import readable
from imgtok.tokenizer import Tokenizer
from imgtok.train.config import PictureLossConfig, TokenizerTraining
from imgtok.train.data import ImageBatch
from imgtok.train.losses import (
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    lecam_of_means,
    lecam_regulariser,
    lecam_released,
    non_saturating_discriminator,
    non_saturating_generator,
    reconstruction_l1,
    reconstruction_l2,
)
from imgtok.train.schedules import perturbation_share
from imgtok.train.semantic import SemanticLoss, clean_codes

LECAM = {"paper": lecam_regulariser, "released": lecam_released, "means": lecam_of_means}


class Output(NamedTuple):
    """What a task makes of a batch."""

    losses: dict[str, Tensor]
    """Scalars by name, weights included; their sum is minimised."""
    numbers: dict[str, Tensor]
    """Further scalars to log."""
    kept: tuple[Tensor, ...] = ()
    """What `observe` and the adversary need of this batch."""


class Adversary(Protocol):
    """The second player of an adversarial task; a module with optimisers of its own."""

    def hidden_weights(self) -> list[nn.Parameter]: ...

    def active(self, step: int) -> bool: ...

    def __call__(self, kept: tuple[Tensor, ...], generator: torch.Generator) -> dict[str, Tensor]: ...


class Task(Protocol):
    """What `fit` trains; a module that holds `model` and whatever else belongs into a checkpoint."""

    model: Any
    companions: tuple[nn.Module, ...]
    """Frozen networks to bring to the device; never saved."""

    @property
    def adversary(self) -> Any: ...

    def hidden_weights(self) -> list[nn.Parameter]:
        """Weights from hidden layer to hidden layer: what Muon may move."""
        ...

    def networks(self) -> list[nn.Module]:
        """Parts of the model whose calls are most of a step's work: what `loop.compile` compiles."""
        ...

    def __call__(self, batch: Any, step: int, generator: torch.Generator) -> Output: ...

    def observe(self, output: Output, generator: torch.Generator) -> dict[str, Tensor]:
        """After the gradients of a micro-batch: upkeep that is no gradient step. Numbers to log."""
        ...

    def evaluate(self, model: Any) -> dict[str, float]:
        """Scores of `model` (the averaged one) on validation data."""
        ...

    def preview(self, model: Any) -> Tensor | None:
        """A picture to look at, uint8 3 h w."""
        ...


class TokenizerTask(nn.Module):
    """A tokenizer learns to reconstruct; its codebook is kept alive; a discriminator may join later."""

    def __init__(self, config: TokenizerTraining, validation: ImageSource | None = None) -> None:
        super().__init__()
        self.config = config
        self.origins: dict[str, str] = {}  # fingerprints of trained models that it begins with
        self.model = config.tokenizer.build().to(memory_format=torch.channels_last)  # quicker, on CPUs too
        self.upkeep = self.model.quantizer.upkeep()
        self.pictures = PictureLosses(config.loss)
        self.semantic = SemanticLoss(config.loss.semantics, config.tokenizer) if config.loss.semantic > 0 else None
        self.companions = self.pictures.companions + (self.semantic.companions if self.semantic else ())
        self.validation = None if validation is None else validation_images(validation, config.tokenizer.image_size)

    @property
    def adversary(self) -> PictureAdversary | None:
        return self.pictures.adversary

    def hidden_weights(self) -> list[nn.Parameter]:
        return self.model.backbone.hidden_weights()

    def networks(self) -> list[nn.Module]:
        """Quantizers stay as they are: what swaps their codes is another function at each step."""
        return [self.model.backbone.encoder, self.model.backbone.decoder]

    def forward(self, batch: ImageBatch, step: int, generator: torch.Generator) -> Output:
        images, config = batch.images, self.config.loss
        perturbation = self.perturbation(step, generator)
        result = self.model(images, perturbation)
        output = result.images.float()
        losses = self.pictures(output, images, step, self.model.backbone.last_layer, generator)
        if config.entropy > 0:  # a softmax over all codes: not for nothing
            losses["entropy"] = config.entropy * self.model.quantizer.entropy_loss(result.latents)
        if self.semantic is not None:
            codes = result.quantized.latents
            if perturbation is not None and config.semantics.codes == "clean":
                codes = clean_codes(self.model, result.latents, codes)
            losses["semantic"] = config.semantic * self.semantic(images, codes, self.model.to_codes)
        for name, loss in result.quantized.losses.items():
            losses[name] = getattr(config, name) * loss
        return Output(
            used(losses, config), {}, (images, output.detach(), result.latents.detach(), result.quantized.indices)
        )

    def perturbation(self, step: int, generator: torch.Generator) -> Callable[[Tensor], Quantized] | None:
        """What quantises at this step in place of the quantizer; None: it does itself."""
        config, quantizer = self.config.perturb, self.model.quantizer
        if not config.share:
            return None
        strength = perturbation_share(config, step, self.config.loop.steps)
        rate, neighbours = strength * config.rate, int(strength * config.neighbours_of(quantizer.codebook_size))
        if not rate or neighbours < 2:
            return None
        dice = partial(draw, generator=generator)
        return partial(perturbed, quantizer, dice=dice, rate=rate, neighbours=neighbours, share=config.share)

    def observe(self, output: Output, generator: torch.Generator) -> dict[str, Tensor]:
        _, _, latents, indices = output.kept
        return self.upkeep.update(self.model.quantizer, latents, indices, generator)

    @torch.no_grad()
    def evaluate(self, model: Tokenizer) -> dict[str, float]:
        if self.validation is None:
            return {}
        device = model.from_codes.weight.device
        size = model.quantizer.codebook_size
        counts, values = torch.zeros(size, dtype=torch.int64), []
        for part in self.validation.split(32):
            images = to_float(part).to(device)
            indices = model.encode(images)
            values.append(psnr(model.decode(indices), images).cpu())
            if size:
                counts += torch.bincount(indices.flatten().cpu(), minlength=size)
        usage = {"code_usage": code_usage(counts), "code_perplexity": perplexity(counts)} if size else {}
        return {"val_psnr": float(torch.cat(values).mean())} | usage

    @torch.no_grad()
    def preview(self, model: Tokenizer) -> Tensor | None:
        """Validation pictures over their reconstructions."""
        if self.validation is None:
            return None
        originals = self.validation[spread(len(self.validation), 12)]
        device = model.from_codes.weight.device
        return pairs(originals, to_uint8(model.reconstruct(to_float(originals).to(device))).cpu())


class PictureLosses:
    """Losses of pictures beside their originals, with the networks that they need.

    No module, so that these networks are no part of the task: the adversary has its own optimiser and its own wrapper.
    """

    def __init__(self, config: PictureLossConfig) -> None:
        self.config = config
        perceptual = perceptual_distance(config.perceptual_network, config.perceptual_weights)
        self.frozen: dict[str, nn.Module] = {} if perceptual is None else {"perceptual": perceptual}
        if config.classifier > 0:
            self.frozen["classifier"] = convnext_small(config.classifier_weights)
        self.adversary = PictureAdversary(config) if config.adversarial > 0 else None

    @property
    def companions(self) -> tuple[nn.Module, ...]:
        """All frozen networks."""
        return tuple(self.frozen.values()) + (self.adversary.network.companions if self.adversary else ())

    def __call__(
        self, output: Tensor, images: Tensor, step: int, last_layer: nn.Parameter, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Weighted scalars by name, of output and images b 3 h w; `last_layer` of the decoder that made the output.

        What the adversary draws comes from `generator`.
        """
        losses = self.distances(output, images)
        if self.adversary is not None and self.adversary.active(step):
            distance = sum(losses.values(), torch.zeros(()))
            fooling = self.fooling(self.adversary, output, distance, last_layer, generator)
            losses["adversarial"] = self.config.adversarial * fooling
        return losses

    def distances(self, output: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Those that need no adversary."""
        losses = {
            "l1": self.config.l1 * reconstruction_l1(output, images),
            "l2": self.config.l2 * reconstruction_l2(output, images),
        }
        for name, network in self.frozen.items():
            losses[name] = getattr(self.config, name) * network(output, images).mean()
        return losses

    def fooling(
        self,
        adversary: PictureAdversary,
        output: Tensor,
        distance: Tensor,
        last_layer: nn.Parameter,
        generator: torch.Generator,
    ) -> Tensor:
        """The generator's side of the adversarial loss, balanced against the others."""
        adversary.network.requires_grad_(False)
        loss = adversary.fooling(output, generator)
        adversary.network.requires_grad_(True)
        return loss * adaptive_weight(distance, loss, last_layer) if self.config.adaptive else loss


class PictureAdversary(nn.Module):
    """A discriminator and its losses; with LeCam, the running means of its logits, which checkpoints hold too."""

    mean_real: Tensor
    mean_fake: Tensor

    def __init__(self, config: PictureLossConfig) -> None:
        super().__init__()
        self.config = config
        self.network: Any = config.discriminator.build()
        if config.lecam > 0:
            self.register_buffer("mean_real", torch.zeros(()))
            self.register_buffer("mean_fake", torch.zeros(()))

    def hidden_weights(self) -> list[nn.Parameter]:
        return self.network.hidden_weights()

    def active(self, step: int) -> bool:
        return step >= self.config.adversarial_start

    def forward(self, kept: tuple[Tensor, ...], generator: torch.Generator) -> dict[str, Tensor]:
        real, fake = (self.network(images, generator).float() for images in kept[:2])
        hinge = self.config.adversarial_loss == "hinge"
        loss = hinge_discriminator(real, fake) if hinge else non_saturating_discriminator(real, fake)
        return {"discriminator": loss} | ({"lecam": self.lecam(real, fake)} if self.config.lecam > 0 else {})

    def lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """Weighted. The running means, from 0 on, have seen these logits already as in RobusTok's code; not TiTok's."""
        before = self.mean_real.clone(), self.mean_fake.clone()
        for mean, logits in ((self.mean_real, real), (self.mean_fake, fake)):
            mean.lerp_(logits.detach().mean(), 1 - self.config.lecam_decay)
        form = self.config.lecam_form
        means = before if form == "means" else (self.mean_real.clone(), self.mean_fake.clone())
        return self.config.lecam * LECAM[form](real, fake, *means)

    def fooling(self, images: Tensor, generator: torch.Generator) -> Tensor:
        logits = self.network(images, generator).float()
        return hinge_generator(logits) if self.config.adversarial_loss == "hinge" else non_saturating_generator(logits)


def used(losses: dict[str, Tensor], weights: Any) -> dict[str, Tensor]:
    """Those that have a weight, by their name."""
    return {name: loss for name, loss in losses.items() if getattr(weights, name) > 0}


def train_decoder_alone(tokenizer: Tokenizer) -> None:
    """Freezes all that comes before the codes, and the codes: encoder and tokens do not change in any bit."""
    tokenizer.requires_grad_(False)
    for part in (tokenizer.from_codes, tokenizer.backbone.decoder):
        part.requires_grad_(True)


def validation_images(source: ImageSource, size: int, most: int = 1000) -> Tensor:
    """Up to `most` pictures spread over the source, centre-cropped: uint8 n 3 s s."""
    return readable(source, spread(len(source), most).tolist(), size)[0]


def spread(length: int, most: int) -> Tensor:
    """Up to `most` indices evenly spread over `length`."""
    return torch.arange(min(most, length)) * length // max(min(most, length), 1)


def pairs(originals: Tensor, reconstructions: Tensor, columns: int = 12) -> Tensor:
    """Originals over reconstructions, row by row: uint8 n 3 h w twice -> uint8 3 H W."""
    rows: Sequence[Tensor] = [
        part
        for above, below in zip(originals.split(columns), reconstructions.split(columns), strict=True)
        for part in (above, below)
    ]
    return grid(torch.cat(list(rows)), columns=min(columns, len(originals)))
