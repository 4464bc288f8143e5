"""Tasks: from a batch to named, weighted losses. The loop knows nothing of images or tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.data import ImageSource, grid
from imgtok.data.transforms import to_float, to_uint8
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.masked import MaskedConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.metrics.image import psnr
from imgtok.metrics.perceptual import perceptual_distance
from imgtok.metrics.tokens import code_usage, perplexity
from imgtok.quantizers.perturb import Draws, draw, perturb
from imgtok.quantizers.residual import ResidualQuantizer
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate
from imgtok.sample.law import Law
from imgtok.tokencache import TokenCache, readable
from imgtok.tokenizer import Tokenizer
from imgtok.tokens import ScaleLayout
from imgtok.train.config import MaskedSizes, MistakesConfig, TokenizerLossConfig, TokenizerTraining
from imgtok.train.data import ImageBatch, TokenBatch
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


class GeneratorTask(nn.Module):
    """A generator learns the law of the next token (cross-entropy, nats per token), conditions dropped for guidance."""

    companions: tuple[nn.Module, ...] = ()
    adversary = None

    def __init__(
        self,
        config: GeneratorConfig | NextScaleConfig | MaskedConfig,
        validation: TokenCache | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = config.build()
        self.validation = validation
        self._tokenizer = (tokenizer,)  # frozen: no part of the task's state

    def hidden_weights(self) -> list[nn.Parameter]:
        return [p for p in self.model.blocks.parameters() if p.ndim >= 2]

    def forward(self, batch: TokenBatch, step: int, generator: torch.Generator) -> Output:
        labels = self.model.condition.drop(batch.labels, generator)
        return Output({"cross_entropy": self.loss(batch.tokens, labels, generator)}, {})

    def loss(self, tokens: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return cross_entropy(self.logits(self.model, tokens, labels), tokens)

    def logits(self, model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        """b n v, of each token given those that it may know of."""
        return model(tokens, labels)

    def score(self, model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        """The loss on validation images."""
        return cross_entropy(self.logits(model, tokens, labels), tokens)

    def observe(self, output: Output, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        """Mean loss over validation images as they are, their full condition given."""
        if self.validation is None:
            return {}
        device = model.device
        total = torch.zeros(())
        first = torch.arange(self.validation.images) * self.validation.versions
        for part in first.split(64):
            tokens, labels = (values.to(device) for values in self.validation.rows(part))
            total += self.score(model, tokens, labels).cpu() * len(part)
        return {"val_loss": float(total / len(first))}

    @torch.no_grad()
    def preview(self, model: Any) -> Tensor | None:
        """Samples of conditions taken from the validation images."""
        (tokenizer,) = self._tokenizer
        if tokenizer is None or self.validation is None:
            return None
        device = model.device
        rows = spread(self.validation.images, 24) * self.validation.versions
        labels = self.validation.rows(rows)[1].to(device)
        config = SamplerConfig(law=Law(temperature=0.9, top_k=100), guidance=Guidance(scale=3.0), batch_size=24)
        images = torch.cat(list(generate(model, tokenizer, labels, config)))
        return grid(to_uint8(images).cpu(), columns=8)


class MaskedTask(GeneratorTask):
    """A masked generator learns the law of tokens that it does not see, given the others (arXiv:2202.04200, eq. 1).

    As TiTok publishes it (arXiv:2406.07550): how many are masked is drawn by the cosine schedule that sampling goes
    through, targets are smoothed, and the tokens that it sees count a little too.
    """

    def __init__(self, config: MaskedConfig, sizes: MaskedSizes, *args: Any) -> None:
        super().__init__(config, *args)
        self.sizes = sizes

    def loss(self, tokens: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        levels = torch.rand(len(tokens), generator=generator)
        masked = masked_places(levels, tokens.shape[1], generator).to(tokens.device)
        logits = self.model(tokens.masked_fill(masked, self.model.mask_token), labels).float()
        losses = F.cross_entropy(
            logits.transpose(1, 2), tokens, reduction="none", label_smoothing=self.sizes.label_smoothing
        )
        weights = torch.where(masked, 1.0, self.sizes.known_weight)
        return (losses * weights).sum() / weights.sum()

    def score(self, model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of masked tokens, as many in one image as in another; the same ones each time."""
        levels = (torch.arange(len(tokens)) + 0.5) / len(tokens)
        masked = masked_places(levels, tokens.shape[1], torch.Generator().manual_seed(0)).to(tokens.device)
        logits = model(tokens.masked_fill(masked, model.mask_token), labels).float()
        losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
        return ((losses * masked).sum(1) / masked.sum(1)).mean()


def masked_places(levels: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Which tokens are masked: levels b in [0, 1) -> b length (bool), on the CPU.

    Of a share arccos(level) / (pi / 2), rounded, at least one; which ones is drawn uniformly.
    """
    counts = (length * levels.acos() / (math.pi / 2)).round().clamp_min(1)
    ranks = torch.rand(len(levels), length, generator=generator).argsort(1).argsort(1)
    return ranks < counts[:, None]


class NextScaleTask(GeneratorTask):
    """The same for generators that read the latents so far, which the tokenizer makes of the tokens.

    With `mistakes`, it learns to correct what it will get wrong: some tokens are swapped, and those of later maps
    become the ones that come closest to the picture all the same (arXiv:2412.04431, section 3.3, there with bits).
    """

    def __init__(self, *args: Any, mistakes: MistakesConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mistakes = mistakes

    def loss(self, tokens: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        if self.mistakes is None:
            return super().loss(tokens, labels, generator)
        layout = self.model.config.layout
        seen, tokens = with_mistakes(self.quantizer, tokens, layout, self.mistakes, generator)
        return cross_entropy(self.model(seen, labels), tokens)

    def logits(self, model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self.quantizer.inputs(tokens, model.config.layout)
        return model(seen, labels)

    @property
    def quantizer(self) -> ResidualQuantizer:
        (tokenizer,) = self._tokenizer
        if tokenizer is None:
            raise ValueError("a next-scale generator is trained with its tokenizer, which makes latents of tokens")
        return cast(ResidualQuantizer, tokenizer.quantizer)


@torch.no_grad()
def with_mistakes(
    quantizer: ResidualQuantizer,
    tokens: Tensor,
    layout: ScaleLayout,
    config: MistakesConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Tokens b n -> what is seen before each map but the first, b (n - n_0) d, and the tokens to predict, b n.

    The picture to come close to is what the given tokens decode to. Randomness is the generator's, on the CPU.
    """
    latents, total = quantizer.codes(layout.unflatten(tokens)), quantizer.start(len(tokens), layout)
    strength = torch.rand(len(tokens), 1, 1, generator=generator).clamp_min(1e-6)  # of each image
    seen, right = [total[:, :0].flatten(1, 2)], []
    for stage, size in enumerate(layout.sizes):
        if stage:
            seen.append(quantizer.seen(total, stage, layout).flatten(1, 2))
        rest = quantizer.view.rest(latents, total, stage, layout)
        draws = draw((len(tokens), *size), config.neighbours, generator)
        draws = Draws((draws.chance / strength).to(rest.device), draws.rank.to(rest.device))
        chosen = perturb(quantizer.quantizer_of(stage), rest, draws, rate=config.share, neighbours=config.neighbours)
        right.append(chosen.clean.flatten(1))
        total = quantizer.accumulate(total, chosen.indices, stage, layout)
    return torch.cat(seen, dim=1), torch.cat(right, dim=1)


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over b n of logits b n v, in float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())


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
