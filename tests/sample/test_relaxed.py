"""Relaxed acceptance: the law of what comes out, by enumeration, and its distance from the target."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.sample.coupling import overlap, verify_chain, verify_recursive
from imgtok.sample.relaxed import certified, neighbours, relaxed_value, verify_published_list, verify_relaxed

from . import oracles
from .enumeration import Decide, choice_law, length_law


@pytest.fixture(params=oracles.cases("relaxed_acceptance"))
def case(request) -> dict[str, Any]:
    return request.param


def laws_of(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Target, draft and the relaxed values."""
    inputs = case["inputs"]
    p, table = oracles.law(inputs["target"]), neighbours(torch.tensor(inputs["codes"]).double(), inputs["k"])
    value = relaxed_value(p, table, delta=inputs["delta"], multiplier=inputs["lambda"])
    return p, oracles.law(inputs["draft"]), value


def output_law(p: Tensor, q: Tensor, mass: Tensor) -> Tensor:
    """Of the token that `verify_relaxed` outputs for one draft."""
    v = len(p)
    arguments = p.expand(v, 2, v), q.expand(v, 1, v), mass.expand(v, 1, v), torch.arange(v)[:, None]
    lengths, tokens = length_law(partial(verify_relaxed, *arguments), v, 1)
    return q * lengths[:, 1] + q @ tokens[:, 0]


def list_law(decide: Decide, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """How likely each of 1 c candidates is accepted, or none, c + 1, and each token comes out, v."""
    chosen, tokens = choice_law(decide, *candidates.shape)
    return chosen[0], tokens[0, -1].index_add(0, candidates[0], chosen[0, :-1])


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Total variation."""
    return (p - q).abs().sum(-1) / 2


def test_neighbours_and_their_mass_are_the_known_ones(case):
    inputs, expected = case["inputs"], case["expected"]
    assert neighbours(torch.tensor(inputs["codes"]).double(), inputs["k"]).tolist() == expected["nearest"]
    p, _, value = laws_of(case)
    oracles.close(case, value, expected["relaxed_target_value"], "value")
    oracles.close(case, value - p, expected["neighbourhood_mass"], "mass")
    oracles.close(case, value - p, [p[tokens].sum() for tokens in expected["neighbourhood"]], "neighbourhood")
    largest = expected["sampled_draft"]["largest_neighbourhood_mass"]
    oracles.close(case, (value - p).max(), largest, "largest mass")


def test_without_a_budget_the_output_is_the_known_one(case):
    p, q, value = laws_of(case)
    expected = case["expected"]["sampled_draft"]
    mass = certified(p, q, value, 1.0)
    oracles.close(case, overlap(p, q), expected["exact_acceptance"], "exact acceptance")
    oracles.close(case, mass.sum(), expected["relaxed_acceptance"], "acceptance")
    output = output_law(p, q, mass)
    oracles.close(case, output, expected["output"], "output")
    oracles.close(case, distance(output, p), expected["tv_to_target"], "distance")


def test_within_a_budget_the_output_is_the_known_one(case):
    p, q, value = laws_of(case)
    budgets = {name: expected for name, expected in case["expected"].items() if name.startswith("budget_")}
    assert budgets
    for name, expected in budgets.items():
        epsilon = float(name.removeprefix("budget_"))
        mass = certified(p, q, value, epsilon)
        oracles.close(case, mass.sum(), expected["acceptance"], name)
        output = output_law(p, q, mass)
        oracles.close(case, output, expected["output"], name)
        oracles.close(case, distance(output, p), expected["tv_to_target"], name)
        assert distance(output, p) <= epsilon + case["atol"]


def test_a_fixed_list_is_exactly_accepted_as_often_as_known(case):
    p = oracles.law(case["inputs"]["target"])
    candidates = torch.tensor([case["expected"]["fixed_list_zero_k"]["candidates"]])
    decide = partial(verify_recursive, p[None], F.one_hot(candidates, len(p)).double(), candidates)
    chosen, output = list_law(decide, candidates)
    oracles.close(case, 1 - chosen[-1], case["expected"]["fixed_list_exact"]["acceptance"])
    oracles.close(case, output, p)


@pytest.mark.parametrize(("rule", "more"), [("fixed_list_zero_k", 0), ("fixed_list_zero_k_plus_1", 1)])
def test_the_published_rule_takes_a_fixed_list_as_known(case, rule, more):
    inputs, expected = case["inputs"], case["expected"][rule]
    p, codes, k = oracles.law(inputs["target"]), torch.tensor(inputs["codes"]).double(), inputs["k"]
    candidates = torch.tensor([expected["candidates"]])
    tables = neighbours(codes, k), neighbours(codes, min(k + more, len(p) - 1))
    limits = {"delta": inputs["delta"], "multiplier": inputs["lambda"]}
    decide = partial(verify_published_list, p[None], *tables, candidates, **limits)
    chosen, output = list_law(decide, candidates)
    oracles.close(case, 1 - chosen[-1], expected["acceptance"], "acceptance")
    oracles.close(case, output, expected["output"], "output")
    oracles.close(case, distance(output, p), expected["tv_to_target"], "distance")
    turns = chosen.flip(0).cumsum(0).flip(0)[:-1]
    oracles.close(case, chosen[:-1], turns * oracles.law(expected["accept_probs_in_order"]), "each candidate")
    if expected["residual"] is not None:
        oracles.close(case, decide(torch.ones(candidates.shape)).law[0], expected["residual"], "residual")


def random_problem(v: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Laws of a target and a draft, 3 v each, and neighbours."""
    dice = torch.Generator().manual_seed(0)
    p, q = (2 * torch.randn(2, 3, v, generator=dice, dtype=torch.float64)).softmax(-1)
    return p, q, neighbours(torch.randn(v, 2, generator=dice), k)


@pytest.mark.parametrize("limit", [{"delta": 0.3}, {"multiplier": 4.0}], ids=str)
@pytest.mark.parametrize("epsilon", [0.0, 0.02, 0.3, 1.0])
def test_the_output_is_within_the_budget_and_uses_it(limit, epsilon):
    laws = random_problem(12, 6)
    for p, q in zip(*laws[:2], strict=True):
        mass = certified(p, q, relaxed_value(p, laws[2], **limit), epsilon)
        apart = distance(output_law(p, q, mass), p)
        gain = certified(p, q, relaxed_value(p, laws[2], **limit), 1.0).sum() - overlap(p, q)
        torch.testing.assert_close(apart, gain.clamp_max(epsilon))
        torch.testing.assert_close(apart, mass.sum() - overlap(p, q))


def test_a_budget_of_zero_is_the_exact_chain():
    p, q, table = random_problem(12, 6)
    dice = torch.Generator().manual_seed(1)
    drafts, uniforms = torch.randint(12, (3, 2), generator=dice), torch.rand(3, 2, generator=dice)
    p, q = torch.stack([p, p.roll(1, -1), p.roll(2, -1)], dim=1), torch.stack([q, q.roll(1, -1)], dim=1)
    mass = certified(p[:, :2], q, relaxed_value(p[:, :2], table, delta=0.5), 0.0)
    for relaxed, exact in zip(
        verify_relaxed(p, q, mass, drafts, uniforms), verify_chain(p, q, drafts, uniforms), strict=True
    ):
        torch.testing.assert_close(relaxed, exact)


def test_the_published_rule_without_neighbours_is_the_exact_one():
    p, dice = random_problem(12, 6)[0], torch.Generator().manual_seed(1)
    candidates = torch.stack([torch.randperm(11, generator=dice)[:4] for _ in range(3)])
    table = torch.full((12, 1), 11)  # always too likely to borrow from
    certain = F.one_hot(candidates, 12).double()
    for uniforms in torch.rand(20, 3, 4, generator=dice):
        published = verify_published_list(p, table, table, candidates, uniforms, delta=0.0)
        exact = verify_recursive(p, certain, candidates, uniforms)
        assert torch.equal(published.chosen, exact.chosen)
        torch.testing.assert_close(published.law, exact.law)


def test_the_published_rule_draws_from_every_code_if_it_left_none():
    p, table = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64), torch.tensor([[1], [0], [0]])
    candidates, certain_rejection = torch.tensor([[0]]), torch.ones(1, 1)
    choice = verify_published_list(p, table, table, candidates, certain_rejection, delta=0.5)
    assert choice.chosen.tolist() == [1]
    torch.testing.assert_close(choice.law, torch.full_like(p, 1 / 3))


