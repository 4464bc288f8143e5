"""What a strategy is: how a round guesses tokens, and which of them it keeps once the network has judged them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from imgtok.generators.generator import Generator
from imgtok.generators.tree import Tree
from imgtok.sample.guidance import Guidance
from imgtok.sample.noise import gumbel, uniform
from imgtok.sample.scorer import Scorer

Guarantee = Literal["pathwise", "exact", "tv", "relaxed"]
"""pathwise: the images of plain sampling, token for token; exact: their law; tv: each token's law within a stated
distance of it; relaxed: no bound."""

AnyLaw = Callable[[Tensor], Tensor]

# What randomness is used for. Shared noise (0) is that of plain sampling; the others are renewed every round.
SHARED, DRAFTING, ACCEPTING, REPLACING = 0, 1, 2, 3
PURPOSES = 4
MOST_NOISE = 2**24  # numbers of a batch, 64 MiB


class Progress(NamedTuple):
    """How far the images of a batch are. Rows are at different places."""

    tokens: Tensor
    """b m, the committed ones, followed by room."""
    start: Tensor
    """b, the place of the last committed token; -1 before the first."""
    rounds: Tensor
    """b, network calls so far."""
    numeric: Tensor
    """b, whether all logits so far were numbers."""

    @property
    def next(self) -> Tensor:
        """b 1, the place of the next token."""
        return self.start[:, None] + 1

    @property
    def root(self) -> Tensor:
        """b 1, the last committed token (before the first: any)."""
        return self.tokens.gather(1, self.start.clamp_min(0)[:, None])


class Draft(NamedTuple):
    """Guesses for the tokens after the last committed one."""

    tokens: Tensor
    """b k: without a tree, one after the other; with one, its nodes after the root."""
    tree: Tree | None = None
    law: Tensor | None = None
    """b k v, the law each was drawn from, where the coupling asks for it."""


class Verdict(NamedTuple):
    """What a round commits."""

    tokens: Tensor
    """b m, the first `num_new` of each row are new tokens."""
    num_new: Tensor
    """b, at least 1."""
    path: Tensor | None = None
    """b m, with a tree: the nodes of the new tokens but the last, whose cache entries are kept."""


@dataclass(frozen=True)
class Job:
    """What stays the same over the rounds of a batch."""

    generator: Generator
    condition: Any
    law: AnyLaw
    """Logits ... v to log-probabilities ... v: a `Law`."""
    guidance: Guidance
    keys: Tensor
    """b 2, one of each image."""
    total: int
    """Tokens to draw of each image."""
    scorer: Scorer
    """Of the generator itself."""
    forced: Tensor | None = None
    """b m, tokens given in advance, -1 where they are drawn; as long as any round can reach."""
    shared: Tensor | None = None
    """b m v, the shared noise of all places that a round can reach, where it was made at once (`with_noise`)."""

    @property
    def codebook_size(self) -> int:
        return self.generator.config.codebook_size

    def noise(self, places: Tensor, purpose: Tensor | int = SHARED) -> Tensor:
        """Gumbel noise for the tokens at `places` (b w): b w v."""
        if self.shared is not None and isinstance(purpose, int) and purpose == SHARED:
            return self.shared[torch.arange(len(places), device=places.device)[:, None], places]
        return gumbel(self.keys, places, self.codebook_size, purpose)

    def with_noise(self, reach: int) -> Job:
        """With the shared noise of the first `reach` places, unless that is too much to keep.

        Rounds ask for a place's noise again and again while it is in their window, and making it takes longer than
        looking it up.
        """
        if len(self.keys) * reach * self.codebook_size > MOST_NOISE:
            return self
        places = torch.arange(reach, device=self.keys.device).expand(len(self.keys), -1)
        return replace(self, shared=torch.cat([self.noise(part) for part in places.split(64, dim=1)], dim=1))

    def chance(self, places: Tensor, purpose: Tensor | int) -> Tensor:
        """Uniform in (0, 1) at `places`: b w."""
        return uniform(self.keys, places, purpose)

    def choose(self, log_law: Tensor, places: Tensor, purpose: Tensor | int = SHARED) -> Tensor:
        """Draws from laws b w v of the tokens at `places`: b w."""
        return (log_law + self.noise(places, purpose)).argmax(-1)


def purpose(kind: int, progress: Progress) -> Tensor:
    """Noise of this kind and round: b 1. A row's rounds do not depend on the rest of the batch."""
    return kind + PURPOSES * (progress.rounds[:, None] + 1)


class Strategy(Protocol):
    """A frozen dataclass; one file of strategies has all it needs. `memory` is any tuple of tensors of fixed shapes."""

    @property
    def guarantee(self) -> Guarantee: ...

    @property
    def window(self) -> int:
        """Nodes scored in a round beside the last committed token."""
        ...

    def begin(self, job: Job, earlier: Any = None) -> Any:
        """The memory before the first round; `earlier` is what an earlier batch has left, of any size."""
        ...

    def draft(self, job: Job, progress: Progress, memory: Any) -> tuple[Draft, Any]:
        """Guesses `window` tokens."""
        ...

    def couple(self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Any) -> tuple[Verdict, Any]:
        """log_law b w v: the law after each node, the root first. What to commit, and the memory for the next round."""
        ...


def match_length(drafts: Tensor, chosen: Tensor) -> Tensor:
    """How many drafts b k are what was chosen at their places (the first k of b ...), from the left: b."""
    return (drafts == chosen[:, : drafts.shape[1]]).long().cumprod(1).sum(1)


def window_after(values: Tensor, count: Tensor, width: int) -> Tensor:
    """`width` of values b m ..., starting behind the first `count` (b) of each row."""
    index = (count[:, None] + torch.arange(width, device=count.device)).clamp_max(values.shape[1] - 1)
    for size in values.shape[2:]:
        index = index[..., None].expand(*index.shape, size)
    return values.gather(1, index)
