"""Couplings: laws of what comes out, by enumeration of every draft and every decision, never by sampling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.sample.coupling import (
    Choice,
    Verdict,
    acceptance,
    draw_then_match_acceptance,
    expected_tokens,
    greedy_draft_acceptance,
    k_seq,
    of_tokens,
    optimal_acceptance,
    overlap,
    residual,
    shared_noise_match,
    speedup,
    verify_block,
    verify_chain,
    verify_k_seq,
    verify_recursive,
    without_replacement,
)

from . import oracles
from .enumeration import choice_law, length_law

Verifier = Callable[[Tensor, Tensor, Tensor, Tensor], Verdict]


def random_laws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * logits).softmax(-1).to(dtype)


# One draft


@pytest.mark.parametrize("case", oracles.cases("single_draft"))
def test_one_draft_is_accepted_as_often_as_known(case):
    p, q = oracles.law(case["inputs"]["target"]), oracles.law(case["inputs"]["draft"])
    expected = case["expected"]
    known = [(token, value) for token, value in enumerate(expected["accept_prob_per_token"]) if value is not None]
    tokens = torch.tensor([token for token, _ in known])
    oracles.close(case, acceptance(p, q)[tokens], [value for _, value in known], "acceptance of each token")
    oracles.close(case, overlap(p, q), expected["acceptance"], "acceptance")
    oracles.close(case, 1 - overlap(p, q), expected["tv_distance"], "distance")
    oracles.close(case, residual(p, q), expected["residual"] or case["inputs"]["target"], "residual")
    oracles.close(case, shared_noise_match(p, q), expected["gumbel_coupling_match_per_token"], "match of each token")
    oracles.close(case, shared_noise_match(p, q).sum(), expected["gumbel_coupling_match"], "match")
    for gamma, tokens_per_round in expected["expected_tokens_if_iid"].items():
        oracles.close(case, expected_tokens(expected["acceptance"], int(gamma)), tokens_per_round, f"gamma {gamma}")


@pytest.mark.parametrize("verify", [verify_chain, verify_block])
@pytest.mark.parametrize("case", oracles.cases("single_draft"))
def test_one_draft_becomes_a_draw_from_the_target(case, verify):
    p, q = oracles.law(case["inputs"]["target"]), oracles.law(case["inputs"]["draft"])
    v = len(p)
    arguments = p.expand(v, 2, v), q.expand(v, 1, v), torch.arange(v)[:, None]
    lengths, tokens = length_law(partial(verify, *arguments), v, 1)
    oracles.close(case, q * lengths[:, 1] + q @ tokens[:, 0], case["expected"]["output"], "output")
    oracles.close(case, q @ lengths[:, 1], case["expected"]["acceptance"], "acceptance")


def test_the_residual_of_equals_is_the_law_itself():
    p = random_laws(3, 7)
    torch.testing.assert_close(residual(p, p), p)


def test_a_token_that_neither_law_has_counts_as_accepted():
    assert acceptance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])).tolist() == [1.0, 1.0]


def test_a_draft_that_the_target_cannot_draw_is_never_accepted():
    p, q = torch.tensor([[[0.0, 1.0]] * 2]), torch.zeros(1, 1, 2)  # q underflowed
    for verify in (verify_chain, verify_block):
        verdict = verify(p, q, torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
        assert (verdict.length.tolist(), verdict.law.tolist()) == ([0], [[0.0, 1.0]])


def test_shared_noise_matches_as_often_as_the_double_sum_says():
    p, q = random_laws(2, 30, seed=1), random_laws(2, 30, seed=2)
    p[:, 3] = q[:, 5] = p[:, 7] = q[:, 7] = 0
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    worst = torch.maximum(p[:, None] / p[..., None], q[:, None] / q[..., None]).sum(-1)
    expected = torch.where((p > 0) & (q > 0), 1 / worst, 0.0)
    torch.testing.assert_close(shared_noise_match(p, q), expected)


def test_shared_noise_matches_as_often_as_it_is_seen_to():
    p, q, n = random_laws(6, seed=1), random_laws(6, seed=2), 200_000
    uniform = torch.rand(n, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = -(-uniform.log()).log()
    seen = (noise + p.log()).argmax(-1) == (noise + q.log()).argmax(-1)
    expected = shared_noise_match(p, q).sum()
    assert abs(seen.double().mean() - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


# A chain of drafts


class Markov:
    """A model of an oracle whose tokens depend on up to two before them."""

    def __init__(self, inputs: dict[str, Any], who: str) -> None:
        self.first, self.second, self.later = (
            torch.tensor(inputs[f"{who}_{name}"], dtype=torch.float64)
            for name in ("first", "second_given_first", "later_given_two")
        )

    def law(self, prefix: tuple[int, ...]) -> Tensor:
        return (self.first, self.second, self.later)[min(len(prefix), 2)][prefix[-2:] if prefix else ()]

    def laws(self, prefix: tuple[int, ...], drafts: list[tuple[int, ...]], n: int) -> Tensor:
        """After the first 0 ... n - 1 drafts: b n v."""
        return torch.stack([torch.stack([self.law((*prefix, *draft[:i])) for i in range(n)]) for draft in drafts])


def one_round(
    verify: Verifier, target: Markov, draft: Markov, prefix: tuple[int, ...], k: int, room: int
) -> dict[tuple[int, ...], float]:
    """How likely each prefix is after a round of k drafts; `room` tokens are left to draw."""
    v = len(target.first)
    drafts = list(product(range(v), repeat=k))
    tokens = torch.tensor(drafts)
    p, q = target.laws(prefix, drafts, k + 1), draft.laws(prefix, drafts, k)
    lengths, following = length_law(partial(verify, p, q, tokens), len(drafts), k)
    weights = of_tokens(q, tokens).prod(-1)
    outcomes: dict[tuple[int, ...], float] = defaultdict(float)
    for weight, drafted, length_share, token_share in zip(
        weights.tolist(), drafts, lengths.tolist(), following.tolist(), strict=True
    ):
        for length in range(k + 1):
            kept = (*prefix, *drafted[:length])
            if length == room:
                outcomes[kept] += weight * length_share[length]
                continue
            for token in range(v):
                outcomes[(*kept, token)] += weight * token_share[length][token]
    return outcomes


def sequences(
    verify: Verifier, target: Markov, draft: Markov, gamma: int, n: int
) -> dict[tuple[tuple[int, ...], int], float]:
    """How likely each sequence of n tokens is to come out, by number of calls."""
    found: dict[tuple[tuple[int, ...], int], float] = defaultdict(float)
    open_: dict[tuple[tuple[int, ...], int], float] = {((), 0): 1.0}
    while open_:
        following: dict[tuple[tuple[int, ...], int], float] = defaultdict(float)
        for (prefix, calls), reached in open_.items():
            room = n - len(prefix)
            for longer, share in one_round(verify, target, draft, prefix, min(gamma, room), room).items():
                (found if len(longer) == n else following)[longer, calls + 1] += reached * share
        open_ = following
    return found


def samplers(case: dict[str, Any]) -> Iterator[tuple[str, Verifier, int]]:
    """Those of a case that verify drafts of a model, with their number of drafts."""
    for name in case["expected"]:
        kind, _, gamma = name.rpartition("_gamma")
        if kind:
            yield name, {"chain_speculation": verify_chain, "block_verification": verify_block}[kind], int(gamma)


@pytest.mark.parametrize("case", oracles.cases("markov_joint"))
def test_sequences_have_the_joint_law_and_take_as_many_calls_as_known(case):
    target, draft = Markov(case["inputs"], "target"), Markov(case["inputs"], "draft")
    checked = 0
    for name, verify, gamma in samplers(case):
        joint, calls = defaultdict(float), defaultdict(float)
        for (tokens, count), share in sequences(verify, target, draft, gamma, case["inputs"]["length"]).items():
            joint["".join(map(str, tokens))] += share
            calls[str(count)] += share
        oracles.close(case, mapped(joint, case["expected"]["joint"]), [*case["expected"]["joint"].values()], name)
        known = case["expected"][name]["calls_distribution"]
        oracles.close(case, mapped(calls, known), [*known.values()], name)
        mean = sum(int(count) * share for count, share in calls.items())
        oracles.close(case, mean, case["expected"][name]["expected_calls"], name)
        checked += 1
    assert checked


def mapped(found: dict[str, float], known: dict[str, float]) -> list[float]:
    """In the order of the known ones; what is not among them has no weight."""
    assert all(share < 1e-12 for key, share in found.items() if key not in known)
    return [found[key] for key in known]


def test_a_block_keeps_more_of_the_same_drafts_than_a_chain():
    drafts = torch.tensor(list(product(range(4), repeat=3)))
    p, q = tree_laws(4, 3, seed=0), tree_laws(4, 3, seed=1)[:, :3]
    weights = of_tokens(q, drafts).prod(-1)
    means = {}
    for verify in (verify_chain, verify_block):
        lengths, tokens = length_law(partial(verify, p, q, drafts), len(drafts), 3)
        means[verify] = weights @ (lengths @ torch.arange(4.0, dtype=torch.float64))
        first = (weights @ tokens[:, 0]).index_add(0, drafts[:, 0], weights * lengths[:, 1:].sum(-1))
        torch.testing.assert_close(first, p[0, 0])
    assert means[verify_block] > means[verify_chain] + 1e-3


def tree_laws(v: int, k: int, seed: int) -> Tensor:
    """Laws after the first 0 ... k tokens of each sequence, equal where the tokens before are: v^k k+1 v."""
    columns = []
    for i in range(k + 1):
        columns.append(random_laws(v**i, v, seed=10 * seed + i).repeat_interleave(v ** (k - i), 0))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("verify", [verify_chain, verify_block])
def test_drafts_of_the_target_itself_are_all_accepted(verify):
    p = random_laws(2, 5, 7, dtype=torch.float32)
    drafts = torch.tensor([[0, 1, 2, 3], [6, 5, 4, 3]])
    verdict = verify(p, p[:, :4], drafts, torch.full((2, 4), 1 - 2.0**-24))
    assert verdict.length.tolist() == [4, 4]
    torch.testing.assert_close(verdict.law, p[:, 4])


@pytest.mark.parametrize("verify", [verify_chain, verify_block])
def test_without_drafts_the_law_is_the_target(verify):
    p = random_laws(2, 1, 7)
    verdict = verify(p, p[:, :0], torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    assert verdict.length.tolist() == [0, 0]
    torch.testing.assert_close(verdict.law, p[:, 0])


def test_rows_are_judged_apart():
    p, q = random_laws(5, 4, 6, seed=1), random_laws(5, 3, 6, seed=2)
    dice = torch.Generator().manual_seed(0)
    drafts, uniforms = torch.randint(6, (5, 3), generator=dice), torch.rand(5, 3, generator=dice)
    for verify in (verify_chain, verify_block):
        together = verify(p, q, drafts, uniforms)
        for row in range(5):
            alone = verify(*(x[row : row + 1] for x in (p, q, drafts, uniforms)))
            assert alone.length[0] == together.length[row]
            torch.testing.assert_close(alone.law[0], together.law[row])


# Several drafts for one position


class Outcome(NamedTuple):
    law: Tensor  # of the token: v
    acceptance: Tensor
    stages: Tensor  # how likely each candidate is accepted, given that its turn comes: k
    residual: Tensor  # of the token if all are rejected: n v


def outcome(verify: Callable[..., Choice], p: Tensor, laws: Tensor, candidates: Tensor, weights: Tensor) -> Outcome:
    """What comes out of lists of candidates with these weights: p v, laws n v or n k v, candidates n k, weights n."""
    n, k = candidates.shape
    decide = partial(verify, p.expand(n, -1), laws, candidates)
    chosen, tokens = choice_law(decide, n, k)
    accepted = (weights[:, None] * chosen)[:, :k]
    turns = (weights @ chosen).flip(0).cumsum(0).flip(0)[:k]
    return Outcome(
        law=(weights @ tokens[:, k]).index_add(0, candidates.flatten(), accepted.flatten()),
        acceptance=accepted.sum(),
        stages=accepted.sum(0) / turns,
        residual=decide(torch.ones(n, k)).law,
    )


def candidates_of(q: Tensor, k: int, replacement: bool) -> tuple[Tensor, Tensor]:
    """Every list of k candidates that can be drawn, n k, and how likely it is, n."""
    lists, weights = [], []
    for candidates in product(range(len(q)), repeat=k):
        weight, left = 1.0, 1.0
        for i, token in enumerate(candidates):
            fresh = replacement or token not in candidates[:i]
            weight *= q[token].item() / left if fresh else 0.0
            left -= 0.0 if replacement else q[token].item()
        if weight > 0:
            lists.append(candidates)
            weights.append(weight)
    return torch.tensor(lists), torch.tensor(weights, dtype=torch.float64)


@pytest.fixture(params=oracles.cases("multi_draft"))
def several(request) -> tuple[dict[str, Any], Tensor, Tensor, int]:
    inputs = request.param["inputs"]
    return request.param, oracles.law(inputs["target"]), oracles.law(inputs["draft"]), inputs["k"]


@pytest.mark.parametrize("replacement", [True, False])
def test_the_best_acceptance_is_the_known_one(several, replacement):
    case, p, q, k = several
    expected = case["expected"]["with_replacement" if replacement else "without_replacement"]
    best = optimal_acceptance(p, q, k, replacement)
    if expected["prefix_search_attains_optimum"]:
        oracles.close(case, best, expected["optimal_acceptance"], "optimum")
    else:
        assert best >= expected["optimal_acceptance"] - case["atol"]
    matched = draw_then_match_acceptance(p, q, k, replacement)
    oracles.close(case, matched, expected["draw_then_match_acceptance"], "match")


def test_the_best_acceptance_of_a_greedy_draft_is_the_known_one(several):
    case, p, q, k = several
    expected = case["expected"]["greedy_draft"]
    oracles.close(case, greedy_draft_acceptance(p, q, k), expected["optimal_acceptance"])
    fixed = torch.tensor([expected["fixed"]], dtype=torch.int64)
    last = torch.cat([fixed, torch.zeros(1, 1, dtype=torch.int64)], dim=1)
    oracles.close(case, without_replacement(q[None], last)[0, -1], expected["sampled_from"])


def test_recursive_rejection_with_replacement_is_exact_and_as_good_as_known(several):
    case, p, q, k = several
    candidates, weights = candidates_of(q, k, replacement=True)
    found = outcome(verify_recursive, p, q.expand(*candidates.shape, -1), candidates, weights)
    expected = case["expected"]["rrs_with_replacement"]
    oracles.close(case, found.law, case["inputs"]["target"], "output")
    oracles.close(case, found.acceptance, expected["acceptance"], "acceptance")
    oracles.close(case, found.stages, expected["stage_acceptance"], "stages")
    if expected["residual_after_all_rejected"] is not None:
        oracles.close(case, found.residual[0], expected["residual_after_all_rejected"], "residual")


def test_recursive_rejection_without_replacement_is_exact_and_as_good_as_known(several):
    case, p, q, k = several
    candidates, weights = candidates_of(q, k, replacement=False)
    laws = without_replacement(q.expand(len(candidates), -1), candidates)
    found = outcome(verify_recursive, p, laws, candidates, weights)
    oracles.close(case, found.law, case["inputs"]["target"], "output")
    oracles.close(case, found.acceptance, case["expected"]["rrs_without_replacement"]["acceptance"], "acceptance")


def test_a_fixed_list_is_a_recursive_rejection_of_certain_drafts(several):
    case, p, _, _ = several
    expected = case["expected"]["top_k_of_draft_as_fixed_set"]
    candidates = torch.tensor([expected["candidates"]])
    certain = torch.ones(1, dtype=torch.float64)
    found = outcome(verify_recursive, p, F.one_hot(candidates, len(p)).double(), candidates, certain)
    oracles.close(case, found.law, case["inputs"]["target"], "output")
    oracles.close(case, found.acceptance, expected["acceptance"], "acceptance")
    oracles.close(case, found.stages, expected["accept_probs_in_order"], "each candidate")
    if expected["residual"] is not None:
        oracles.close(case, found.residual[0], expected["residual"], "residual")


def test_k_seq_is_exact_and_as_good_as_known(several):
    case, p, q, k = several
    candidates, weights = candidates_of(q, k, replacement=True)
    expected, constants = case["expected"]["k_seq"], k_seq(p, q, k)
    oracles.close(case, constants.gamma, expected["gamma"], "gamma")
    oracles.close(case, constants.beta, expected["beta"], "beta")
    if expected["residual"] is not None:
        oracles.close(case, constants.residual, expected["residual"], "residual")
    found = outcome(verify_k_seq, p, q.expand(len(candidates), -1), candidates, weights)
    oracles.close(case, found.law, case["inputs"]["target"], "output")
    oracles.close(case, found.acceptance, expected["acceptance"], "acceptance")
    bound = expected["guaranteed_fraction_of_optimum"] * optimal_acceptance(p, q, k, replacement=True)
    assert found.acceptance >= bound - case["atol"]


@pytest.mark.parametrize("case", oracles.cases("gumbel_top_k"))
def test_ordered_candidates_have_the_known_law(case):
    q, k = oracles.law(case["inputs"]["draft"]), case["inputs"]["k"]
    expected = case["expected"]["ordered_tuple_prob"]
    candidates = torch.tensor([[int(token) for token in key.split("-")] for key in expected])
    assert candidates.shape[1] == k
    laws = without_replacement(q.expand(len(candidates), -1), candidates)
    law = of_tokens(laws, candidates).prod(-1)
    oracles.close(case, law, [*expected.values()], "order")
    included = torch.zeros_like(q).index_add(0, candidates.flatten(), law.repeat_interleave(k))
    oracles.close(case, included, case["expected"]["inclusion_prob"], "inclusion")
    one_hot = torch.eye(len(q), dtype=torch.float64)
    matched = draw_then_match_acceptance(one_hot, q.expand(len(q), -1), k, replacement=False)
    oracles.close(case, matched, case["expected"]["inclusion_prob"], "match")


def test_candidates_that_a_law_has_no_tokens_for_count_as_given():
    p, q = random_laws(1, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    candidates = torch.tensor([[1, 3]])
    laws = without_replacement(q, candidates)
    assert laws[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    found = outcome(verify_recursive, p, laws, candidates, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(found.law, p[0])
    with pytest.raises(ValueError, match="at least 2 tokens"):
        optimal_acceptance(p, q, 2, replacement=False)


@pytest.mark.parametrize("replacement", [True, False])
def test_yardsticks_take_any_leading_axes(replacement):
    p, q = random_laws(2, 3, 5, seed=1), random_laws(2, 3, 5, seed=2)
    for yardstick in (optimal_acceptance, draw_then_match_acceptance):
        together = yardstick(p, q, 2, replacement)
        assert together.shape == (2, 3)
        torch.testing.assert_close(together[1, 2], yardstick(p[1, 2], q[1, 2], 2, replacement))


def test_no_subset_of_tokens_bounds_the_acceptance_further():
    p, q = random_laws(6, seed=1), random_laws(6, seed=2)
    candidates, weights = candidates_of(q, 3, replacement=False)
    least = 1.0
    for subset in product([False, True], repeat=6):
        inside = torch.tensor(subset)
        least = min(least, (1 + p[inside].sum() - weights[inside[candidates].all(-1)].sum()).item())
    assert optimal_acceptance(p, q, 3, replacement=False).item() == pytest.approx(least)


@pytest.mark.parametrize("case", oracles.cases("cost_model"))
def test_the_speedup_is_the_known_one(case):
    inputs, expected = case["inputs"], case["expected"]
    for gamma, tokens in expected["tokens_per_round"].items():
        oracles.close(case, expected_tokens(inputs["acceptance"], int(gamma)), tokens, gamma)
    costs = inputs["draft_cost"], inputs["extra_cost_per_verified_token"]
    for gamma, factor in expected["speedup"].items():
        oracles.close(case, speedup(inputs["acceptance"], int(gamma), *costs), factor, gamma)


# All of them


def calls(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    dice = torch.Generator().manual_seed(0)
    p, q = random_laws(2, 4, 50, seed=1, dtype=dtype), random_laws(2, 3, 50, seed=2, dtype=dtype)
    tokens, uniforms = torch.randint(50, (2, 3), generator=dice), torch.rand(2, 3, generator=dice)
    one, other = p[:, 0], q[:, 0]
    return {
        "overlap": (overlap, (one, other)),
        "acceptance": (acceptance, (one, other)),
        "residual": (residual, (one, other)),
        "shared noise": (shared_noise_match, (one, other)),
        "chain": (verify_chain, (p, q, tokens, uniforms)),
        "block": (verify_block, (p, q, tokens, uniforms)),
        "without replacement": (without_replacement, (other, tokens)),
        "recursive": (verify_recursive, (one, q, tokens, uniforms)),
        "K-SEQ": (verify_k_seq, (one, other, tokens, uniforms)),
    }


@pytest.mark.parametrize("name", calls(torch.float32))
def test_float32_is_close_to_float64_and_traced_in_one_graph(name):
    torch.compiler.reset()
    function, arguments = calls(torch.float32)[name]
    results = torch.compile(function, fullgraph=True, backend="eager")(*arguments)
    exact = calls(torch.float64)[name]
    torch.testing.assert_close(results, function(*arguments))
    for result, wanted in zip(flat(results), flat(exact[0](*exact[1])), strict=True):
        assert result.dtype == (torch.int64 if wanted.dtype == torch.int64 else torch.float32)
        torch.testing.assert_close(result.to(wanted.dtype), wanted, atol=1e-5, rtol=1e-4)


def flat(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