def test_neighbours_of_many_codes_are_found_in_parts():
    codes = torch.randn(1500, 3, generator=torch.Generator().manual_seed(0))
    nearest = (codes[:, None] - codes).norm(dim=-1).fill_diagonal_(torch.inf).argsort(-1)[:, :4]
    assert torch.equal(neighbours(codes, 4), nearest)


def test_a_code_is_not_its_own_neighbour_even_if_it_is_there_twice():
    codes = torch.tensor([[1.0], [1.0], [2.0]])
    assert neighbours(codes, 2)[:2].tolist() == [[1, 2], [0, 2]]


def test_close_codes_far_from_zero_keep_their_order():
    codes = 1000 + torch.tensor([[0.0, 0.0], [0.004, 0.0], [0.0, 0.002], [0.008, 0.0]])
    assert neighbours(torch.cat([codes, torch.zeros(40, 2)]), 3)[0].tolist() == [2, 1, 3]


def test_relaxed_acceptance_is_traced_in_one_graph():
    torch.compiler.reset()
    p, q, table = (x.float() if x.is_floating_point() else x for x in random_problem(12, 6))

    def accept(p: Tensor, q: Tensor, table: Tensor) -> Tensor:
        return certified(p, q, relaxed_value(p, table, delta=0.3), 0.1)

    traced = torch.compile(accept, fullgraph=True, backend="eager")(p, q, table)
    torch.testing.assert_close(traced, accept(p, q, table))
    assert traced.dtype == torch.float32


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan])
def test_budgets_that_are_no_distance_are_refused(epsilon):
    p = torch.full((4,), 0.25)
    with pytest.raises(ValueError, match="epsilon must be between 0 and 1"):
        certified(p, p, p, epsilon)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({}, "exactly one of delta and multiplier"),
        ({"delta": 0.1, "multiplier": 2.0}, "exactly one of delta and multiplier"),
        ({"delta": -0.1}, "delta must be between 0 and 1"),
        ({"delta": math.nan}, "delta must be between 0 and 1"),
        ({"multiplier": 0.9}, "multiplier must be 1 or more"),
    ],
)
def test_limits_without_a_meaning_are_refused(limit, message):
    with pytest.raises(ValueError, match=message):
        relaxed_value(torch.full((4,), 0.25), torch.tensor([[1], [0], [3], [2]]), **limit)


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_there_are_codes_are_refused(k):
    with pytest.raises(ValueError, match="less than the 4 codes"):
        neighbours(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), k)
