"""Logits to the law of the next token, against a search in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from imgtok.sample.law import Law


def brute_force(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by definition, one token at a time."""
    exponentials = [math.exp(logit / temperature) for logit in logits]
    order = sorted(
        range(len(logits)), key=lambda token: -exponentials[token]
    )  # stable: of equals the lower index first
    if top_k:
        threshold = exponentials[order[min(top_k, len(order)) - 1]]
        order = [token for token in order if exponentials[token] >= threshold]
    total, kept, before = sum(exponentials[token] for token in order), [], 0.0
    for token in order:
        if before <= top_p:
            kept.append(token)
        before += exponentials[token] / total
    mass = sum(exponentials[token] for token in kept)
    return [exponentials[token] / mass if token in kept else 0.0 for token in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 20, 99])
@pytest.mark.parametrize("top_p", [0.1, 0.55, 0.9, 1.0])
def test_the_law_is_the_one_that_a_search_finds(temperature, top_k, top_p):
    logits = 2 * torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    logits[:, 5] = logits[:, 11]  # ties
    law = Law(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = torch.tensor([brute_force(row, temperature, top_k, top_p) for row in logits.double().tolist()])
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
    for law in (Law(temperature=0), Law(temperature=0, top_k=5, top_p=0.5)):
        log_probs = law(logits)
        assert torch.equal(log_probs.argmax(-1), logits.argmax(-1))
        assert torch.equal(log_probs.exp().sum(-1), torch.ones(4, 3))
        assert torch.equal(log_probs.isfinite().sum(-1), torch.ones(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("law", [Law(), Law(temperature=0), Law(top_k=2), Law(top_p=0.5)])
def test_tokens_that_were_ruled_out_stay_out(law):
    logits = torch.tensor([[-torch.inf, 1.0, 0.0, -torch.inf, -1.0]])
    log_probs = law(logits)
    assert not log_probs[0, [0, 3]].isfinite().any()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_law_is_computed_in_float32(dtype):
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    law = Law(temperature=0.7, top_k=20, top_p=0.9)
    assert law(logits).dtype == torch.float32
    assert torch.equal(law(logits), law(logits.float()))


def test_logits_are_left_as_they_were():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    Law(temperature=0.7, top_k=3, top_p=0.9)(logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "values", [{"temperature": -0.1}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.01}]
)
def test_values_without_a_meaning_are_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} must be"):
        Law(**values)


def test_truncated_laws_are_the_known_ones(oracle):
    checked = 0
    for case in oracle("truncation"):
        logits = torch.tensor(case["inputs"]["probs"]).log()
        for rule, expected in case["expected"].items():
            kind, _, value = rule.rpartition("_")
            if kind not in ("top_k", "top_p"):
                continue
            probs = Law(**{kind: int(value) if kind == "top_k" else float(value)})(logits).exp()
            assert probs.nonzero()[:, 0].tolist() == expected["kept"], f"{case['name']} {rule}"
            torch.testing.assert_close(probs, torch.tensor(expected["probs"]), atol=1e-6, rtol=1e-5)
            checked += 1
    assert checked >= 6
