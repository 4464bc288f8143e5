"""Stage by stage: all tokens of a stage are drawn in one network call, given the latents so far (arXiv:2404.02905)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.quantizers.vector import VectorQuantizer
from imgtok.quantizers.views import View
from imgtok.sample.engine import Clock, Drawn, check_numeric
from imgtok.sample.guidance import Guidance, last_guided
from imgtok.sample.kept import Kept
from imgtok.sample.law import Law
from imgtok.sample.noise import gumbel
from imgtok.sample.smooth import Smooth
from imgtok.sample.stage_scorer import StageScorer
from imgtok.sample.strategy import AnyLaw, Guarantee
from imgtok.tokens import ScaleLayout

OnStage = Callable[[int, Tensor], None]


class Stages(Protocol):
    """What is asked of the tokenizer's quantizer: a `ResidualQuantizer`."""

    view: View

    def quantizer_of(self, stage: int) -> VectorQuantizer: ...

    def accumulate(self, latents: Tensor, indices: Tensor, stage: int, layout: ScaleLayout) -> Tensor: ...

    def seen(self, latents: Tensor, stage: int, layout: ScaleLayout) -> Tensor: ...

    def nearest_after(self, latents: Tensor, total: Tensor, stage: int, layout: ScaleLayout) -> Tensor: ...


@dataclass(frozen=True)
class StageJob:
    """What stays the same over the stages of a batch."""

    generator: NextScaleGenerator
    quantizer: Stages
    condition: Tensor
    """b k"""
    keys: Tensor
    """b 2, one of each image."""
    law: AnyLaw
    guidance: Guidance
    scorer: StageScorer
    """Of the generator itself."""
    kept: Kept | None = None
    smooth: Smooth | None = None

    @property
    def layout(self) -> ScaleLayout:
        return self.generator.config.layout

    def scorer_of(self, generator: NextScaleGenerator) -> StageScorer:
        """Of another generator for the same images, with a cache of its own."""
        rows = len(self.keys)
        return StageScorer(generator, self.condition, self.guidance, rows, new_cache(generator, rows, self.guidance))


