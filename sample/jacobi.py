"""Jacobi decoding: the window's own last laws are the drafts, so there is no second model and no extra call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imgtok.sample.strategy import Draft, Guarantee, Job, Progress, Verdict, match_length, window_after


@dataclass(frozen=True, kw_only=True)
class Jacobi:
    """Plain sampling as a fixed point: with the noise given, every token is a function of those before it.

    Each round evaluates the window's laws with the last guesses as context, and chooses each token anew with the
    noise of its place. Up to and including the first that differs from its guess, all are what plain sampling draws
    (arXiv:2408.07978 for the coupling, arXiv:2510.24211 for the window).
    """

    window: int = 16

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}; Plain draws without drafts")

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise"

    def begin(self, job: Job, earlier: Any = None) -> tuple[Tensor, Tensor]:
        """Guesses for the window, and what the noise alone would choose at each place."""
        blind = noise_only(job, self.window)
        return blind[:, : self.window], blind

    def draft(self, job: Job, progress: Progress, memory: tuple[Tensor, Tensor]) -> tuple[Draft, tuple[Tensor, Tensor]]:
        return Draft(memory[0]), memory

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: tuple[Tensor, Tensor]
    ) -> tuple[Verdict, tuple[Tensor, Tensor]]:
        _, blind = memory
        chosen = job.choose(log_law, progress.next + torch.arange(self.window + 1, device=log_law.device))
        count = match_length(draft.tokens, chosen) + 1
        beyond = window_after(blind, progress.start + self.window + 2, self.window)  # places not yet in the window
        guesses = window_after(torch.cat([chosen, beyond], dim=1), count, self.window)
        return Verdict(chosen, count), (guesses, blind)


def noise_only(job: Job, window: int) -> Tensor:
    """The token that the noise alone would choose at each place that a window can reach: b m."""
    places = torch.arange(job.total + 2 * window + 2, device=job.keys.device).expand(len(job.keys), -1)
    return torch.cat([job.noise(part).argmax(-1) for part in places.split(64, dim=1)], dim=1)
