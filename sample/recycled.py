"""Token recycling in two dimensions: drafts looked up by the left and the upper neighbour, without a second model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imgtok.sample.strategy import Draft, Guarantee, Job, Progress, Verdict, match_length


class Table(NamedTuple):
    """The likeliest tokens the last time that a token was the neighbour. Row v is for places without neighbour."""

    tokens: Tensor
    """b v+1 slots, int32"""
    log_probs: Tensor
    """b v+1 slots, float32; -inf where nothing is known yet, and in row v"""

    def at(self, neighbour: Tensor) -> tuple[Tensor, Tensor]:
        """neighbour b -> tokens and log-probabilities b slots."""
        index = neighbour[:, None, None].expand(-1, 1, self.tokens.shape[2])
        return self.tokens.gather(1, index)[:, 0].long(), self.log_probs.gather(1, index)[:, 0]

    def learn(self, neighbours: Tensor, tokens: Tensor, log_probs: Tensor) -> None:
        """neighbours b n, tokens and log_probs b n slots. Of equal neighbours, the last counts."""
        nowhere = self.tokens.shape[1] - 1
        again = (neighbours[:, :, None] == neighbours[:, None, :]).triu(1).any(2)
        index = neighbours.masked_fill(again, nowhere)[..., None].expand_as(tokens)
        self.tokens.scatter_(1, index, tokens.to(torch.int32))
        self.log_probs.scatter_(1, index, log_probs.masked_fill(index == nowhere, -torch.inf))


def of_others(log_probs: Tensor, codebook_size: int) -> Tensor:
    """Log-probability of each token without a slot, all being equal: b slots -> b 1; uniform if nothing is known."""
    left_over = (1 - log_probs.exp().sum(1, keepdim=True)).clamp_min(torch.finfo(log_probs.dtype).tiny)
    unknown = (log_probs == -torch.inf).sum(1, keepdim=True) + codebook_size - log_probs.shape[1]
    return (left_over / unknown.clamp_min(1)).log()


class Memory(NamedTuple):
    left: Table
    upper: Table
    noise: Tensor | None = None
    """b w+1 v, shared noise of the next places, from `draft` to `couple`."""


@dataclass(frozen=True, kw_only=True)
class Recycled:
    """Guesses from what the network last said beside the same tokens (token recycling, arXiv:2408.08696).

    The paper keeps the likeliest successors of each token. Images have two neighbours that matter, so there is a
    second table by the token above. As candidates are ordered with the noise of plain sampling, not by likelihood
    alone, one chain of them does what the paper needs a tree for. Laws of image tokens are flat: what the tables leave
    over is often most of it, so the token that the noise alone would choose is a candidate with a share of that.

    Each row of a batch has tables of its own, so an image takes the same number of calls whatever else is in its batch.
    16384 codes and 8 slots need 2 MB, where the keys and values of the smallest LlamaGen need 9 MB or more.
    """

    window: int = 8
    slots: int = 8
    """Tokens remembered for each neighbour."""

    def __post_init__(self) -> None:
        if min(self.window, self.slots) < 1:
            raise ValueError(f"window and slots must be 1 or more, got {self.window} and {self.slots}")

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise"

    def begin(self, job: Job, earlier: Any = None) -> Memory:
        if self.slots > job.codebook_size:
            raise ValueError(f"{self.slots} slots need as many codes, but there are {job.codebook_size}")
        return Memory(self.empty(job), self.empty(job))

    def empty(self, job: Job) -> Table:
        log_probs = torch.full((len(job.keys), job.codebook_size + 1, self.slots), -torch.inf, device=job.keys.device)
        return Table(torch.zeros_like(log_probs, dtype=torch.int32), log_probs)

    def draft(self, job: Job, progress: Progress, memory: Memory) -> tuple[Draft, Memory]:
        noise = job.noise(progress.next + torch.arange(self.window + 1, device=progress.start.device))
        blind, history = noise.argmax(-1), progress.tokens.clone()
        for step in range(self.window):
            place = progress.next + step
            left, upper = neighbours(job, history, place)
            tokens_left, by_left = memory.left.at(left[:, 0])
            tokens_upper, by_upper = memory.upper.at(upper[:, 0])
            candidates = torch.cat([tokens_left, tokens_upper, blind[:, step, None]], dim=1)
            others = torch.minimum(of_others(by_left, job.codebook_size), of_others(by_upper, job.codebook_size))
            scores = torch.cat([by_left, by_upper, others], dim=1) + noise[:, step].gather(1, candidates)
            history.scatter_(1, place, candidates.gather(1, scores.argmax(1, keepdim=True)))
        guesses = history.gather(1, progress.next + torch.arange(self.window, device=noise.device))
        return Draft(guesses), memory._replace(noise=noise)

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Memory
    ) -> tuple[Verdict, Memory]:
        assert memory.noise is not None
        chosen = (log_law + memory.noise).argmax(-1)
        places = progress.next + torch.arange(self.window + 1, device=log_law.device)
        history = progress.tokens.scatter(1, places[:, :-1], draft.tokens)
        log_probs, tokens = log_law.float().topk(self.slots)
        for table, neighbour in zip(memory[:2], neighbours(job, history, places), strict=True):
            table.learn(neighbour.masked_fill(places >= job.total, job.codebook_size), tokens, log_probs)
        return Verdict(chosen, match_length(draft.tokens, chosen) + 1), memory._replace(noise=None)


def neighbours(job: Job, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Of `places` (b w) in tokens b m: the token before and the one a row above; where there is none, the size v."""

    def before(distance: int) -> Tensor:
        known = tokens.gather(1, (places - distance).clamp_min(0))
        return torch.where(places >= distance, known, job.codebook_size)

    return before(1), before(job.generator.config.layout.latent_shape[-1])
