"""Mixtures of codes in place of single ones: smoother pictures of a next-scale generator, from another law."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """A place adds up all codes, weighted by softmax((s log p + noise) / tau) (Gumbel-softmax, arXiv:1611.01144).

    The defaults are those of VAR's option for pictures (arXiv:2404.02905), which is not meant for measuring FID. Its
    smallest temperature, 0.005, is left out: with these defaults it is never reached.
    """

    tau: float = 0.27
    """Of the first stage; it falls linearly to a twentieth at the last. Towards 0, one code has all the weight."""
    sharpen: float = 1.0
    """s rises linearly from 1 at the first stage to 1 + `sharpen` at the last: likelier codes are favoured."""

    def __post_init__(self) -> None:
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau must be a number above 0, got {self.tau}; leave smooth off to draw single codes")
        if not 0 <= self.sharpen < math.inf:
            raise ValueError(f"sharpen must be a number of at least 0, got {self.sharpen}")

    def scores(self, log_law: Tensor, noise: Tensor, stage: int, num_stages: int) -> Tensor:
        """What the softmax is of: log-probabilities and Gumbel noise b n v -> b n v; the largest is the token's."""
        share = stage / max(num_stages - 1, 1)
        return (log_law * (1 + self.sharpen * share) + noise) / (self.tau * (1 - 0.95 * share))
