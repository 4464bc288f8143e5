"""Relaxed acceptance of a draft model's tokens: codes that lie close together stand in for each other."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from imgtok.generators.generator import Generator
from imgtok.sample.coupling import of_tokens
from imgtok.sample.draft_model import chances, draft_by_model, draft_scorer, judged
from imgtok.sample.guidance import Guidance
from imgtok.sample.relaxed import certified, neighbours, relaxed_value, verify_relaxed
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import DRAFTING, Draft, Guarantee, Job, Progress, Verdict, purpose

Memory = tuple[Scorer, Tensor]
"""Of the drafting generator; the nearest codes of each one, v k."""


@dataclass(frozen=True, eq=False)
class Lantern:
    """A chain by a draft model, each draft accepted as if it had the mass of its neighbours too (arXiv:2410.03355).

    Not exact. `epsilon` bounds how far the law of each token is from the generator's, given the tokens before it; the
    rule itself has no such bound. Differs from the published code, see `relaxed`.
    """

    generator: Generator
    """Drafts; its codes, their layout and its condition are those of the generator it drafts for."""
    codes: Tensor = field(repr=False)
    """v d, the tokenizer's code vectors."""
    _: KW_ONLY
    window: int = 4
    """Drafts in a round."""
    neighbours: int = 100
    """How many of the nearest codes may lend mass."""
    delta: float | None = None
    """The most that they lend (LANTERN); 0.1 if there is no `multiplier`."""
    multiplier: float | None = None
    """A code and its neighbours together count at most this many times the code (LANTERN++, arXiv:2502.06352)."""
    epsilon: float | None = None
    """The most that the law of a token may be off, in total variation; None: no bound. Costs a pass over all codes and
    their neighbours for each draft, in time and memory."""
    guidance: Guidance | None = None
    """Of the drafts; None: that of the images."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be 1 or more, got {self.window}; Plain draws without drafts")
        if not 1 <= self.neighbours < len(self.codes):
            raise ValueError(
                f"neighbours must be at least 1 and less than the {len(self.codes)} codes, got {self.neighbours}"
            )
        if self.delta is not None and self.multiplier is not None:
            raise ValueError(
                f"delta {self.delta} and multiplier {self.multiplier} exclude each other; give one of them"
            )
        if self.delta is not None and not 0 <= self.delta <= 1:
            raise ValueError(f"delta must be between 0 and 1, got {self.delta}")
        if self.multiplier is not None and not self.multiplier >= 1:
            raise ValueError(f"multiplier must be 1 or more, got {self.multiplier}")
        if self.epsilon is not None and not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon must be between 0 and 1, got {self.epsilon}")

    @property
    def guarantee(self) -> Guarantee:
        return "relaxed" if self.epsilon is None else "tv"

    @cached_property
    def table(self) -> Tensor:
        """The nearest codes of each one: v k; found once, as it takes a while."""
        return neighbours(self.codes, self.neighbours)

    def begin(self, job: Job, earlier: Any = None) -> Memory:
        if len(self.codes) != job.codebook_size:
            raise ValueError(
                f"{len(self.codes)} code vectors were given, but the generator draws from {job.codebook_size} codes; "
                "give those of the tokenizer it was trained with"
            )
        scorer = draft_scorer(job, self.generator, self.guidance, self.window)
        return scorer, self.table.to(job.keys.device)

    def draft(self, job: Job, progress: Progress, memory: Memory) -> tuple[Draft, Memory]:
        return draft_by_model(job, progress, memory[0], self.window, purpose(DRAFTING, progress)), memory

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Memory
    ) -> tuple[Verdict, Memory]:
        p, q = log_law.exp(), draft.law
        assert q is not None
        mass = self.mass(p[:, :-1], q, draft.tokens, memory[1])
        verdict = verify_relaxed(p, q, mass, draft.tokens, chances(job, progress, self.window))
        return judged(job, progress, draft, verdict), memory

    def mass(self, p: Tensor, q: Tensor, drafts: Tensor, table: Tensor) -> Tensor:
        """How much of each token is to be output as an accepted draft: b w v. Without a bound, of the drafts alone."""
        delta = 0.1 if self.delta is None else self.delta
        if self.epsilon is not None:
            limit = {"delta": delta} if self.multiplier is None else {"multiplier": self.multiplier}
            return certified(p, q, relaxed_value(p, table, **limit), self.epsilon)
        own = of_tokens(p, drafts)[..., None]
        lent = p.gather(-1, table[drafts]).cumsum(-1)
        allowed = lent <= (delta if self.multiplier is None else (self.multiplier - 1) * own)
        value = own + lent.masked_fill(~allowed, 0.0).amax(-1, keepdim=True)
        return torch.zeros_like(p).scatter(-1, drafts[..., None], value)
