"""Logits to the law of the next token, against a search in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from imgtok.sample.law import Law

from . import oracles


def brute_force(logits: list[float], law: Law) -> list[float]:
    """Probabilities by definition, one token at a time."""
    weights = [math.exp(logit / law.temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])  # stable: of equals the lower index first
    if law.top_k:
        threshold = weights[order[min(law.top_k, len(order)) - 1]]
        order = [token for token in order if weights[token] >= threshold]
    before = running(weights, order)
    order = [token for token in order if before[token] <= law.top_p]
    order = [token for token in order if weights[token] >= law.min_p * weights[order[0]]]
    if law.typical < 1:
        order = most_typical(weights, order, law.typical)
    if 0 < law.top_h < 1:
        bound = law.top_h * entropy(weights, order)
        fits = [n for n in range(2, len(order) + 1) if entropy(weights, order[:n]) <= bound]
        order = order[: max(fits, default=1)]
    total = sum(weights[token] for token in order)
    return [weights[token] / total if token in order else 0.0 for token in range(len(logits))]


def most_typical(weights: list[float], order: list[int], mass: float) -> list[int]:
    total, mean = sum(weights[token] for token in order), entropy(weights, order)
    distance = {token: abs(-math.log(weights[token] / total) - mean) for token in order}
    before = running(weights, sorted(order, key=lambda token: distance[token]))
    last = max(distance[token] for token in order if before[token] < mass)
    return [token for token in order if distance[token] <= last]


def running(weights: list[float], order: list[int]) -> dict[int, float]:
    """The share of what comes before each token."""
    total = sum(weights[token] for token in order)
    return {token: sum(weights[other] for other in order[:i]) / total for i, token in enumerate(order)}


def entropy(weights: list[float], tokens: list[int]) -> float:
    total = sum(weights[token] for token in tokens)
    return -sum(weights[token] / total * math.log(weights[token] / total) for token in tokens)


TRUNCATIONS = [
    *({"top_p": top_p} for top_p in (0.1, 0.55, 0.9, 1.0)),
    *({"min_p": min_p} for min_p in (0.03, 0.4, 1.0)),
    *({"typical": mass} for mass in (0.1, 0.5, 0.95)),
    *({"top_h": share} for share in (0.1, 0.4, 0.9, 1.0)),
    {"top_p": 0.9, "min_p": 0.1, "typical": 0.9, "top_h": 0.8},
]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 20, 99])
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_the_law_is_the_one_that_a_search_finds(temperature, top_k, truncation):
    logits = 2 * torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    logits[:, 5] = logits[:, 11]  # ties
    law = Law(temperature=temperature, top_k=top_k, **truncation)
    expected = torch.tensor([brute_force(row, law) for row in logits.double().tolist()])
    probs = law(logits).exp()
    torch.testing.assert_close(probs, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(probs == 0, expected == 0)


def test_ties_with_the_last_of_the_top_stay():
    kept = Law(top_k=2)(torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0])).isfinite()
    assert kept.tolist() == [False, True, True, True, True]


def test_the_token_that_crosses_the_mass_stays():
    law = torch.tensor([0.1, 0.5, 0.25, 0.15]).log()
    assert Law(top_p=0.49)(law).isfinite().tolist() == [False, True, False, False]
    assert Law(top_p=0.51)(law).isfinite().tolist() == [False, True, True, False]
    assert Law(top_p=0.76)(law).isfinite().tolist() == [False, True, True, True]


def test_equals_stay_by_their_index():
    kept = Law(top_p=0.3003)(torch.zeros(2, 1000)).isfinite()
    assert kept.sum(-1).tolist() == [301, 301]
    assert kept[:, :301].all()


def test_the_mass_counts_after_temperature_and_top_k():
    logits = torch.tensor([0.45, 0.3, 0.25]).log()
    assert Law(top_k=2, top_p=0.55)(logits).isfinite().tolist() == [True, False, False]  # 0.6 of the two that are left
    assert Law(top_p=0.55)(logits).isfinite().tolist() == [True, True, False]
    assert Law(temperature=0.5, top_p=0.55)(logits).isfinite().tolist() == [True, False, False]  # 0.57 when squared


def test_temperature_zero_is_the_most_likely_token():
    logits = torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(0))
    for law in (Law(temperature=0), Law(temperature=0, top_k=5, top_p=0.5), Law(temperature=0, typical=0.5)):
        log_probs = law(logits)
        assert torch.equal(log_probs.argmax(-1), logits.argmax(-1))
        assert torch.equal(log_probs.exp().sum(-1), torch.ones(4, 3))
        assert torch.equal(log_probs.isfinite().sum(-1), torch.ones(4, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    "law",
    [Law(), Law(temperature=0), Law(top_k=2), Law(top_p=0.5), Law(min_p=0.01), Law(typical=0.99), Law(top_h=0.9)],
)
def test_tokens_that_were_ruled_out_stay_out(law):
    logits = torch.tensor([[-torch.inf, 1.0, 0.0, -torch.inf, -1.0]])
    log_probs = law(logits)
    assert not log_probs[0, [0, 3]].isfinite().any()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_law_is_computed_in_float32(dtype):
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    law = Law(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, typical=0.95, top_h=0.9)
    assert law(logits).dtype == torch.float32
    assert torch.equal(law(logits), law(logits.float()))


def test_logits_are_left_as_they_were():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    Law(temperature=0.7, top_k=6, top_p=0.9, min_p=0.01, typical=0.95, top_h=0.9)(logits)
    assert torch.equal(logits, before)


def test_float64_is_kept():
    assert Law(top_k=3)(torch.zeros(5, dtype=torch.float64)).dtype == torch.float64


def test_the_most_typical_token_need_not_be_the_most_likely_one():
    log_probs = torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1]).log()  # entropy 1.47 nats, that of a law over 4.4 equals
    assert Law(typical=0.3)(log_probs).isfinite().tolist() == [False, True, True, False, False]


def test_tokens_as_typical_as_the_last_one_stay():
    log_probs = torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1]).log()
    assert Law(typical=0.15)(log_probs).isfinite().tolist() == [False, True, True, False, False]


def test_top_h_keeps_at_least_one_token():
    kept = Law(top_h=0.1)(torch.zeros(2, 9)).isfinite()
    assert kept.tolist() == [[True] + [False] * 8] * 2


def test_top_h_is_a_share_of_what_the_others_left():
    probs = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1]).log()
    assert Law(top_h=0.8)(probs).isfinite().sum() == 3
    assert Law(top_k=3, top_h=0.8)(probs).isfinite().sum() == 2


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_a_whole_vocabulary_is_truncated_in_one_graph(truncation):
    logits = torch.randn(2, 16384, generator=torch.Generator().manual_seed(0))
    law = Law(temperature=0.9, top_k=2000, **truncation)
    torch.compiler.reset()  # each law is a graph of its own
    traced = torch.compile(law, fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(logits), law(logits))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.01},
        {"typical": 0.0},
        {"typical": math.nan},
        {"top_h": -0.1},
        {"top_h": 1.01},
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} must be"):
        Law(**values)


@pytest.mark.parametrize("case", oracles.cases("truncation"))
def test_truncated_laws_are_the_known_ones(case):
    logits = oracles.law(case["inputs"]["probs"]).log()
    for rule, expected in case["expected"].items():
        name, _, value = rule.rpartition("_")
        probs = Law(**{name: int(value) if name == "top_k" else float(value)})(logits).exp()
        assert probs.nonzero()[:, 0].tolist() == expected["kept"], rule
        oracles.close(case, probs, expected["probs"], rule)
        oracles.close(case, logits.exp()[expected["kept"]].sum(), expected["kept_mass"], rule)