class Canvas:
    """The images of a batch, as far as their stages are drawn."""

    def __init__(self, job: StageJob, on_stage: OnStage | None = None, clock: Clock | None = None) -> None:
        config, rows, device = job.generator.config, len(job.keys), job.keys.device
        self.job, self.on_stage, self.clock = job, on_stage, clock
        self.latents = torch.zeros(rows, *job.layout.latent_shape, config.codebook_dim, device=device)
        self.tokens, self.seen = list[Tensor](), list[Tensor]()
        """b n_k of each stage; b n_k d, what each stage but the first sees, up to the next one."""
        self.numeric = torch.ones(rows, dtype=torch.bool, device=device)

    @property
    def stage(self) -> int:
        """The next one."""
        return len(self.tokens)

    @property
    def finished(self) -> bool:
        return self.stage == len(self.job.layout.group_sizes)

    def ask(self, scorer: StageScorer) -> None:
        """Draws the next stage from one network call."""
        logits = scorer(self.stage, self.seen[-1] if self.seen else None)
        self.tick("model")
        self.add(logits)

    def add(self, logits: Tensor) -> Tensor:
        """Draws the next stage's tokens b n_k from guided logits b n_k v, and adds their codes to the latents."""
        job, layout, stage = self.job, self.job.layout, self.stage
        log_law = job.law(logits)
        self.tick("law")
        start = sum(layout.group_sizes[:stage])
        places = torch.arange(start, start + logits.shape[1], device=logits.device).expand(len(logits), -1)
        noise = gumbel(job.keys, places, logits.shape[-1])
        chosen, self.latents = self.chosen(log_law, noise, start) if job.smooth is None else self.mixed(log_law, noise)
        self.numeric = self.numeric & logits.sum((1, 2)).isfinite()
        self.tokens.append(chosen)
        if not self.finished:
            self.seen.append(job.quantizer.seen(self.latents, self.stage, layout).flatten(1, 2))
        self.tick("latents")
        if self.on_stage is not None:
            self.on_stage(stage, self.latents)
        return chosen

    def chosen(self, log_law: Tensor, noise: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Tokens b n_k, and the latents with their codes; the first token of the stage stands at `start`."""
        quantizer, kept, layout = self.job.quantizer, self.job.kept, self.job.layout
        tokens = (log_law + noise).argmax(-1)
        if kept is not None:
            own = quantizer.nearest_after(kept.latents, self.latents, self.stage, layout).flatten(1)
            tokens = torch.where(kept.tokens[:, start : start + tokens.shape[1]] < 0, tokens, own)
        return tokens, quantizer.accumulate(self.latents, self.on_map(tokens), self.stage, layout)

    def mixed(self, log_law: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of largest weight b n_k, and the latents with mixtures of all codes."""
        quantizer, smooth, layout = self.job.quantizer, self.job.smooth, self.job.layout
        assert smooth is not None
        scores = smooth.scores(log_law, noise, self.stage, len(layout.sizes))
        codes = self.on_map(scores.softmax(-1) @ all_codes(quantizer, self.stage, scores.device))
        return scores.argmax(-1), self.latents + quantizer.view.restore(codes, self.stage, layout)

    def on_map(self, values: Tensor) -> Tensor:
        """b n_k ... -> b h_k w_k ..., of the next stage"""
        return values.unflatten(1, self.job.layout.sizes[self.stage])

    def tick(self, part: str) -> None:
        tick(self.clock, part)


class StageStrategy(ABC):
    """Who is asked for which stages. A frozen dataclass; one file of strategies has all it needs."""

    guarantee: ClassVar[Guarantee]
    takes_mixtures: ClassVar[bool] = True
    """Whether it may draw with `Smooth`, where tokens do not tell the latents."""

    @abstractmethod
    def draw(self, job: StageJob, canvas: Canvas) -> list[int]:
        """Adds all stages to the canvas. Returns how many of them each network call that committed some has committed;
        calls that only draft are not counted."""


@dataclass(frozen=True)
class StageByStage(StageStrategy):
    """One network call for each stage: the sampler that the others are measured by."""

    guarantee: ClassVar[Guarantee] = "pathwise"

    def draw(self, job: StageJob, canvas: Canvas) -> list[int]:
        return finish(canvas, job.scorer)


@torch.no_grad()
def sample_stages(
    generator: NextScaleGenerator,
    quantizer: Stages,
    condition: Tensor,
    keys: Tensor,
    *,
    law: AnyLaw | None = None,
    guidance: Guidance | None = None,
    strategy: StageStrategy | None = None,
    smooth: Smooth | None = None,
    kept: Kept | None = None,
    cache: KVCache | None = None,
    on_stage: OnStage | None = None,
    clock: Clock | None = None,
) -> Drawn:
    """Draws tokens b n for conditions b k; keys b 2 (`image_keys`) decide them, whatever else is in the batch.

    A token's noise belongs to its place in the sequence of all stages. Guidance counts stages: "linear" rises from
    none at the first to its full scale at the last. `smooth`: the latents add up mixtures of codes, and the tokens are
    those of the largest weight. `kept`: its places get the tokens that come closest to its latents after what the
    stages before have drawn (its own tokens would not: they code what its own coarser tokens have left).
    `cache`: memory to use again, from `new_cache`. `on_stage` sees each stage's number and the latents b h w d after
    it. ValueError if the generator gives logits that are no numbers, and for mixtures with what needs tokens.
    """
    law, guidance, strategy = law or Law(), guidance or Guidance(), strategy or StageByStage()
    check_smooth(smooth, strategy, kept)
    rows = len(keys)
    scorer = StageScorer(generator, condition, guidance, rows, cache or new_cache(generator, rows, guidance))
    job = StageJob(generator, quantizer, condition, keys, law, guidance, scorer, kept, smooth)
    canvas = Canvas(job, on_stage, clock)
    if clock is not None:
        clock.start()
    stages = strategy.draw(job, canvas)
    check_numeric(canvas.numeric)
    calls, counts = torch.full((rows,), len(stages)), committed(stages, job)
    return Drawn(torch.cat(canvas.tokens, dim=1), calls, counts, None, canvas.latents)


def new_cache(generator: NextScaleGenerator, rows: int, guidance: Guidance) -> KVCache:
    guided = last_guided(guidance.scales(generator.num_stages)) > 0
    return generator.new_cache(2 * rows if guided else rows)


def finish(canvas: Canvas, scorer: StageScorer) -> list[int]:
    """Draws the rest stage by stage. Returns how many stages each call committed."""
    calls = list[int]()
    while not canvas.finished:
        canvas.ask(scorer)
        calls.append(1)
    return calls


def committed(stages: list[int], job: StageJob) -> Tensor:
    """How many calls committed 0, 1, 2, … tokens of an image, over the batch; `stages` of each call."""
    sizes = torch.tensor(job.layout.group_sizes).split(stages)
    return torch.bincount(torch.stack([part.sum() for part in sizes])) * len(job.keys)


def all_codes(quantizer: Stages, stage: int, device: torch.device) -> Tensor:
    """v d"""
    codebook = quantizer.quantizer_of(stage)
    return codebook.codes(torch.arange(codebook.codebook_size, device=device))


def check_smooth(smooth: Smooth | None, strategy: StageStrategy, kept: Kept | None = None) -> None:
    if smooth is None:
        return
    if kept is not None:
        raise ValueError("an edit is decoded from its tokens, which mixtures of codes do not tell; leave smooth off")
    if not strategy.takes_mixtures:
        raise ValueError(
            f"{type(strategy).__name__} compares tokens, but with smooth what later stages see is not told by tokens; "
            "leave smooth off or draw stage by stage"
        )


def tick(clock: Clock | None, part: str) -> None:
    if clock is not None:
        clock.stop(part)
