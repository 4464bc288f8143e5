"""The law of the next token: logits to log-probabilities. Pure, in float32, the same for every sampler."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Law:
    """Applied in this order: temperature, top-k, top-p."""

    temperature: float = 1.0
    """Divides the logits; 0: always the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens, ties with the k-th included; 0: all."""
    top_p: float = 1.0
    """Keep the most likely tokens until their mass exceeds this; the one that crosses it stays."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def __call__(self, logits: Tensor) -> Tensor:
        """... v -> log-probabilities ... v, float32; -inf for tokens that cannot be drawn."""
        logits = logits.float()
        if self.temperature == 0:
            return one_hot(logits.argmax(-1), logits)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        return logits.log_softmax(-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """A token stays if the mass of the likelier ones is at most p; of equals, the lower index counts as likelier."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    kept = ordered.masked_fill(before > p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, kept)


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Log-probabilities that allow `index` alone."""
    return torch.full_like(like, -torch.inf).scatter_(-1, index[..., None], 0.0)
