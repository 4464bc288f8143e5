"""Branched Jacobi decoding that knows from experience which token follows which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.sample import branched
from imgtok.sample.branched import BranchedJacobi, Guesses, pick
from imgtok.sample.strategy import Draft, Job, Progress, Verdict, window_after

MOST_CODES = 4096  # the table has their square of entries
UNLIKELY = -15.0  # instead of the minus infinity of truncated tokens, which no correction could move


class Experience(NamedTuple):
    """Laws of the generator, summed up by the token that stands before. A last row, of nothing, for 'no token'."""

    sums: Tensor
    """v+1 v"""
    weights: Tensor
    """v+1 1"""


class Memory(NamedTuple):
    inner: branched.Memory
    noisy: Tensor
    """b W v, the last laws of the window's places, plus their noise."""
    left: Tensor
    """b W, the token that stood before each place when its law was computed; v for none."""
    experience: Experience


@dataclass(frozen=True, kw_only=True)
class RecallingJacobi(BranchedJacobi):
    """`BranchedJacobi` whose guesses are corrected before they are tried.

    A place's last law was computed behind a token that has been replaced since. It is moved by `recall` times what
    experience says of the exchange: log mean law after the new token, minus the same after the old one. Experience
    grows with every image and is handed on from batch to batch; it changes how many calls an image takes, never the
    image.
    """

    recall: float = 0.5
    corrected: int = 8
    """Places of the chain that are corrected, one after the other."""

    def begin(self, job: Job, earlier: Any = None) -> Memory:
        size, rows, device = job.codebook_size, len(job.keys), job.keys.device
        check_table(size)
        experience = earlier.experience if isinstance(earlier, Memory) else naive(size, device)
        places = torch.arange(self.chain, device=device).expand(rows, -1)
        nothing = torch.full((rows, self.chain), size, device=device)
        return Memory(super().begin(job), job.noise(places) + UNLIKELY, nothing, experience)

    def draft(self, job: Job, progress: Progress, memory: Any) -> tuple[Draft, Memory]:
        recent = memory.noisy - self.recall * after(memory.experience, memory.left)
        left, places = progress.root[:, 0], []
        for i in range(min(self.corrected, self.chain)):
            places.append(recent[:, i] + self.recall * after(memory.experience, left))
            left = places[-1].argmax(-1)
        noisy = torch.cat([torch.stack(places, dim=1), memory.noisy[:, len(places) :]], dim=1)
        values, tokens = noisy.topk(memory.inner.guesses.tokens.shape[2], dim=-1)
        inner = memory.inner._replace(guesses=Guesses(tokens, values[:, :, :1] - values))
        draft, inner = super().draft(job, progress, inner)
        return draft, memory._replace(inner=inner)

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Any
    ) -> tuple[Verdict, Memory]:
        reach = 1 + 2 * self.chain  # places whose laws were asked for, and those that may enter the window
        noise = job.noise(progress.next + torch.arange(reach, device=log_law.device))
        verdict, inner = self.walk(progress, draft, log_law, noise[:, : 1 + self.chain], memory.inner)
        node = self.on_the_way(verdict)
        tokens = torch.cat([progress.root, draft.tokens], dim=1).gather(1, node)  # before the place each node predicts
        laws = pick(log_law, node)
        known = F.pad(laws.clamp_min(UNLIKELY), (0, 0, 0, self.chain), value=UNLIKELY)
        return verdict, Memory(
            inner,
            window_after(known + noise, verdict.num_new, self.chain),
            window_after(F.pad(tokens, (0, self.chain), value=job.codebook_size), verdict.num_new, self.chain),
            learn(memory.experience, tokens, laws, progress.start < job.total - 1),
        )

    def on_the_way(self, verdict: Verdict) -> Tensor:
        """b W+1, the node at each depth: those that were kept and, beyond them, what the chain guessed."""
        assert verdict.path is not None
        return torch.cat([torch.zeros_like(verdict.path[:, :1]), verdict.path], dim=1)[:, : 1 + self.chain]


def check_table(size: int) -> None:
    """ValueError for a codebook of too many codes."""
    if size > MOST_CODES:
        raise ValueError(
            f"recalling keeps a table of {size} x {size} numbers, at most {MOST_CODES} codes are allowed; "
            "use the strategy 'branched' for this generator"
        )


def naive(size: int, device: torch.device) -> Experience:
    """As if each token had been seen a few times before the same flat law."""
    prior = 3.0
    return Experience(
        torch.full((size + 1, size), prior / size, device=device), torch.full((size + 1, 1), prior, device=device)
    )


def after(experience: Experience, tokens: Tensor) -> Tensor:
    """Logarithm of the mean law behind tokens b ...: b ... v."""
    return (experience.sums[tokens] / experience.weights[tokens]).log()


def learn(experience: Experience, tokens: Tensor, log_laws: Tensor, busy: Tensor) -> Experience:
    """Adds the laws b w v that follow tokens b w, of rows that are `busy` (b)."""
    weights = busy[:, None].expand_as(tokens).to(log_laws.dtype)
    laws = log_laws.exp() * weights[..., None]
    return Experience(
        experience.sums.index_add(0, tokens.flatten(), laws.flatten(0, 1)),
        experience.weights.index_add(0, tokens.flatten(), weights.reshape(-1, 1)),
    )
