"""Chains of guesses, drawn one after the other by something cheaper: a second generator, or the first blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.generators.condition import LabelCondition, TextCondition
from imgtok.generators.generator import Generator
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.sample import coupling
from imgtok.sample.guidance import Guidance
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import (
    ACCEPTING,
    DRAFTING,
    REPLACING,
    SHARED,
    Draft,
    Guarantee,
    Job,
    Progress,
    Verdict,
    match_length,
    purpose,
)

Ask = Callable[[Tensor, Tensor], Tensor]
"""Logits b w v after each of tokens b w, the first of which stands at `start` (b)."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What the strategies of this file have in common: how their drafts are judged."""

    window: int = 4
    """Drafts in a round."""
    coupling: Literal["maximal", "block", "shared"] = "maximal"
    """"maximal": each draft is kept as often as any rule can (arXiv:2211.17192); "block": all are judged together,
    which keeps more of them (arXiv:2403.10444); "shared": drafts and tokens are chosen with the same noise
    (arXiv:2408.07978), and images are those of plain sampling."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be 1 or more, got {self.window}; Plain draws without drafts")
        if self.coupling not in ("maximal", "block", "shared"):
            raise ValueError(f'coupling must be "maximal", "block" or "shared", got {self.coupling!r}')

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise" if self.coupling == "shared" else "exact"

    def drafting(self, progress: Progress) -> Tensor | int:
        """The noise that drafts are drawn with."""
        return SHARED if self.coupling == "shared" else purpose(DRAFTING, progress)

    def judge(self, job: Job, progress: Progress, draft: Draft, log_law: Tensor) -> Verdict:
        if self.coupling == "shared":
            chosen = job.choose(log_law, progress.next + torch.arange(self.window + 1, device=log_law.device))
            return Verdict(chosen, match_length(draft.tokens, chosen) + 1)
        assert draft.law is not None
        verify = coupling.verify_block if self.coupling == "block" else coupling.verify_chain
        uniforms = chances(job, progress, self.window)
        return judged(job, progress, draft, verify(log_law.exp(), draft.law, draft.tokens, uniforms))


@dataclass(frozen=True)
class DraftModel(Chain):
    """A second, smaller generator drafts, with a cache of its own (arXiv:2211.17192, arXiv:2302.01318)."""

    generator: Generator
    """Its codes, their layout and its condition are those of the generator it drafts for."""
    _: KW_ONLY
    guidance: Guidance | None = None
    """Of the drafts; None: that of the images. Any is right, the best is the one that accepts most."""

    def begin(self, job: Job, earlier: Any = None) -> Scorer:
        return draft_scorer(job, self.generator, self.guidance, self.window)

    def draft(self, job: Job, progress: Progress, memory: Scorer) -> tuple[Draft, Scorer]:
        return draft_by_model(job, progress, memory, self.window, self.drafting(progress)), memory

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Scorer
    ) -> tuple[Verdict, Scorer]:
        return self.judge(job, progress, draft, log_law), memory


@dataclass(frozen=True)
class EarlyExit(Chain):
    """The generator's own first blocks, with its head behind them, draft; there is no second model and no second cache.

    What pays depends on how much the head understands of their outputs, for which it was not trained.
    """

    depth: int
    """How many blocks draft."""
    _: KW_ONLY
    coupling: Literal["maximal", "block", "shared"] = "shared"

    def begin(self, job: Job, earlier: Any = None) -> None:
        check_depth(self.depth, job.generator)

    def draft(self, job: Job, progress: Progress, memory: None) -> tuple[Draft, None]:
        ask = partial(job.scorer, length=job.scorer.cache.length, depth=self.depth)
        logits = ask(progress.root, progress.start)[:, 0]
        return draft_chain(job, progress, logits, ask, self.window, self.drafting(progress)), None

    def couple(self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: None) -> tuple[Verdict, None]:
        return self.judge(job, progress, draft, log_law), None


# The parts: drafting.


def draft_scorer(job: Job, generator: Generator, guidance: Guidance | None, window: int) -> Scorer:
    """A generator that drafts for the job's own, up to `window` places ahead; ValueError if its images are others."""
    check_alike(generator, job.generator)
    return Scorer(generator, job.condition, guidance or job.guidance, len(job.keys), window)


