"""Couplings: a draft becomes a draw from the target's law, and is kept as often as possible.

Pure functions of probabilities: p is the target's law, q the draft's, both after guidance and truncation. Shapes are
fixed and nothing waits for the device, except in the yardsticks at the end. Uniforms lie in [0, 1), one for each draft;
the token that follows is for the caller to draw from `law`, with noise of its own. Every verifier here is exact.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Verdict(NamedTuple):
    """What is left of a chain of drafts."""

    length: Tensor
    """Drafts to keep: b, int64 in [0, k]."""
    law: Tensor
    """Of the token after them: b v."""


class Choice(NamedTuple):
    """What is left of several candidates for one position."""

    chosen: Tensor
    """The first accepted one: b, int64 in [0, k]; k if there is none."""
    law: Tensor
    """Of the token if there is none: b v."""


class KSeq(NamedTuple):
    """The constants of K-SEQ: gamma divides the acceptance, beta is the acceptance of one candidate."""

    gamma: Tensor
    """..., in [1, k]."""
    beta: Tensor
    """..., in [0, 1]."""
    residual: Tensor
    """... v, the law of the token if all are rejected."""


def overlap(p: Tensor, q: Tensor) -> Tensor:
    """Sum of min(p, q), the most that one draft can be accepted: ... v -> ... (arXiv:2211.17192, theorem 3.5)."""
    return torch.minimum(p, q).sum(-1)


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """min(1, p / q) of each token, 0 / 0 counting as 1: ... v (arXiv:2211.17192, section 2.3)."""
    return torch.where(p < q, p / q, 1.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """The positive part of p - q, normalised: ... v; p where nothing is left (arXiv:2211.17192, section 2.3)."""
    rest = (p - q).clamp_min(0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, p)


def shared_noise_match(p: Tensor, q: Tensor) -> Tensor:
    """How likely argmax(log p + noise) and argmax(log q + noise) are both x, for the same Gumbel noise: ... v.

    1 / sum_z max(p_z / p_x, q_z / q_x) (arXiv:2408.07978). Their sum, the probability that the two agree, is between
    overlap / (2 - overlap) and overlap. Sorted by p / q, p makes the maximum from x on and q before: V log V.
    """
    order = _ratio(p, q).argsort(-1)
    p_up, q_up = p.gather(-1, order), q.gather(-1, order)
    from_here = p_up.flip(-1).cumsum(-1).flip(-1)
    before = q_up.cumsum(-1) - q_up
    share = torch.where((p_up > 0) & (q_up > 0), 1 / (from_here / p_up + before / q_up), 0.0)
    return torch.empty_like(share).scatter_(-1, order, share)


# One draft for each of several positions: p b k+1 v, q b k v, drafts b k, uniforms b k.


def verify_chain(p: Tensor, q: Tensor, drafts: Tensor, uniforms: Tensor) -> Verdict:
    """Each draft is accepted with min(1, p / q), up to the first that is not (arXiv:2211.17192, algorithm 1).

    p[:, i] and q[:, i] are the laws after the first i drafts; the last of p is the one after all of them.
    """
    return first_rejection(p, q, uniforms * of_tokens(q, drafts) < of_tokens(p[:, :-1], drafts))


def first_rejection(p: Tensor, q: Tensor, accepted: Tensor) -> Verdict:
    """The drafts before the first rejection, accepted b k, and the residual there; the last of p if there is none."""
    length = accepted.long().cumprod(-1).sum(-1)
    return Verdict(length, residual(_at(p, length), _at(F.pad(q, (0, 0, 0, 1)), length)))


def verify_block(p: Tensor, q: Tensor, drafts: Tensor, uniforms: Tensor) -> Verdict:
    """The drafts are judged together; on average more are kept than by `verify_chain` (arXiv:2403.10444).

    Shapes as there. share[i] is how often the first i drafts must be kept for the outcome to have the target's law.
    """
    ratios = of_tokens(p[:, :-1], drafts) / of_tokens(q, drafts).clamp_min(_tiny(q))
    shares = [torch.ones_like(p[:, 0, 0])]
    for ratio in ratios.unbind(-1):
        shares.append((shares[-1] * ratio).clamp_max(1))
    share = torch.stack(shares, dim=-1)  # b k+1
    kept = uniforms < _block_acceptance(p, q, share)
    length = (F.pad(kept, (1, 0)) * torch.arange(share.shape[1], device=p.device)).amax(-1)
    rest = _at(p, length) * share.gather(1, length[:, None])
    return Verdict(length, residual(rest, _at(F.pad(q, (0, 0, 0, 1)), length)))


def _block_acceptance(p: Tensor, q: Tensor, share: Tensor) -> Tensor:
    """How often the first 1 ... k drafts are kept if no longer run of them is: b k."""
    inner = share[:, 1:-1]
    gain = (inner[..., None] * p[:, 1:-1] - q[:, 1:]).clamp_min(0).sum(-1)
    missing = gain + 1 - inner
    # nothing missing: a longer run is kept for certain, so any value will do
    return torch.cat([torch.where(missing > 0, gain / missing, 1.0), share[:, 1:][:, -1:]], dim=-1)


# Several drafts for one position: p b v, q b v, candidates b k, uniforms b k.


def without_replacement(q: Tensor, candidates: Tensor) -> Tensor:
    """Laws of candidates drawn one after the other, each unlike those before: q ... v, candidates ... k -> ... k v.

    Law i is q without the first i candidates, normalised; the k largest of log q + Gumbel noise follow it, in order.
    Where q has no token left, the candidate counts as given, which keeps the verifiers exact.
    """
    laws = []
    for candidate in candidates.split(1, dim=-1):
        mass = q.sum(-1, keepdim=True)
        given = torch.zeros_like(q).scatter(-1, candidate, 1.0)
        laws.append(torch.where(mass > 0, q / mass, given))
        q = q.scatter(-1, candidate, 0.0)
    return torch.stack(laws, dim=-2)


def verify_recursive(p: Tensor, laws: Tensor, candidates: Tensor, uniforms: Tensor) -> Choice:
    """Candidate by candidate, the residual of one being the target of the next (arXiv:2305.09781, arXiv:2402.14160).

    laws b k v: of each candidate, given those before it. With replacement: q for all. Without: `without_replacement`.
    For a fixed list: one-hot; then the acceptance is the target's mass of the list.
    """
    accepted = []
    for law, candidate, uniform in zip(laws.unbind(1), candidates.unbind(1), uniforms.unbind(1), strict=True):
        accepted.append(uniform * of_tokens(law, candidate) < of_tokens(p, candidate))
        p = residual(p, law)
    return Choice(first_accepted(torch.stack(accepted, dim=1)), p)


def first_accepted(accepted: Tensor) -> Tensor:
    """How many candidates come before the first accepted one: b k -> b."""
    return (~accepted).long().cumprod(-1).sum(-1)


def k_seq(p: Tensor, q: Tensor, k: int) -> KSeq:
    """For k candidates drawn from q with replacement, p and q ... v (SpecTr, arXiv:2310.15141).

    gamma is the root of 1 - (1 - beta)^k = gamma beta, with beta = sum min(q, p / gamma), by bisection to the last bit.
    There the residual p - min(q, p / gamma) (1 - (1 - beta)^k) / beta is the positive part of p - gamma q.
    """
    low = torch.ones_like(p[..., :1])
    high = torch.full_like(low, k)
    for _ in range(26 if p.dtype == torch.float32 else 56):  # bits of the significand, and some for k
        gamma = (low + high) / 2
        beta = overlap(q, p / gamma)[..., None].clamp_max(1)
        below = -torch.expm1(k * torch.log1p(-beta)) > gamma * beta
        low, high = torch.where(below, gamma, low), torch.where(below, high, gamma)
    return KSeq(low[..., 0], overlap(q, p / low), residual(p, low * q))


def verify_k_seq(p: Tensor, q: Tensor, candidates: Tensor, uniforms: Tensor) -> Choice:
    """Each candidate is accepted with min(1, p / (gamma q)), up to the first that is; see `k_seq`."""
    gamma, _, rest = k_seq(p, q, candidates.shape[1])
    bar = uniforms * gamma[:, None] * q.gather(-1, candidates)
    return Choice(first_accepted(bar < p.gather(-1, candidates)), rest)


# Yardsticks, for measurements and small vocabularies.


def optimal_acceptance(p: Tensor, q: Tensor, k: int, replacement: bool) -> Tensor:
    """The most that k candidates from q can be accepted by any exact verifier: ... v -> ....

    1 + min_H [p(H) - P(all candidates are in H)] (arXiv:2502.18779), with H among the first tokens by p / q. Costs
    V log V with replacement. Without, V^k k V in time and memory.

    Raises:
        ValueError: q has fewer than k tokens to draw without replacement.
    """
    order = _ratio(p, q).argsort(-1)
    p, q = p.gather(-1, order), q.gather(-1, order)
    inside = q.cumsum(-1) ** k if replacement else _inside(q, k)
    return 1 + (p.cumsum(-1) - inside).amin(-1).clamp_max(0)


def greedy_draft_acceptance(p: Tensor, q: Tensor, k: int) -> Tensor:
    """The most that can be accepted of q's k - 1 likeliest tokens and one more from the rest of q: ... v -> ...."""
    fixed = q.argsort(dim=-1, descending=True, stable=True)[..., : k - 1]
    rest = q.scatter(-1, fixed, 0.0)
    rest = rest / rest.sum(-1, keepdim=True).clamp_min(_tiny(q))
    return p.gather(-1, fixed).sum(-1) + overlap(p.scatter(-1, fixed, 0.0), rest)


