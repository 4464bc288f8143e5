"""Classifier-free guidance (arXiv:2207.12598): how far from the unconditional logits past the conditional ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """logits = null + scale * (conditional - null); scale 1 is no guidance."""

    scale: float = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the scale rises over the tokens from 1 to `scale`; "constant": it is `scale` throughout."""
    power: float = 1.0
    """For "cosine": scale(t) = 1 + (scale - 1) (1 - cos(pi t^power)) / 2 (RAR, arXiv:2411.00776)."""
    steps: int | None = None
    """Guide the first `steps` tokens only (LlamaGen's cfg_interval k is steps = k + 2); None: all."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance scale must be a finite number, got {self.scale}")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"guidance steps must be 0 or more, got {self.steps}")
        if self.power <= 0:
            raise ValueError(f"guidance power must be above 0, got {self.power}")

    def scales(self, num_tokens: int) -> list[float]:
        """The scale of each token."""
        guided = num_tokens if self.steps is None else min(self.steps, num_tokens)
        return [self.at(i / num_tokens, i / max(num_tokens - 1, 1)) for i in range(guided)] + [1.0] * (
            num_tokens - guided
        )

    def at(self, share: float, progress: float) -> float:
        """`share` reaches 1 after the last token, `progress` at the last token."""
        if self.schedule == "constant":
            return self.scale
        if self.schedule == "linear":
            return 1 + (self.scale - 1) * progress
        return 1 + (self.scale - 1) * (1 - math.cos(math.pi * share**self.power)) / 2


def last_guided(scales: list[float]) -> int:
    """How many tokens need the unconditional rows: up to the last whose scale is not 1."""
    return max((i + 1 for i, scale in enumerate(scales) if scale != 1.0), default=0)


def guide(logits: Tensor, scale: float) -> Tensor:
    """Rows [conditional; null] -> guided, half as many: 2b ... v -> b ... v, in float32 (float64 stays)."""
    conditional, null = wide(logits).chunk(2)
    return null + scale * (conditional - null)


def guide_at(logits: Tensor, scales: Tensor) -> Tensor:
    """The same with scales that differ by place (broadcast against b w v); a scale of 1 is exactly no guidance."""
    conditional, null = wide(logits).chunk(2)
    return torch.where(scales == 1, conditional, null + scales * (conditional - null))


def wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
