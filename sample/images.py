"""Conditions to images, batch by batch: image i is the same whatever the batch size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.condition import LabelCondition
from imgtok.generators.generator import Generator
from imgtok.generators.hub import AnyGenerator
from imgtok.generators.masked import MaskedGenerator
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.sample.engine import Clock, Drawn, sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.kept import Kept
from imgtok.sample.law import Law
from imgtok.sample.masked import MaskedLoop, Unmasking
from imgtok.sample.measure import with_peak
from imgtok.sample.next_scale import StageByStage, StageStrategy, check_smooth, sample_stages
from imgtok.sample.next_scale import new_cache as new_stage_cache
from imgtok.sample.noise import image_keys
from imgtok.sample.plain import Plain
from imgtok.sample.scorer import new_cache
from imgtok.sample.smooth import Smooth
from imgtok.sample.strategy import Progress, Strategy
from imgtok.sample.tuner import Tuner
from imgtok.tokenizer import Tokenizer
from imgtok.tokens import SequenceLayout, TokenLayout

logger = logging.getLogger(__name__)

OnPreview = Callable[[int, Tensor], None]


@dataclass
class Statistics:
    """What drawing took, summed up over batches. Timing the parts of a round makes a GPU wait after each."""

    images: int = 0
    tokens: int = 0
    calls: int = 0
    """Network calls, counted for each image of a batch until it was finished."""
    accepted: list[int] = field(default_factory=list)
    """How many of them committed 0, 1, 2, … tokens."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By part of a round: draft, model, law, couple; `rounds` for all of it, where that is compiled."""
    peak_bytes: int = 0
    """Memory in use at most, beyond what was in use before."""

    def add(self, drawn: Drawn, clock: Clock, peak: int | None) -> None:
        self.images += len(drawn.tokens)
        self.tokens += drawn.tokens.numel()
        self.calls += int(drawn.calls.sum())
        counts = drawn.accepted.tolist()
        longest = max(len(counts), len(self.accepted))
        padded = (row + [0] * (longest - len(row)) for row in (counts, self.accepted))
        self.accepted = [one + other for one, other in zip(*padded, strict=True)]
        for part, seconds in clock.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.peak_bytes = max(self.peak_bytes, peak or 0)

    @property
    def calls_per_image(self) -> float:
        return self.calls / max(self.images, 1)

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / max(self.calls, 1)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What to draw from and how. ValueError for an empty batch, and for mixtures with a strategy that needs tokens."""

    law: Law = field(default_factory=Law)
    guidance: Guidance = field(default_factory=Guidance)
    strategy: Strategy | Tuner | StageStrategy = field(default_factory=Plain)
    """Those that are `pathwise` give the images of plain sampling in fewer network calls. A `StageStrategy` is for
    next-scale generators, the others but `Plain` for next-token ones."""
    smooth: Smooth | None = None
    """Of next-scale generators alone: add up mixtures of codes in place of single ones."""
    unmasking: Unmasking = field(default_factory=Unmasking)
    """Of masked generators alone."""
    num_tokens: int | None = None
    """Draw and decode only the first tokens of a sequence, this many; None: all. Of next-token generators alone, for
    tokenizers whose first tokens matter most. A generator that is told a length is told this one."""
    batch_size: int = 16
    """Images drawn together; changes none of them."""
    compile: bool = False
    """Run each round as compiled code. It takes about a minute when the first batch is drawn (and again for a last
    batch of another size), and pays for many images."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if isinstance(self.strategy, StageStrategy):
            check_smooth(self.smooth, self.strategy)


def generate(
    generator: AnyGenerator,
    tokenizer: Tokenizer,
    condition: Any,
    config: SamplerConfig | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    statistics: Statistics | None = None,
    on_preview: OnPreview | None = None,
    preview_every: int = 16,
) -> Iterator[Tensor]:
    """Draws one image per row of `condition`, yielding batches b 3 h w in [-1, 1] as they are finished.

    Row i becomes image `first + i` of `seed`: it depends on nothing else, so a run may be cut into any batches.
    `config`: how (default: token by token from the generator's own law). `statistics` is added to. `on_preview` sees
    the number of a batch's first image and its unfinished images, every `preview_every` network calls. ValueError if
    the tokenizer's codes or grid are not the generator's.
    """
    check_pair(generator, tokenizer)
    layout = generator.config.layout
    by_stage = isinstance(generator, NextScaleGenerator)

    def preview(number: int, unfinished: Tensor) -> None:
        assert on_preview is not None
        latents = (
            unfinished if by_stage else tokenizer.quantizer.codes(layout_of(unfinished, layout).unflatten(unfinished))
        )
        on_preview(number, tokenizer.decode_latents(latents).clamp(-1, 1))

    for drawn in draw_batches(
        generator,
        condition,
        config,
        quantizer=tokenizer.quantizer,
        seed=seed,
        first=first,
        statistics=statistics,
        on_preview=preview if on_preview else None,
        preview_every=preview_every,
    ):
        yield decoded(drawn, tokenizer, layout)


