"""Relaxed acceptance as a strategy: the law stays within the budget, and without a limit it does not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.sample.draft_model import DraftModel
from imgtok.sample.guidance import Guidance
from imgtok.sample.lantern import Lantern
from imgtok.sample.noise import image_keys
from imgtok.sample.strategy import Strategy

from . import oracles
from .chain_trials import draw, sequence_fit
from .toys import TableGenerator, markov
from .tree_trials import Trial, check_a_round_compiles, check_a_round_never_waits, check_rows_are_alone, trial_of

CODES = torch.tensor([[0.0], [1.0], [1.5], [3.0]])
toys = pytest.mark.parametrize("case", oracles.cases("markov_joint"))
a_toy = pytest.mark.parametrize("case", oracles.cases("markov_joint")[:1])


def lantern(case: dict[str, Any], **options: Any) -> Lantern:
    generator = markov(case["inputs"], "draft")
    size = generator.config.codebook_size
    return Lantern(generator, CODES[:size], window=2, neighbours=min(2, size - 1), **options)


def distances(target: TableGenerator, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation of the first token, and of the second after each first; and what draws of a right law, as many,
    stay within (four standard deviations of each share, summed up): 1 + v each."""
    v = target.config.codebook_size
    counts = torch.bincount(tokens[:, 0] * v + tokens[:, 1], minlength=v * v).view(v, v).double()
    counts = torch.cat([counts.sum(1)[None], counts])
    laws = torch.cat([target.first[None], target.second]).exp()
    draws = counts.sum(1, keepdim=True)
    noise = 4 * (laws * (1 - laws) / draws).sqrt()
    return (counts / draws - laws).abs().sum(1) / 2, noise.sum(1) / 2


@toys
@pytest.mark.parametrize("epsilon", [0.02, 0.1])
def test_no_token_s_law_is_further_off_than_the_budget(case, epsilon):
    target = markov(case["inputs"])
    distance, noise = distances(target, draw(target, lantern(case, delta=1.0, epsilon=epsilon)).tokens)
    assert (distance <= epsilon + noise).all()


@a_toy
def test_without_a_budget_it_is_further_off_and_takes_fewer_calls(case):
    """delta 1: every neighbour counts, whatever the mass."""
    target, calls = markov(case["inputs"]), []
    for epsilon in (0.0, 0.02, 0.1, None):
        drawn = draw(target, lantern(case, delta=1.0, epsilon=epsilon))
        calls.append(drawn.calls.double().mean())
        distance, noise = distances(target, drawn.tokens)
        assert (distance[0] > 0.12 + noise[0]) == (epsilon is None)
        if epsilon == 0.1:
            assert distance[0] > epsilon - noise[0]  # the budget is used up
    assert all(fewer < more - 0.01 for more, fewer in pairwise(calls))


@toys
def test_with_nothing_to_borrow_or_no_budget_it_is_the_exact_rule(case):
    target, keys = markov(case["inputs"]), image_keys(2, range(20_000))
    exact = draw(target, DraftModel(markov(case["inputs"], "draft"), window=2), keys)
    for options in ({"delta": 0.0}, {"multiplier": 1.0}, {"epsilon": 0.0}, {"delta": 0.0, "epsilon": 1.0}):
        drawn = draw(target, lantern(case, **options), keys)
        assert torch.equal(drawn.tokens, exact.tokens)
        assert torch.equal(drawn.calls, exact.calls)


@a_toy
@pytest.mark.parametrize("limit", [{"delta": 0.5}, {"multiplier": 3.0}])
def test_without_a_budget_it_is_not_exact(case, limit):
    drawn = draw(markov(case["inputs"]), lantern(case, **limit))
    assert sequence_fit(drawn.tokens, case["expected"]["joint"]) < 1e-20


@toys
@pytest.mark.parametrize("limit", [{}, {"delta": 0.3}, {"multiplier": 2.5}])
def test_a_budget_that_is_never_reached_changes_nothing(case, limit):
    """Without one, only the drafts' neighbours are looked at; else those of all codes. The default is delta 0.1."""
    target, keys = markov(case["inputs"]), image_keys(3, range(5000))
    free, bound = (draw(target, lantern(case, epsilon=epsilon, **limit), keys) for epsilon in (None, 1.0))
    assert torch.equal(free.tokens, bound.tokens)
    assert torch.equal(free.calls, bound.calls)
    if not limit:
        assert torch.equal(free.tokens, draw(target, lantern(case, delta=0.1), keys).tokens)


# -- real generators --------------------------------------------------------------------------------------------------


def lanterns(trial: Trial) -> dict[str, Strategy]:
    codes = torch.randn(13, 4, generator=torch.Generator().manual_seed(2))
    return {
        "relaxed": Lantern(trial.draft, codes, window=2, neighbours=5, delta=0.2),
        "multiplied": Lantern(trial.draft, codes, window=2, neighbours=5, multiplier=3.0),
        "certified": Lantern(trial.draft, codes, window=2, neighbours=5, delta=0.2, epsilon=0.05),
    }


each = pytest.mark.parametrize("name", ["relaxed", "multiplied", "certified"])


@each
def test_an_image_is_the_same_in_any_company(make_generator, name):
    trial = trial_of(make_generator)
    check_rows_are_alone(trial, lanterns(trial)[name], guidance=Guidance(scale=2.0, steps=7))


@each
def test_a_round_never_waits(make_generator, name):
    trial = trial_of(make_generator)
    check_a_round_never_waits(trial, lanterns(trial)[name])


def test_a_round_is_one_graph(make_generator):
    trial = trial_of(make_generator)
    check_a_round_compiles(trial, lanterns(trial)["certified"])


# -- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": 0}, "window must be 1 or more, got 0"),
        ({"neighbours": 0}, "at least 1 and less than the 4 codes, got 0"),
        ({"neighbours": 4}, "at least 1 and less than the 4 codes, got 4"),
        ({"delta": 0.1, "multiplier": 2.0}, "exclude each other"),
        ({"delta": -0.1}, "delta must be between 0 and 1, got -0.1"),
        ({"delta": float("nan")}, "delta must be between 0 and 1, got nan"),
        ({"multiplier": 0.5}, "multiplier must be 1 or more, got 0.5"),
        ({"epsilon": 1.5}, "epsilon must be between 0 and 1, got 1.5"),
        ({"epsilon": -1e-3}, "epsilon must be between 0 and 1, got -0.001"),
    ],
)
def test_bad_settings_are_told(options: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        Lantern(None, CODES, **{"neighbours": 2, **options})  # type: ignore[arg-type]


def test_codes_of_another_tokenizer_are_refused(make_generator):
    trial = trial_of(make_generator)
    with pytest.raises(ValueError, match="4 code vectors were given, but the generator draws from 13 codes"):
        trial.draw(Lantern(trial.draft, CODES, neighbours=2))


def test_guarantees():
    assert Lantern(None, CODES, neighbours=2).guarantee == "relaxed"  # type: ignore[arg-type]
    assert Lantern(None, CODES, neighbours=2, epsilon=0.1).guarantee == "tv"  # type: ignore[arg-type]
