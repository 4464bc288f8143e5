"""Whether things are drawn as often as a law says."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor


def check_frequencies(counts: Tensor, probs: Tensor) -> None:
    """Chi-square of how often each was drawn, its law in float64; a right one fails once in a million tries.

    What is expected less than ten times is too rare to be judged alone: all such are judged together, if at all.
    """
    torch.testing.assert_close(probs.sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)
    assert not counts[probs == 0].any()
    expected = probs * counts.sum()
    often = expected >= 10
    groups = [(counts[often], expected[often]), (counts[~often].sum()[None], expected[~often].sum()[None])]
    groups = [(count, mean) for count, mean in groups if mean.sum() >= 10]
    statistic = sum(float(((count - mean) ** 2 / mean).sum()) for count, mean in groups)
    freedom = sum(len(count) for count, _ in groups) - 1
    assert freedom >= 7
    assert statistic < stats.chi2.ppf(1 - 1e-6, freedom)
