"""Many draws of a toy, and how well they fit what is known about them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from imgtok.sample.engine import Drawn, sample_tokens
from imgtok.sample.noise import image_keys
from imgtok.sample.strategy import Strategy

from .toys import TableGenerator

DRAWS = 200_000
LEAST = 1e-4
"""A right strategy has a smaller p-value once in 10,000 seeds, and the seed is fixed; the wrong ones that are tried
have less than 1e-20."""


@lru_cache
def many_keys() -> Tensor:
    return image_keys(5, range(DRAWS))


def draw(toy: TableGenerator, strategy: Strategy, keys: Tensor | None = None, **options: Any) -> Drawn:
    """Of a toy, for each of the keys (default: DRAWS of them), in parts that fit the processor's cache."""
    parts = [
        sample_tokens(toy, torch.zeros(len(part), 1), part, strategy=strategy, **options)  # type: ignore[arg-type]
        for part in (many_keys() if keys is None else keys).split(50_000)
    ]
    return Drawn(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.calls for part in parts]),
        torch.stack([part.accepted for part in parts]).sum(0),
        None,
    )


def sequence_fit(tokens: Tensor, joint: dict[str, float]) -> float:
    """p-value of sequences b n against their probabilities by name ("012")."""
    base = 1 + max(int(digit) for name in joint for digit in name)
    numbers = (tokens * base ** torch.arange(tokens.shape[1]).flip(0)).sum(1)
    return fit(numbers, {int(name, base): probability for name, probability in joint.items()})


def call_fit(calls: Tensor, law: dict[str, float]) -> float:
    """p-value of numbers of calls."""
    return fit(calls, {int(count): probability for count, probability in law.items()})


def fit(values: Tensor, law: dict[int, float]) -> float:
    """p-value of chi-square; values too rare to be judged alone (less than 10 expected) are taken together."""
    counts = torch.bincount(values, minlength=1 + max(law))
    assert int(counts.sum()) == sum(int(counts[value]) for value in law), "a value that cannot be"
    cells = [(int(counts[value]), probability * len(values)) for value, probability in law.items()]
    rare = [cell for cell in cells if cell[1] < 10]
    cells = [cell for cell in cells if cell[1] >= 10]
    if sum(mean for _, mean in rare) >= 10:
        cells.append((sum(count for count, _ in rare), sum(mean for _, mean in rare)))
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    return float(stats.chi2.sf(statistic, len(cells) - 1))
