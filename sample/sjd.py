"""Speculative Jacobi decoding: drafts of the window are judged by the laws they were drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from imgtok.sample.coupling import of_tokens, residual, verify_chain
from imgtok.sample.draft_model import judged
from imgtok.sample.jacobi import noise_only
from imgtok.sample.strategy import (
    ACCEPTING,
    DRAFTING,
    Draft,
    Guarantee,
    Job,
    Progress,
    Verdict,
    purpose,
    window_after,
)


class Window(NamedTuple):
    """Drafts for the places after the last committed token."""

    drafts: Tensor
    """b w"""
    laws: Tensor
    """b w v, what each draft was drawn from."""
    blind: Tensor
    """b m, a uniformly drawn token for every place, with which it enters the window."""


@dataclass(frozen=True, kw_only=True)
class SpeculativeJacobi:
    """Every call judges the window's drafts and draws the later ones anew from the laws it gave (arXiv:2410.01699).

    A place's draft depends on earlier places and randomness of its own, and whether it is judged on earlier places
    alone: given what was committed before, it is a draw from its stored law, which is all that acceptance asks for.
    """

    window: int = 16
    coupled: bool = False
    """Later drafts stay with probability min(1, p / q), else are drawn from the residual (arXiv:2510.24211), so that
    the window settles. False: always drawn anew, as published first."""
    fresh: Literal["uniform", "random"] = "uniform"
    """What counts as the law of a place's first token, which is drawn uniformly: "uniform", or, as in the public code,
    all mass on the token drawn ("random"); that is as exact, but accepts less."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be 1 or more, got {self.window}; Plain draws without drafts")
        if self.fresh not in ("uniform", "random"):
            raise ValueError(f'fresh must be "uniform" or "random", got {self.fresh!r}')

    @property
    def guarantee(self) -> Guarantee:
        return "exact"

    def begin(self, job: Job, earlier: Any = None) -> Window:
        blind = noise_only(job, self.window)  # noise shared with plain sampling, which nothing else here uses
        drafts = blind[:, : self.window]
        return Window(drafts, self.first_laws(drafts, job.codebook_size), blind)

    def draft(self, job: Job, progress: Progress, memory: Window) -> tuple[Draft, Window]:
        return Draft(memory.drafts, law=memory.laws), memory

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Window
    ) -> tuple[Verdict, Window]:
        p = log_law.exp()
        places = progress.next + torch.arange(self.window, device=p.device)
        uniforms = job.chance(places, purpose(ACCEPTING, progress))
        verdict = judged(job, progress, draft, verify_chain(p, memory.laws, draft.tokens, uniforms))
        return verdict, self.slide(progress, verdict.num_new, self.redrawn(job, progress, places, p, memory), p, memory)

    def redrawn(self, job: Job, progress: Progress, places: Tensor, p: Tensor, memory: Window) -> Tensor:
        """New drafts for the places that were in the window: b w. Those of committed places are for nothing."""
        drafts, q, p, again = memory.drafts, memory.laws, p[:, :-1], purpose(DRAFTING, progress)
        if not self.coupled:
            return job.choose(p.log(), places, again)
        stays = job.chance(places, again) * of_tokens(q, drafts) < of_tokens(p, drafts)
        return torch.where(stays, drafts, job.choose(residual(p, q).log(), places, again))

    def slide(self, progress: Progress, count: Tensor, redrawn: Tensor, p: Tensor, memory: Window) -> Window:
        """The window behind `count` (b) more tokens: places that were in it, then new ones."""
        known = count[:, None] + torch.arange(self.window, device=p.device) < self.window
        entering = window_after(memory.blind, progress.start + 1 + count, self.window)
        return Window(
            torch.where(known, window_after(redrawn, count, self.window), entering),
            torch.where(
                known[..., None], window_after(p, count, self.window), self.first_laws(entering, p.shape[-1]).to(p)
            ),
            memory.blind,
        )

    def first_laws(self, tokens: Tensor, size: int) -> Tensor:
        """Of places that enter the window with these tokens: b w -> b w v, float32."""
        if self.fresh == "random":
            return torch.zeros(*tokens.shape, size, device=tokens.device).scatter(-1, tokens[..., None], 1.0)
        return torch.full((*tokens.shape, size), 1 / size, device=tokens.device)
