"""The law of the next token: logits to log-probabilities. Pure, in float32, the same for every sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Law:
    """Applied in this order: temperature, top-k, top-p, min-p, typical, top-H; each to what the one before has left."""

    temperature: float = 1.0
    """Divides the logits; 0: always the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens, ties with the k-th included; 0: all."""
    top_p: float = 1.0
    """Keep the most likely tokens until their mass exceeds this; the one that crosses it stays."""
    min_p: float = 0.0
    """Keep tokens that are at least this share as likely as the most likely one; 0: all (arXiv:2407.01082)."""
    typical: float = 1.0
    """Keep the tokens whose surprise is closest to the entropy until their mass reaches this, ties with the last one
    included; 1: all (arXiv:2202.00666)."""
    top_h: float = 0.0
    """Keep the most likely tokens as long as their entropy is at most this share of the whole law's; at least one;
    0: all (arXiv:2509.02510)."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be between 0 (all) and 1, got {self.min_p}")
        if not 0 < self.typical <= 1:
            raise ValueError(f"typical must be above 0 and at most 1 (all), got {self.typical}")
        if not 0 <= self.top_h <= 1:
            raise ValueError(f"top_h must be between 0 (all) and 1, got {self.top_h}")

    def __call__(self, logits: Tensor) -> Tensor:
        """... v -> log-probabilities ... v, float32 (float64 from float64); -inf for tokens that cannot be drawn."""
        if logits.dtype != torch.float64:
            logits = logits.float()
        if self.temperature == 0:
            return one_hot(logits.argmax(-1), logits)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = keep_min_p(logits, self.min_p)
        if self.typical < 1:
            logits = keep_typical(logits, self.typical)
        if 0 < self.top_h < 1:
            logits = keep_top_h(logits, self.top_h)
        return logits.log_softmax(-1)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    threshold = logits.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """A token stays if the mass of the likelier ones is at most p; of equals, the lower index counts as likelier."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    return unsort(ordered.masked_fill(before > p, -torch.inf), order)


def keep_min_p(logits: Tensor, share: float) -> Tensor:
    threshold = logits.amax(-1, keepdim=True) + math.log(share)
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_typical(logits: Tensor, mass: float) -> Tensor:
    """The shortest run of tokens, by |-log p - entropy| from below, that reaches the mass, and equals of its last."""
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    distance = (log_probs + torch.special.entr(probs).sum(-1, keepdim=True)).abs()
    ordered, order = distance.sort(dim=-1)
    probs = probs.gather(-1, order)
    before = probs.cumsum(-1) - probs
    last = ordered.masked_fill(before >= mass, 0.0).amax(-1, keepdim=True)
    return logits.masked_fill(distance > last, -torch.inf)


def keep_top_h(logits: Tensor, share: float) -> Tensor:
    """The longest run of tokens, the likelier ones first, with at most this share of the entropy (not among the first
    100 alone, as in the published code); of equals, the lower index counts as likelier."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1)
    mass, surprise = probs.cumsum(-1), torch.special.entr(probs).cumsum(-1)
    entropy = surprise / mass + mass.log()  # of each run, renormalised; it grows with the run
    excess = entropy > share * entropy[..., -1:]
    excess[..., 0] = False
    return unsort(ordered.masked_fill(excess, -torch.inf), order)


def unsort(ordered: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(ordered).scatter_(-1, order, ordered)


def settled(log_law: Tensor, given: Tensor) -> Tensor:
    """Log-probabilities ... v, where a token that is given in advance (... , -1 where there is none) has all mass."""
    return torch.where((given < 0)[..., None], log_law, one_hot(given.clamp_min(0), log_law))


def one_hot(index: Tensor, like: Tensor) -> Tensor:
    """Log-probabilities that allow `index` alone."""
    return torch.full_like(like, -torch.inf).scatter_(-1, index[..., None], 0.0)
