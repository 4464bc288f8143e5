"""Jacobi decoding with second guesses: where the window is least sure, other tokens are tried beside its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imgtok.generators.tree import Tree
from imgtok.sample.jacobi import noise_only
from imgtok.sample.strategy import Draft, Guarantee, Job, Progress, Verdict, match_length, window_after


class Guesses(NamedTuple):
    """For each place, the likeliest tokens, best first, and by how much the noisy law prefers the best."""

    tokens: Tensor
    """b w r"""
    margins: Tensor
    """b w r, 0 for the best; infinite where there is no second guess."""

    def after(self, count: Tensor, width: int) -> Guesses:
        return Guesses(*(window_after(part, count, width) for part in self))


class Memory(NamedTuple):
    guesses: Guesses
    """Of the window: b W r."""
    blind: Tensor
    """b m, what the noise alone would choose at each place."""
    branch_at: Tensor
    """b B, the place in the window at which each branch leaves the chain."""


@dataclass(frozen=True, kw_only=True)
class BranchedJacobi:
    """`Jacobi` over a tree: the chain of best guesses, and branches that replace one of them by a lesser guess.

    Under shared noise a wrong guess is mostly the second or third best: then the branch that has it goes on where the
    chain ends, within the same call. Branches are put where the noisy law is least sure, near places first. Every
    committed token is still what plain sampling draws.
    """

    window: int = 48
    """Nodes in all: the chain and `branches` times `length`."""
    branches: int = 8
    length: int = 3
    """Nodes of a branch: the lesser guess, and the chain's guesses after it."""
    ranks: int = 16
    """Guesses considered for each place, at most all codes."""
    distance: float = 1.0
    """What one place further costs, in units of the noisy law's logarithm."""

    def __post_init__(self) -> None:
        if self.chain < 1 or min(self.branches, self.length) < 1 or self.ranks < 2:
            raise ValueError(
                f"{self.branches} branches of {self.length} nodes with {self.ranks} ranks leave no chain in a window "
                f"of {self.window}; choose a window above {self.branches * self.length}, and at least 2 ranks"
            )

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise"

    @property
    def chain(self) -> int:
        """Places that the chain reaches."""
        return self.window - self.branches * self.length

    def begin(self, job: Job, earlier: Any = None) -> Any:
        blind = noise_only(job, self.window)
        guesses = unsure(blind[:, : self.chain], min(self.ranks, job.codebook_size))
        return Memory(guesses, blind, torch.zeros_like(blind[:, : self.branches]))

    def draft(self, job: Job, progress: Progress, memory: Any) -> tuple[Draft, Any]:
        tokens, margins = memory.guesses
        ahead = torch.arange(self.chain, device=tokens.device)
        cost = margins[:, :, 1:] + self.distance * ahead[:, None]
        best = cost.flatten(1).topk(self.branches, largest=False).indices
        ranks = tokens.shape[2]
        at, rank = best // (ranks - 1), best % (ranks - 1) + 1
        first = tokens.flatten(1).gather(1, at * ranks + rank)
        rest = at[:, :, None] + torch.arange(1, self.length, device=at.device)
        rest = tokens[:, :, 0].gather(1, rest.flatten(1).clamp_max(self.chain - 1)).view(rest.shape)
        branches = torch.cat([first[:, :, None], rest], dim=2)
        return Draft(torch.cat([tokens[:, :, 0], branches.flatten(1)], dim=1), self.tree(at)), memory._replace(
            branch_at=at
        )

    def tree(self, at: Tensor) -> Tree:
        """Root, chain, then branch after branch, each leaving the chain at `at` (b B)."""
        b, device = len(at), at.device
        trunk, own = 1 + self.chain, self.branches * self.length
        step = torch.arange(own, device=device) % self.length
        branch = torch.arange(own, device=device) // self.length
        leaves = at.repeat_interleave(self.length, dim=1)
        trunk_nodes = torch.arange(trunk, device=device)
        depths = torch.cat([trunk_nodes.expand(b, -1), leaves + 1 + step], dim=1)
        sees = torch.zeros(b, trunk + own, trunk + own, dtype=torch.bool, device=device)
        sees[:, :trunk, :trunk] = trunk_nodes <= trunk_nodes[:, None]
        sees[:, trunk:, :trunk] = trunk_nodes <= leaves[:, :, None]
        sees[:, trunk:, trunk:] = (branch == branch[:, None]) & (step <= step[:, None])
        return Tree(depths, sees)

    def couple(self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Any) -> tuple[Verdict, Any]:
        noise = job.noise(progress.next + torch.arange(1 + self.chain, device=log_law.device))
        return self.walk(progress, draft, log_law, noise, memory)

    def walk(
        self, progress: Progress, draft: Draft, log_law: Tensor, noise: Tensor, memory: Memory
    ) -> tuple[Verdict, Memory]:
        """`noise` b chain+1 v: of the places from the next one on."""
        assert draft.tree is not None
        noisy = log_law + pick(noise, draft.tree.depths.clamp_max(self.chain))
        ranks = memory.guesses.tokens.shape[2]
        values, tokens = noisy.topk(ranks, dim=-1)
        chosen, trunk = tokens[:, :, 0], 1 + self.chain
        kept = match_length(draft.tokens[:, : self.chain], chosen)
        branches = draft.tokens[:, self.chain :].unflatten(1, (self.branches, self.length))
        right = chosen.gather(1, kept[:, None])  # what belongs where the chain went wrong
        hits = (memory.branch_at == kept[:, None]) & (branches[:, :, 0] == right)
        hit, number = hits.any(1), hits.long().argmax(1)
        first = trunk + number * self.length  # node of the branch that goes on
        nodes = first[:, None] + torch.arange(self.length, device=first.device)
        further = match_length(
            branches.gather(1, number[:, None, None].expand(-1, 1, self.length))[:, 0, 1:], chosen.gather(1, nodes)
        )
        # A branch of the last places runs out of the chain, where there is no noise at hand: it ends there.
        further = torch.minimum(further, (self.chain - 1 - kept).clamp_min(0))
        count = kept + 1 + torch.where(hit, further + 1, 0)

        # The node that stands at each depth, on the way that was kept and beyond it: chain, branch, chain again.
        depth = torch.arange(self.window + 1, device=count.device).expand(len(count), -1)
        into = depth - kept[:, None] - 1
        on_branch = hit[:, None] & (into >= 0) & (into < self.length)
        node = torch.where(on_branch, first[:, None] + into, depth.clamp_max(self.chain))
        beyond = unsure(window_after(memory.blind, progress.start + 2 + self.chain, self.window), ranks)
        seen = Guesses(*(pick(part, node[:, :trunk]) for part in (tokens, values[:, :, :1] - values)))
        pool = Guesses(*(torch.cat(parts, dim=1) for parts in zip(seen, beyond, strict=True)))
        verdict = Verdict(chosen.gather(1, node), count, path=node[:, 1:])
        return verdict, memory._replace(guesses=pool.after(count, self.chain))


def unsure(tokens: Tensor, ranks: int) -> Guesses:
    """Guesses without seconds: tokens b w."""
    margins = torch.full((*tokens.shape, ranks), torch.inf, device=tokens.device)
    margins[:, :, 0] = 0
    return Guesses(tokens[:, :, None].expand(-1, -1, ranks), margins)


def pick(values: Tensor, nodes: Tensor) -> Tensor:
    """values b m r at nodes b w: b w r."""
    return values.gather(1, nodes[:, :, None].expand(-1, -1, values.shape[2]))