def generate_tokens(
    generator: AnyGenerator,
    condition: Any,
    config: SamplerConfig | None = None,
    *,
    quantizer: Any = None,
    kept: Kept | None = None,
    seed: int = 0,
    first: int = 0,
    statistics: Statistics | None = None,
    on_preview: OnPreview | None = None,
    preview_every: int = 16,
) -> Iterator[Tensor]:
    """The same without decoding: batches of tokens b n. `on_preview` sees tokens; of next-scale generators, latents.

    A next-scale generator needs its tokenizer's `quantizer`. `kept`: what stays of pictures, one a row (see `edit`).
    Where memory does not suffice, batches are halved, with a warning; the images stay the same.
    """
    for drawn in draw_batches(
        generator,
        condition,
        config,
        quantizer=quantizer,
        kept=kept,
        seed=seed,
        first=first,
        statistics=statistics,
        on_preview=on_preview,
        preview_every=preview_every,
    ):
        yield drawn.tokens


def draw_batches(
    generator: AnyGenerator,
    condition: Any,
    config: SamplerConfig | None,
    *,
    quantizer: Any,
    kept: Kept | None = None,
    seed: int,
    first: int,
    statistics: Statistics | None,
    on_preview: OnPreview | None,
    preview_every: int,
) -> Iterator[Drawn]:
    """All that is known of each batch; arguments as in `generate_tokens`."""
    config, total = config or SamplerConfig(), count(condition)
    if total < 1:
        raise ValueError("there are no conditions to draw images of; give at least one")
    check_length(generator, config)
    condition = told_length(generator, condition, config.num_tokens)
    loop: TokenLoop | StageLoop | MaskedLoop
    if isinstance(generator, NextScaleGenerator):
        loop = StageLoop(generator, quantizer, config)
    elif isinstance(generator, MaskedGenerator):
        check_no_stages(config)
        check_plain(config)
        loop = MaskedLoop(generator, config.law, config.guidance, config.unmasking)
    else:
        loop = TokenLoop(generator, config)

    def draw(start: int, rows: int) -> Drawn:
        clock = Clock(generator.device) if statistics else None
        keys = image_keys(seed, range(first + start, first + start + rows), generator.device)
        look = None if on_preview is None else partial(on_preview, first + start)
        here = slice(start, start + rows)
        part, stays = generator.condition.select(condition, here), None if kept is None else kept.rows(here)
        ask = partial(loop.draw, part, keys, stays, clock, look, preview_every)
        drawn, peak = with_peak(ask, generator.device) if statistics else (ask(), None)
        if statistics and clock:
            statistics.add(drawn, clock, peak)
        return drawn

    yield from in_parts(total, config.batch_size, draw, loop.forget)


@torch.no_grad()
def decoded(drawn: Drawn, tokenizer: Tokenizer, layout: TokenLayout) -> Tensor:
    """b 3 h w in [-1, 1]: from the latents where drawing has added them up, otherwise from the tokens."""
    if drawn.latents is None:
        return tokenizer.decode(drawn.tokens, layout_of(drawn.tokens, layout))
    return tokenizer.decode_latents(drawn.latents).clamp(-1, 1)


def layout_of(tokens: Tensor, layout: TokenLayout) -> TokenLayout:
    """A sequence may be drawn in part."""
    return SequenceLayout(tokens.shape[1]) if isinstance(layout, SequenceLayout) else layout


Look = Callable[[Tensor], None]


class TokenLoop:
    """Next-token generators: by a strategy, which may learn from batch to batch; caches are used again."""

    def __init__(self, generator: Generator, config: SamplerConfig) -> None:
        check_no_stages(config)
        self.generator, self.config, self.strategy = generator, config, cast(Strategy | Tuner, config.strategy)
        self.caches: dict[tuple[int, int], KVCache] = {}
        self.earlier: Any = None

    def draw(
        self, condition: Any, keys: Tensor, kept: Kept | None, clock: Clock | None, look: Look | None, every: int
    ) -> Drawn:
        config, generator = self.config, self.generator
        way = self.strategy.strategy() if isinstance(self.strategy, Tuner) else self.strategy
        shape = len(keys), way.window
        if shape not in self.caches:
            self.caches[shape] = new_cache(generator, len(keys), config.guidance, way.window)
        drawn = sample_tokens(
            generator,
            condition,
            keys,
            law=config.law,
            guidance=config.guidance,
            strategy=way,
            forced=None if kept is None else kept.tokens,
            num_tokens=config.num_tokens,
            cache=self.caches[shape],
            clock=clock,
            on_round=previewer(look, config.num_tokens or generator.num_tokens, every),
            earlier=self.earlier,
            compile=config.compile,
        )
        if isinstance(self.strategy, Tuner):
            self.strategy.learn(drawn)
        self.earlier = drawn.memory
        return drawn

    def forget(self) -> None:
        self.caches.clear()