def draw_then_match_acceptance(p: Tensor, q: Tensor, k: int, replacement: bool) -> Tensor:
    """How often a draw from p is among k candidates from q: ... v -> .... Cost and errors as `optimal_acceptance`."""
    if replacement:
        return (p * (1 - (1 - q) ** k)).sum(-1)
    tuples, law = _ordered(q, k)
    return (law * p[..., tuples].sum(-1)).sum(-1)


def expected_tokens(acceptance: float, gamma: int) -> float:
    """Tokens of a round of gamma drafts, each accepted with this probability (arXiv:2211.17192, equation 1)."""
    return float(sum(acceptance**i for i in range(gamma + 1)))


def speedup(acceptance: float, gamma: int, draft_cost: float, verify_cost: float) -> float:
    """Over one token for each call; costs of a draft and of a further token to verify, in units of a call."""
    return expected_tokens(acceptance, gamma) / (1 + gamma * (draft_cost + verify_cost))


def _inside(q: Tensor, k: int) -> Tensor:
    """How likely k candidates without replacement are all among the first n tokens, n = 1 ... v: ... v."""
    tuples, law = _ordered(q, k)
    return torch.zeros_like(q).index_add_(-1, tuples.amax(-1), law).cumsum(-1)


def _ordered(q: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All ordered choices of k tokens, n k, and how likely each is without replacement, ... n."""
    if bool(((q > 0).sum(-1) < k).any()):
        raise ValueError(f"{k} candidates without replacement need a draft law of at least {k} tokens")
    tuples = torch.tensor(list(permutations(range(q.shape[-1]), k)), device=q.device)
    candidates = tuples.expand(*q.shape[:-1], -1, -1)
    laws = without_replacement(q[..., None, :].expand(*candidates.shape[:-1], -1), candidates)
    return tuples, of_tokens(laws, candidates).prod(-1)


def of_tokens(probs: Tensor, tokens: Tensor) -> Tensor:
    """The probability of each token in its own law: ... v, ... -> ...."""
    return probs.gather(-1, tokens[..., None])[..., 0]


def _at(laws: Tensor, index: Tensor) -> Tensor:
    """b n v, b -> b v."""
    return laws.gather(1, index[:, None, None].expand(-1, 1, laws.shape[-1]))[:, 0]


def _ratio(p: Tensor, q: Tensor) -> Tensor:
    """p / q, infinite for tokens that q cannot draw."""
    return torch.where(q > 0, p / q, torch.inf)


def _tiny(x: Tensor) -> float:
    """Keeps a denominator above 0 without a change to any other."""
    return torch.finfo(x.dtype).tiny
