"""Token by token: the sampler that all others are measured by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from imgtok.sample.strategy import Draft, Guarantee, Job, Progress, Verdict


@dataclass(frozen=True, kw_only=True)
class Plain:
    """One network call for each token."""

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise"

    @property
    def window(self) -> int:
        return 0

    def begin(self, job: Job, earlier: Any = None) -> None:
        return None

    def draft(self, job: Job, progress: Progress, memory: None) -> tuple[Draft, None]:
        return Draft(progress.tokens[:, :0]), None

    def couple(self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: None) -> tuple[Verdict, None]:
        chosen = job.choose(log_law, progress.next)
        return Verdict(chosen, chosen.new_ones(len(chosen))), None
