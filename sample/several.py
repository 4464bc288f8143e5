"""Several guesses for the next position, by a smaller generator: one or two tokens for each network call."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from imgtok.generators.generator import Generator
from imgtok.generators.tree import Tree
from imgtok.sample.coupling import Choice, verify_k_seq, verify_recursive, without_replacement
from imgtok.sample.draft_model import chances, draft_scorer, read_committed
from imgtok.sample.guidance import Guidance
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import DRAFTING, SHARED, Draft, Guarantee, Job, Progress, Verdict, purpose
from imgtok.sample.walk import descend, grow, match, root_only, settle


class Memory(NamedTuple):
    scorer: Scorer
    """Of the drafting generator."""
    tree: Tree
    law: Tensor | None = None
    """b v, the drafting generator's, from `draft` to `couple`."""


@dataclass(frozen=True)
class SeveralDrafts:
    """Candidates for one position, scored side by side; where one is accepted, the token after it is drawn as well.

    "recursive": candidates without replacement, each judged by what those before it left over (arXiv:2402.14160).
    "k-seq": independent ones, which may coincide (SpecTr, arXiv:2310.15141). "shared": those likeliest under the noise
    of plain sampling, whose choice is looked for among them (arXiv:2408.07978 for several drafts).
    """

    generator: Generator
    """Its codes, their layout and its condition are those of the generator it drafts for."""
    _: KW_ONLY
    drafts: int = 4
    coupling: Literal["recursive", "k-seq", "shared"] = "recursive"
    guidance: Guidance | None = None
    """Of the drafts; None: that of the images."""

    def __post_init__(self) -> None:
        if self.drafts < 1:
            raise ValueError(f"drafts must be 1 or more, got {self.drafts}")
        if self.coupling not in ("recursive", "k-seq", "shared"):
            raise ValueError(f'coupling must be "recursive", "k-seq" or "shared", got {self.coupling!r}')

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise" if self.coupling == "shared" else "exact"

    @property
    def window(self) -> int:
        return self.drafts

    def begin(self, job: Job, earlier: Any = None) -> Memory:
        if self.coupling != "k-seq" and self.drafts > job.codebook_size:
            raise ValueError(f"{self.drafts} different drafts need as many codes, but there are {job.codebook_size}")
        below = torch.zeros(len(job.keys), self.drafts, dtype=torch.int64, device=job.keys.device)
        tree = grow(root_only(len(job.keys), job.keys.device), below)
        return Memory(draft_scorer(job, self.generator, self.guidance, self.window), tree)

    def draft(self, job: Job, progress: Progress, memory: Memory) -> tuple[Draft, Memory]:
        log_law = job.law(read_committed(memory.scorer, job, progress, 2))[:, None]
        if self.coupling == "k-seq":
            # numbers instead of places, so that each candidate has noise of its own
            numbers = progress.next + torch.arange(self.drafts, device=log_law.device)
            tokens = job.choose(log_law, numbers, purpose(DRAFTING, progress))
        else:
            kind = SHARED if self.coupling == "shared" else purpose(DRAFTING, progress)
            tokens = (log_law + job.noise(progress.next, kind)).topk(self.drafts).indices[:, 0]
        return Draft(tokens, memory.tree), memory._replace(law=log_law[:, 0].exp())

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Memory
    ) -> tuple[Verdict, Memory]:
        law, memory = memory.law, memory._replace(law=None)
        if self.coupling == "shared":
            return match(job, progress, draft, log_law, depth=1), memory
        assert law is not None
        uniforms = chances(job, progress, self.drafts)

        def judge(level: int, node: Tensor, target: Tensor, candidates: Tensor) -> Choice:
            if self.coupling == "k-seq":
                return verify_k_seq(target, law, candidates, uniforms)
            return verify_recursive(target, without_replacement(law, candidates), candidates, uniforms)

        return settle(job, progress, draft, descend(draft.tokens, (self.drafts,), log_law, judge)), memory
