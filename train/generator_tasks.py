"""What generators learn by: the law of tokens that they do not see, each kind in its order."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.data import grid
from imgtok.data.transforms import to_uint8
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.masked import MaskedConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.perturb import Draws, draw, swap
from imgtok.quantizers.residual import ResidualQuantizer
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate
from imgtok.sample.law import Law
from imgtok.tokencache import TokenCache
from imgtok.tokenizer import Tokenizer
from imgtok.tokens import ScaleLayout
from imgtok.train.data import TokenBatch
from imgtok.train.generator_config import MaskedSizes, MistakesConfig
from imgtok.train.tasks import Output, spread


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

    def networks(self) -> list[nn.Module]:
        return [self.model]

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


class PrefixTask(GeneratorTask):
    """The same from the first tokens of each image alone, so many as nested dropout keeps; it may be told how many.

    What comes after them is not learnt. It is not seen either, as tokens only see those before them.
    """

    def __init__(self, prefix: NestedDropout, *args: Any) -> None:
        super().__init__(*args)
        self.prefix = prefix

    def forward(self, batch: TokenBatch, step: int, generator: torch.Generator) -> Output:
        kept = self.prefix.draw(*batch.tokens.shape)
        longest = int(kept.max())
        kept, tokens = kept.to(batch.tokens.device), batch.tokens[:, :longest]
        labels = self.model.condition.drop(self.model.condition.with_lengths(batch.labels, kept), generator)
        losses = prefix_cross_entropy(self.logits(self.model, tokens, labels), tokens, kept)
        return Output({"cross_entropy": losses.sum() / kept.sum()}, {})

    def score(self, model: Any, tokens: Tensor, labels: Tensor) -> Tensor:
        """Of all tokens."""
        whole = torch.full_like(tokens[:, 0], tokens.shape[1])
        return super().score(model, tokens, model.condition.with_lengths(labels, whole))


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
        chosen = swap(quantizer.quantizer_of(stage), rest, draws, rate=config.share, neighbours=config.neighbours)
        right.append(chosen.clean.flatten(1))
        total = quantizer.accumulate(total, chosen.indices, stage, layout)
    return torch.cat(seen, dim=1), torch.cat(right, dim=1)


def prefix_cross_entropy(logits: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
    """Of each row's first `kept` (b) tokens alone, summed: logits b n v and tokens b n -> b, in float32."""
    losses = F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return (losses * (torch.arange(tokens.shape[1], device=kept.device) < kept[:, None])).sum(1)


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over b n of logits b n v, in float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
