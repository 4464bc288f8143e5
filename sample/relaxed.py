"""Relaxed acceptance: a draft counts for its neighbours in the codebook too (LANTERN). Not exact, but certified.

The published rule bounds, for each draft, the mass that it borrows from neighbours; the law of what comes out can be
further off. Here the extra acceptance has a budget, and the distance of the outcome from the target cannot exceed it.
The residual after a rejection stays that of the exact rule, and no neighbour is taken out of it. The published code's
rule for trees, which does so, stands at the end to be compared with; no strategy uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imgtok.sample.coupling import Choice, Verdict, first_accepted, first_rejection, of_tokens


def neighbours(codes: Tensor, k: int) -> Tensor:
    """The k nearest codes of each one by Euclidean distance, nearest first, itself excluded: v d -> v k, int64.

    Codes that are equally far come in any order.

    Raises:
        ValueError: k is not in [1, v).
    """
    v = codes.shape[0]
    if not 1 <= k < v:
        raise ValueError(f"k must be at least 1 and less than the {v} codes, got {k}")
    rows = torch.arange(v, device=codes.device)
    nearest = []
    for part in rows.split(1024):  # all distances at once would take v^2 memory
        # not as |a|^2 - 2 a b + |b|^2, which loses the order of close codes
        distance = torch.cdist(codes[part], codes, compute_mode="donot_use_mm_for_euclid_dist")
        distance.scatter_(-1, part[:, None], torch.inf)
        nearest.append(distance.topk(k, largest=False).indices)
    return torch.cat(nearest)


def relaxed_value(
    p: Tensor, neighbours: Tensor, *, delta: float | None = None, multiplier: float | None = None
) -> Tensor:
    """p(x) and the mass of x's nearest neighbours, as many as a limit allows: p ... v, neighbours v k -> ... v.

    The limit is `delta` (LANTERN, arXiv:2410.03355) or (`multiplier` - 1) p(x) (LANTERN++, arXiv:2502.06352).
    Takes ... v k memory.

    Raises:
        ValueError: not exactly one limit; delta outside [0, 1] or multiplier below 1.
    """
    return p + _borrowed(p, p[..., neighbours], delta, multiplier)[0]


def _borrowed(own: Tensor, near: Tensor, delta: float | None, multiplier: float | None) -> tuple[Tensor, Tensor]:
    """What tokens of probability own (...) may borrow of their neighbours, near (... k), and whether from any: ...."""
    mass = near.cumsum(-1)
    allowed = mass <= _limit(own, delta, multiplier)
    return mass.masked_fill(~allowed, 0.0).amax(-1), allowed[..., 0]


def _limit(p: Tensor, delta: float | None, multiplier: float | None) -> Tensor | float:
    if multiplier is None and delta is not None:
        if not 0 <= delta <= 1:
            raise ValueError(f"delta must be between 0 and 1, got {delta}")
        return delta
    if delta is None and multiplier is not None:
        if not multiplier >= 1:
            raise ValueError(f"multiplier must be 1 or more, got {multiplier}")
        return (multiplier - 1) * p[..., None]
    raise ValueError(f"exactly one of delta and multiplier is needed, got {delta} and {multiplier}")


def certified(p: Tensor, q: Tensor, relaxed: Tensor, epsilon: float) -> Tensor:
    """How much of each token is to be output as an accepted draft, within a budget: ... v, for `verify_relaxed`.

    min(q, p) and as large a share of min(q, relaxed) - min(q, p) as adds at most epsilon. What is added is the total
    variation distance of the outcome from p, and no verifier gains as much acceptance at less. 0: exact; 1: no limit.

    Raises:
        ValueError: epsilon outside [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be between 0 and 1, got {epsilon}")
    exact = torch.minimum(q, p)
    extra = torch.minimum(q, relaxed) - exact
    gain = extra.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    return exact + (epsilon / gain).clamp_max(1) * extra


def verify_relaxed(p: Tensor, q: Tensor, mass: Tensor, drafts: Tensor, uniforms: Tensor) -> Verdict:
    """`verify_chain` with the acceptance of draft x set to mass(x) / q(x): p b k+1 v, q and mass b k v, drafts b k.

    At every position the law of the token, given those before it, is within sum(mass) - overlap(p, q) of p.
    """
    return first_rejection(p, q, uniforms * of_tokens(q, drafts) < of_tokens(mass, drafts))


def verify_published_list(
    p: Tensor,
    nearest: Tensor,
    removed: Tensor,
    candidates: Tensor,
    uniforms: Tensor,
    *,
    delta: float | None = None,
    multiplier: float | None = None,
) -> Choice:
    """What LANTERN's code does with a fixed list of candidates, such as children in a dynamic tree: only to compare.

    p b v, nearest v k, candidates and uniforms b c; limits as in `relaxed_value`. Each candidate is accepted with its
    relaxed value under what is left of p. A rejection takes the candidate out of p, and, if it could borrow from any
    neighbour (one of no probability counts), `removed` (v n) with it: `nearest` is what was meant, one neighbour more
    what the code takes. If nothing is left, every code is as likely, also those that truncation had ruled out.

    The clean rule is `verify_recursive` with one-hot laws, which is exact. This one loses neighbours that no draft
    proposed, and no distance from p bounds it: in small cases it was up to 0.77.
    """
    accepted = []
    for candidate, uniform in zip(candidates.unbind(1), uniforms.unbind(1), strict=True):
        own = of_tokens(p, candidate)
        borrowed, from_any = _borrowed(own, p.gather(-1, nearest[candidate]), delta, multiplier)
        accepted.append(uniform < own + borrowed)
        rest = p.scatter(-1, candidate[:, None], 0.0)
        rest = torch.where(from_any[:, None], rest.scatter(-1, removed[candidate], 0.0), rest)
        mass = rest.sum(-1, keepdim=True)
        p = torch.where(mass > 0, rest / mass, 1 / p.shape[-1])
    return Choice(first_accepted(torch.stack(accepted, dim=1)), p)
