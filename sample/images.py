"""Conditions to images, batch by batch: image i is the same whatever the batch size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.generator import Generator
from imgtok.sample.engine import Clock, Drawn, sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.measure import with_peak
from imgtok.sample.noise import image_keys
from imgtok.sample.plain import Plain
from imgtok.sample.scorer import new_cache
from imgtok.sample.strategy import Progress, Strategy
from imgtok.sample.tuner import Tuner
from imgtok.tokenizer import Tokenizer

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
    """What to draw from and how. ValueError for an empty batch."""

    law: Law = field(default_factory=Law)
    guidance: Guidance = field(default_factory=Guidance)
    strategy: Strategy | Tuner = field(default_factory=Plain)
    """Those that are `pathwise` give the images of plain sampling in fewer network calls."""
    batch_size: int = 16
    """Images drawn together; changes none of them."""
    compile: bool = False
    """Run each round as compiled code. It takes about a minute when the first batch is drawn (and again for a last
    batch of another size), and pays for many images."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


def generate(
    generator: Generator,
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

    def preview(number: int, tokens: Tensor) -> None:
        assert on_preview is not None
        on_preview(number, tokenizer.decode(tokens, layout))

    for tokens in generate_tokens(
        generator,
        condition,
        config,
        seed=seed,
        first=first,
        statistics=statistics,
        on_preview=preview if on_preview else None,
        preview_every=preview_every,
    ):
        yield tokenizer.decode(tokens, layout)


def generate_tokens(
    generator: Generator,
    condition: Any,
    config: SamplerConfig | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    statistics: Statistics | None = None,
    on_preview: OnPreview | None = None,
    preview_every: int = 16,
) -> Iterator[Tensor]:
    """The same without decoding: batches of tokens b n.

    Where memory does not suffice, batches are halved, with a warning; the images stay the same.
    """
    config, total = config or SamplerConfig(), count(condition)
    if total < 1:
        raise ValueError("there are no conditions to draw images of; give at least one")
    caches: dict[tuple[int, int], KVCache] = {}
    earlier: Any = None

    def draw(start: int, rows: int) -> Tensor:
        nonlocal earlier
        way = config.strategy.strategy() if isinstance(config.strategy, Tuner) else config.strategy
        if (rows, way.window) not in caches:
            caches[rows, way.window] = new_cache(generator, rows, config.guidance, way.window)
        clock = Clock(generator.device) if statistics else None
        ask = partial(
            sample_tokens,
            generator,
            generator.condition.select(condition, slice(start, start + rows)),
            image_keys(seed, range(first + start, first + start + rows), generator.device),
            law=config.law,
            guidance=config.guidance,
            strategy=way,
            cache=caches[rows, way.window],
            clock=clock,
            on_round=previewer(on_preview, first + start, generator.num_tokens, preview_every),
            earlier=earlier,
            compile=config.compile,
        )
        drawn, peak = with_peak(ask, generator.device) if statistics else (ask(), None)
        if statistics and clock:
            statistics.add(drawn, clock, peak)
        if isinstance(config.strategy, Tuner):
            config.strategy.learn(drawn)
        earlier = drawn.memory
        return drawn.tokens

    yield from in_parts(total, config.batch_size, draw, caches.clear)


def in_parts(total: int, size: int, draw: Callable[[int, int], Tensor], forget: Callable[[], None]) -> Iterator[Tensor]:
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


def previewer(
    on_preview: OnPreview | None, number: int, num_tokens: int, every: int
) -> Callable[[Progress], None] | None:
    """Shows the tokens so far, every so many rounds; places that are not drawn yet repeat the first token."""
    if on_preview is None:
        return None
    rounds = 0

    def look(progress: Progress) -> None:
        nonlocal rounds
        rounds += 1
        if rounds % every == 0:
            tokens, places = progress.tokens[:, :num_tokens], torch.arange(num_tokens, device=progress.start.device)
            on_preview(number, torch.where(places <= progress.start[:, None], tokens, tokens[:, :1]))

    return look


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def count(condition: Any) -> int:
    """Rows of a condition, be it one tensor or several."""
    return len(condition if isinstance(condition, Tensor) else condition[0])


def check_pair(generator: Generator, tokenizer: Tokenizer) -> None:
    codes, size = generator.config.codebook_size, tokenizer.quantizer.codebook_size
    if codes != size:
        raise ValueError(
            f"the generator draws from {codes} codes but the tokenizer has {size}; they do not belong together"
        )
