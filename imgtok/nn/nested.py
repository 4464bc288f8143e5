"""Nested dropout: how many of the first tokens of each image training keeps, so that the first matter most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NestedDropout:
    """A distribution of kept lengths (arXiv:1402.0915; of tokens in One-D-Piece, arXiv:2501.10064, and FlexTok).

    The token at place i is then there with the probability that a length is i or more, which falls with i.
    """

    law: Literal["uniform", "powers"] = "uniform"
    """All lengths from `least` to all tokens alike; or `least`, twice, four times, … as many, and all, alike."""
    per: Literal["batch", "image"] = "batch"
    """One draw for all images of a batch, whose decoder then reads shorter sequences; or one for each."""
    share: float = 1.0
    """Share of the draws that are by the law; the others keep all tokens."""
    least: int = 1
    """Shortest length."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}; without nested dropout give None")
        if self.least < 1:
            raise ValueError(f"least must be at least 1, got {self.least}")

    def lengths(self, total: int) -> tuple[int, ...]:
        """What the law draws from, of `total` tokens; rising, the last is all. ValueError if there are too few."""
        if total < self.least:
            raise ValueError(f"at least {self.least} tokens are to be kept, but an image has only {total}")
        if self.law == "uniform":
            return tuple(range(self.least, total + 1))
        doublings = (self.least * 2**i for i in range(total.bit_length()))
        return (*(length for length in doublings if length < total), total)

    def draw(self, batch: int, total: int) -> Tensor:
        """Kept lengths of `batch` images of `total` tokens: b, int64; on the CPU, so that nothing waits for a device.

        Drawn from torch's global generator, as all dropout is.
        """
        lengths = torch.tensor(self.lengths(total))
        draws = batch if self.per == "image" else 1
        kept = lengths[torch.randint(len(lengths), (draws,))]
        if self.share < 1:
            kept = torch.where(torch.rand(draws) < self.share, kept, total)
        return kept.expand(batch)
