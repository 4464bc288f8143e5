"""Exact laws of what verifiers decide, seen from outside: no formula of theirs is repeated here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

Decide = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Uniforms b k, one for each draft, to an index b in [0, k] and the law of the token that is then drawn, b v."""


def length_law(decide: Decide, b: int, k: int) -> tuple[Tensor, Tensor]:
    """How likely each length is, b k+1, and each length with each token after it, b k+1 v."""
    return _enumerate(decide, _cuts(lambda i, uniforms: decide(uniforms)[0] > i, b, k, before=0.0))


def choice_law(decide: Decide, b: int, k: int) -> tuple[Tensor, Tensor]:
    """How likely each candidate is chosen, or none, b k+1, and that with each token drawn instead, b k+1 v."""
    return _enumerate(decide, _cuts(lambda i, uniforms: decide(uniforms)[0] == i, b, k, before=1.0))


def _cuts(accepted: Callable[[int, Tensor], Tensor], b: int, k: int, before: float) -> Tensor:
    """Below which uniform draft i is accepted; `before` lets it have its turn, and later ones are rejected: b k."""
    cuts = []
    for i in range(k):
        low, high = torch.zeros(b, dtype=torch.float64), torch.ones(b, dtype=torch.float64)
        for _ in range(55):
            uniforms = torch.ones(b, k, dtype=torch.float64)
            uniforms[:, :i] = before
            uniforms[:, i] = middle = (low + high) / 2
            below = accepted(i, uniforms)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        cuts.append(low)
    return torch.stack(cuts, dim=1)


def _enumerate(decide: Decide, cuts: Tensor) -> tuple[Tensor, Tensor]:
    indices, tokens = torch.zeros(len(cuts), cuts.shape[1] + 1, dtype=torch.float64), None
    for uniforms, weight in _decisions(cuts):
        index, law = decide(uniforms)
        if tokens is None:
            tokens = torch.zeros(*indices.shape, law.shape[-1], dtype=torch.float64)
        rows = torch.arange(len(index))
        indices[rows, index] += weight
        tokens[rows, index] += weight[:, None] * law
    assert tokens is not None
    return indices, tokens


def _decisions(cuts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Uniforms for each way to accept or reject every draft, and how likely it is: b k and b."""
    for accept in product([True, False], repeat=cuts.shape[1]):
        chosen = torch.tensor(accept)
        yield torch.where(chosen, 0.0, torch.ones_like(cuts)), torch.where(chosen, cuts, 1 - cuts).prod(-1)
