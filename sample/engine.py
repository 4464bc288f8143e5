"""The one loop that draws tokens: draft, score, couple, commit; images of a batch at different places."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.generator import Generator
from imgtok.sample.compiled import compiling, own_tensors
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law, settled
from imgtok.sample.measure import synchronize
from imgtok.sample.plain import Plain
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import AnyLaw, Job, Progress, Strategy

OnRound = Callable[[Progress], None]


class Drawn(NamedTuple):
    tokens: Tensor
    """b n"""
    calls: Tensor
    """b, network calls that each image took."""
    accepted: Tensor
    """How many calls of unfinished images committed 0, 1, 2, … tokens: int64 [window + 2]."""
    memory: Any
    """The strategy's, for the next batch."""
    latents: Tensor | None = None
    """b h w d, what the tokens of a next-scale generator add up to."""


@dataclass
class Clock:
    """Seconds spent in the parts of a round; reading it on a device other than a CPU makes each part wait."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    since: float = 0.0

    def start(self) -> None:
        synchronize(self.device)
        self.since = time.perf_counter()

    def stop(self, part: str) -> None:
        before = self.since
        self.start()
        self.seconds[part] = self.seconds.get(part, 0.0) + self.since - before


@dataclass
class Round:
    """One round of a batch, a function of tensors alone: fixed shapes, no host synchronisation."""

    job: Job
    strategy: Strategy
    clock: Clock | None = None

    def __call__(self, progress: Progress, memory: Any, accepted: Tensor, columns: int) -> tuple[Progress, Any, Tensor]:
        job, strategy = self.job, self.strategy
        draft, memory = strategy.draft(job, progress, memory)
        self.tick("draft")
        nodes = torch.cat([progress.root, draft.tokens], dim=1)
        logits = job.scorer(nodes, progress.start, columns, draft.tree)
        self.tick("model")
        log_law = job.law(logits)
        if job.forced is not None:
            steps = torch.arange(nodes.shape[1], device=nodes.device) if draft.tree is None else draft.tree.depths
            log_law = settled(log_law, job.forced.gather(1, progress.next + steps))
        self.tick("law")
        verdict, memory = strategy.couple(job, progress, draft, log_law, memory)
        if verdict.path is not None:
            job.scorer.commit(verdict.path, progress.start)
        room = job.total - progress.next[:, 0]
        count = torch.minimum(verdict.num_new, room)
        places = progress.next + torch.arange(verdict.tokens.shape[1], device=count.device)
        tokens = progress.tokens.scatter(1, places, verdict.tokens)  # beyond those: overwritten later, or never read
        busy = (room > 0).long()
        numeric = progress.numeric & logits.sum((1, 2)).isfinite()
        self.tick("couple")
        return (
            Progress(tokens, progress.start + count, progress.rounds + busy, numeric),
            memory,
            accepted.scatter_add(0, count, busy),
        )

    def tick(self, part: str) -> None:
        if self.clock is not None:
            self.clock.stop(part)


@torch.no_grad()
def sample_tokens(
    generator: Generator,
    condition: Any,
    keys: Tensor,
    *,
    law: AnyLaw | None = None,
    guidance: Guidance | None = None,
    strategy: Strategy | None = None,
    forced: Tensor | None = None,
    num_tokens: int | None = None,
    cache: KVCache | None = None,
    on_round: OnRound | None = None,
    ask_every: int | None = None,
    clock: Clock | None = None,
    earlier: Any = None,
    compile: bool = False,
) -> Drawn:
    """Draws tokens b n for a batch of conditions; keys b 2 (`image_keys`) decide them, whatever else is in the batch.

    `forced`: tokens b n that are given in advance, -1 where they are to be drawn; what is drawn is what follows given
    the ones before it, with the noise of its place.
    `cache`: memory to use again, from `new_cache` with the strategy's window as spare places. `num_tokens`: stop
    early. `on_round` sees the progress after each round. `ask_every`: rounds between two looks at how far the images
    are, which wait for the device (default: every round on a CPU, every 8th elsewhere). `earlier`: the memory that an
    earlier batch of the same strategy has left, for strategies that learn. `compile`: run rounds as compiled code,
    which takes about a minute when their like is first met (the clock then knows only whole rounds). ValueError if
    the generator gives logits that are no numbers, or is packed and to be compiled, and for forced tokens with a
    strategy that is not exact.
    """
    law, guidance, strategy = law or Law(), guidance or Guidance(), strategy or Plain()
    rows, total, device = len(keys), num_tokens or generator.num_tokens, keys.device
    ask_every = ask_every or (1 if device.type == "cpu" else 8)
    scorer = Scorer(generator, condition, guidance, rows, strategy.window, cache)
    most = strategy.window + 1  # tokens that a round can commit
    given = None if forced is None else with_room(forced[:, :total], most, strategy)
    job = Job(generator, condition, law, guidance, keys, total, scorer, given)
    if not compile:  # compiled rounds make it in one piece with what they do with it
        job = job.with_noise(total + 2 * most)
    progress = beginning(rows, total + most, device)
    memory, accepted = strategy.begin(job, earlier), torch.zeros(most + 1, dtype=torch.int64, device=device)
    advance = Round(job, strategy, None if compile else clock)
    if compile:
        progress, memory = own_tensors((progress, memory))
    if clock is not None:
        clock.start()
    least = furthest = rounds = 0  # of tokens committed, as far as the host knows
    with compiling(Round.__call__, generator, "columns") if compile else nullcontext(Round.__call__) as run:
        while least < total:
            scorer.forget_null(least)
            columns = scorer.columns(min(furthest, total) + most)
            progress, memory, accepted = run(advance, progress, memory, accepted, columns)
            rounds, furthest = rounds + 1, furthest + most
            if strategy.window == 0:
                least = furthest
            elif rounds % ask_every == 0:
                least, furthest = (int(end) + 1 for end in progress.start.aminmax())
            if on_round is not None:
                on_round(progress)
    if compile and clock is not None:
        clock.stop("rounds")
    check_numeric(progress.numeric)
    return Drawn(progress.tokens[:, :total], progress.rounds, accepted, memory)


def with_room(forced: Tensor, room: int, strategy: Strategy) -> Tensor:
    """b n -> b n + room, with nothing given in the room."""
    if strategy.guarantee not in ("pathwise", "exact"):
        raise ValueError(
            f"{type(strategy).__name__} may put a similar token in the place of one that is given in advance; "
            "use a strategy that is pathwise or exact, such as Jacobi"
        )
    return F.pad(forced, (0, room), value=-1)


def beginning(rows: int, length: int, device: torch.device) -> Progress:
    nothing = torch.zeros(rows, length + 1, dtype=torch.int64, device=device)
    return Progress(nothing[:, :length], nothing[:, 0] - 1, nothing[:, 0], nothing[:, 0] == 0)


def check_numeric(numeric: Tensor) -> None:
    """Waits for the device, once a batch."""
    if numeric.device.type != "meta" and not bool(numeric.all()):
        raise ValueError(
            f"the generator's logits are not finite numbers for {int((~numeric).sum())} of {len(numeric)} images; "
            "use float32, a smaller guidance scale, or check the weights"
        )
