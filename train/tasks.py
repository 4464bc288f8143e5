"""Tasks: from a batch to named, weighted losses. The loop knows nothing of images or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from imgtok.data import ImageSource, grid
from imgtok.data.transforms import to_float, to_uint8
from imgtok.metrics.image import psnr
from imgtok.metrics.perceptual import perceptual_distance
from imgtok.metrics.tokens import code_usage, perplexity
from imgtok.tokencache import readable
from imgtok.tokenizer import Tokenizer
from imgtok.train.config import TokenizerLossConfig, TokenizerTraining
from imgtok.train.data import ImageBatch
from imgtok.train.losses import (
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
    non_saturating_discriminator,
    non_saturating_generator,
    reconstruction_l1,
    reconstruction_l2,
)


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

    def __call__(self, kept: tuple[Tensor, ...]) -> dict[str, Tensor]: ...


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
        self.model = config.tokenizer.build().to(memory_format=torch.channels_last)  # quicker, on CPUs too
        self.upkeep = self.model.quantizer.upkeep()
        perceptual = perceptual_distance(config.loss.perceptual_network, config.loss.perceptual_weights)
        self.companions: tuple[nn.Module, ...] = () if perceptual is None else (perceptual,)
        # Kept in a tuple, so that it is no submodule: it has its own optimiser and its own wrapper.
        self._adversary = (PatchAdversary(config.loss),) if config.loss.adversarial > 0 else ()
        self.validation = None if validation is None else validation_images(validation, config.tokenizer.image_size)

    @property
    def adversary(self) -> PatchAdversary | None:
        return self._adversary[0] if self._adversary else None

    def hidden_weights(self) -> list[nn.Parameter]:
        return self.model.backbone.hidden_weights()

    def forward(self, batch: ImageBatch, step: int, generator: torch.Generator) -> Output:
        images, config = batch.images, self.config.loss
        result = self.model(images)
        output = result.images.float()
        losses = {
            "l1": config.l1 * reconstruction_l1(output, images),
            "l2": config.l2 * reconstruction_l2(output, images),
        }
        for network in self.companions:
            losses["perceptual"] = config.perceptual * network(output, images).mean()
        if self.adversary is not None and self.adversary.active(step):
            losses["adversarial"] = config.adversarial * self.fooling(output, sum(losses.values(), torch.zeros(())))
        if config.entropy > 0:  # a softmax over all codes: not for nothing
            losses["entropy"] = config.entropy * self.model.quantizer.entropy_loss(result.latents)
        for name, loss in result.quantized.losses.items():
            losses[name] = getattr(config, name) * loss
        used = {name: loss for name, loss in losses.items() if getattr(config, name) > 0}
        return Output(used, {}, (images, output.detach(), result.latents.detach(), result.quantized.indices))

    def fooling(self, output: Tensor, reconstruction: Tensor) -> Tensor:
        """The generator's side of the adversarial loss, balanced against the reconstruction losses."""
        assert self.adversary is not None
        self.adversary.network.requires_grad_(False)
        loss = self.adversary.fooling(output)
        self.adversary.network.requires_grad_(True)
        if not self.config.loss.adaptive:
            return loss
        return loss * adaptive_weight(reconstruction, loss, self.model.backbone.last_layer)

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


class PatchAdversary(nn.Module):
    """A PatchGAN discriminator (arXiv:1611.07004) and its loss."""

    def __init__(self, config: TokenizerLossConfig) -> None:
        super().__init__()
        self.config = config
        self.network = config.discriminator.build()

    def hidden_weights(self) -> list[nn.Parameter]:
        return self.network.hidden_weights()

    def active(self, step: int) -> bool:
        return step >= self.config.adversarial_start

    def forward(self, kept: tuple[Tensor, ...]) -> dict[str, Tensor]:
        real, fake = self.network(kept[0]).float(), self.network(kept[1]).float()
        if self.config.adversarial_loss == "hinge":
            return {"discriminator": hinge_discriminator(real, fake)}
        return {"discriminator": non_saturating_discriminator(real, fake)}

    def fooling(self, images: Tensor) -> Tensor:
        logits = self.network(images).float()
        return hinge_generator(logits) if self.config.adversarial_loss == "hinge" else non_saturating_generator(logits)


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