class StageLoop:
    """Next-scale generators: by a strategy over stages. ValueError for what only next-token generators know."""

    def __init__(self, generator: NextScaleGenerator, quantizer: Any, config: SamplerConfig) -> None:
        if quantizer is None:
            raise ValueError("a next-scale generator sees latents: give its tokenizer's quantizer")
        if isinstance(config.strategy, StageStrategy) and not config.compile:
            self.strategy = config.strategy
        else:
            check_plain(config)
            self.strategy = StageByStage()
        self.generator, self.quantizer, self.config = generator, quantizer, config
        self.caches: dict[int, KVCache] = {}

    def draw(
        self, condition: Any, keys: Tensor, kept: Kept | None, clock: Clock | None, look: Look | None, every: int
    ) -> Drawn:
        """`look` sees the latents after every stage."""
        generator, config, rows = self.generator, self.config, len(keys)
        if rows not in self.caches:
            self.caches[rows] = new_stage_cache(generator, rows, config.guidance)
        return sample_stages(
            generator,
            self.quantizer,
            condition,
            keys,
            law=config.law,
            guidance=config.guidance,
            strategy=self.strategy,
            smooth=config.smooth,
            kept=kept,
            cache=self.caches[rows],
            clock=clock,
            on_stage=None if look is None else lambda stage, latents: look(latents),
        )

    def forget(self) -> None:
        self.caches.clear()


def check_length(generator: AnyGenerator, config: SamplerConfig) -> None:
    """ValueError for a number of tokens that the generator cannot stop at."""
    if config.num_tokens is None:
        return
    if not isinstance(generator, Generator) or not isinstance(generator.config.layout, SequenceLayout):
        raise ValueError("only next-token generators of a sequence can stop early: leave num_tokens out")
    if not 1 <= config.num_tokens <= generator.num_tokens:
        raise ValueError(f"num_tokens must be between 1 and {generator.num_tokens}, got {config.num_tokens}")


def told_length(generator: AnyGenerator, condition: Any, num_tokens: int | None) -> Any:
    """The condition with the number of tokens that will be drawn, for generators that are told it."""
    if not isinstance(generator, Generator) or not isinstance(generator.condition, LabelCondition):
        return condition
    lengths = torch.full((count(condition),), num_tokens or generator.num_tokens, device=condition.device)
    return generator.condition.with_lengths(condition, lengths)


def check_plain(config: SamplerConfig) -> None:
    """ValueError for what only next-token generators know."""
    if not isinstance(config.strategy, Plain) or config.compile:
        raise ValueError(
            "strategies and compiled rounds are for next-token generators; one that draws many tokens at a time has "
            "its own way: leave the strategy plain and compile off"
        )


def in_parts(total: int, size: int, draw: Callable[[int, int], Drawn], forget: Callable[[], None]) -> Iterator[Drawn]:
    """draw(start, rows) for all of `total` rows; after an error for want of memory, `forget` and go on with half."""
    start = 0
    while start < total:
        rows = min(size, total - start)
        try:
            part = draw(start, rows)
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
            size = (rows + 1) // 2
            told = "out of memory with batch_size %d: going on with %d, same images; batch_size %d avoids this"
            logger.warning(told, rows, size, size)
            forget()
            continue
        start += rows
        yield part


def previewer(look: Look | None, num_tokens: int, every: int) -> Callable[[Progress], None] | None:
    """Shows the tokens so far, every so many rounds; places that are not drawn yet repeat the first token."""
    if look is None:
        return None
    rounds = 0

    def after(progress: Progress) -> None:
        nonlocal rounds
        rounds += 1
        if rounds % every == 0:
            tokens, places = progress.tokens[:, :num_tokens], torch.arange(num_tokens, device=progress.start.device)
            look(torch.where(places <= progress.start[:, None], tokens, tokens[:, :1]))

    return after


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def count(condition: Any) -> int:
    """Rows of a condition, be it one tensor or several."""
    return len(condition if isinstance(condition, Tensor) else condition[0])


def check_no_stages(config: SamplerConfig) -> None:
    """ValueError for what only next-scale generators know."""
    stages = type(config.strategy).__name__ if isinstance(config.strategy, StageStrategy) else None
    given = stages or (config.smooth and "smooth")
    if given:
        raise ValueError(f"{given} is for next-scale generators, which this one is not; leave it out")


def check_pair(generator: AnyGenerator, tokenizer: Tokenizer) -> None:
    codes, size = generator.config.codebook_size, tokenizer.quantizer.codebook_size
    if codes != size:
        raise ValueError(
            f"the generator draws from {codes} codes but the tokenizer has {size}; they do not belong together"
        )
    own = generator.config.layout
    maps, others = len(own.group_sizes), len(tokenizer.config.layout.group_sizes)
    if maps != others:
        raise ValueError(
            f"the generator draws {maps} maps of tokens an image but the tokenizer has {others}; "
            "they do not belong together"
        )