def check_alike(draft: Generator | NextScaleGenerator, target: Generator | NextScaleGenerator) -> None:
    """ValueError unless the tokens of both mean the same, and both take the same conditions."""
    for what, given, wanted, remedy in (
        ("codes", draft.config.codebook_size, target.config.codebook_size, "of the same tokenizer"),
        ("the layout", draft.config.layout, target.config.layout, "for images of the same size"),
        ("the condition", takes(draft), takes(target), "trained with the same conditions"),
    ):
        if given != wanted:
            raise ValueError(
                f"{what} of the draft generator, {given}, must be what the generator it drafts for has, {wanted}; "
                f"use one {remedy}"
            )


def check_depth(depth: int, generator: Generator) -> None:
    """ValueError unless so many blocks are some, but not all."""
    blocks = len(generator.blocks)
    if not 1 <= depth < blocks:
        raise ValueError(f"depth must be at least 1 and less than the generator's {blocks} blocks, got {depth}")


def takes(generator: Generator | NextScaleGenerator) -> str:
    """The condition of a generator, in words."""
    condition = generator.condition
    if isinstance(condition, LabelCondition):
        return f"labels with {[label.size for label in condition.config.labels]} classes"
    if isinstance(condition, TextCondition):
        return f"{condition.config.num_slots} text features of {condition.config.feature_dim} numbers"
    return type(condition).__name__


def read_committed(scorer: Scorer, job: Job, progress: Progress, width: int) -> Tensor:
    """Logits b v after the last committed token, of a scorer that may not have read the `width` last ones.

    They are read in one call, whether they are new or not, at places that differ by row. Before so many are committed,
    reading begins with the condition, and what is read behind the last one is overwritten by the next call.
    """
    if not job.scorer.doubled:  # no image is at a place before that from which its own guidance is off
        scorer.forget_null(job.scorer.guided_until)
    first = (progress.start + 1 - width).clamp_min(-1)
    tokens = progress.tokens.gather(1, (first[:, None] + torch.arange(width, device=first.device)).clamp_min(0))
    logits = scorer(tokens, first, scorer.cache.length)
    last = (progress.start - first)[:, None, None].expand(-1, 1, logits.shape[-1])
    return logits.gather(1, last)[:, 0]


def draft_by_model(job: Job, progress: Progress, scorer: Scorer, window: int, noise: Tensor | int) -> Draft:
    """A chain by a generator with a cache of its own, which never reads the last draft of a round in that round."""
    logits = read_committed(scorer, job, progress, width=2)
    return draft_chain(job, progress, logits, partial(scorer, length=scorer.cache.length), window, noise)


def draft_chain(job: Job, progress: Progress, logits: Tensor, ask: Ask, window: int, noise: Tensor | int) -> Draft:
    """`window` tokens, each drawn by the job's law of logits: `logits` b v of the first, `ask` for those after it.

    `noise`: SHARED, or a purpose.
    """
    logits = logits[:, None]
    drafts: list[Tensor] = []
    laws: list[Tensor] = []
    for i in range(window):
        if i > 0:
            logits = ask(drafts[-1], progress.start + i)
        laws.append(job.law(logits))
        drafts.append(job.choose(laws[-1], progress.next + i, noise))
    return Draft(torch.cat(drafts, dim=1), law=torch.cat(laws, dim=1).exp())


# The parts: judging.


def chances(job: Job, progress: Progress, window: int) -> Tensor:
    """Uniform numbers by which the drafts of a round are accepted: b w."""
    places = progress.next + torch.arange(window, device=progress.start.device)
    return job.chance(places, purpose(ACCEPTING, progress))


def judged(job: Job, progress: Progress, draft: Draft, verdict: coupling.Verdict) -> Verdict:
    """The drafts that were kept, and one token more, drawn from the law that is left."""
    at = verdict.length[:, None]
    token = job.choose(verdict.law.log()[:, None], progress.next + at, purpose(REPLACING, progress))
    return Verdict(F.pad(draft.tokens, (0, 1)).scatter(1, at, token), verdict.length + 1)
