"""Speculative Jacobi decoding: the exact law of what comes out, and of how many calls it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.sample import coupling
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys
from imgtok.sample.sjd import SpeculativeJacobi, Window
from imgtok.sample.strategy import Draft, Job, Progress, Verdict

from . import oracles
from .chain_trials import LEAST, call_fit, draw, sequence_fit
from .toys import markov
from .tree_trials import check_a_round_compiles, check_a_round_never_waits, check_rows_are_alone, trial_of

KINDS = [
    SpeculativeJacobi(window=4, coupled=coupled, fresh=fresh)
    for coupled in (False, True)
    for fresh in ("uniform", "random")
]
each_kind = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda kind: f"{'coupled' if kind.coupled else 'independent'}-{kind.fresh}"
)


def strategy_of(name: str) -> SpeculativeJacobi | None:
    """What the oracles call jacobi_window2_independent_uniform, and the like."""
    if not name.startswith("jacobi_window"):
        return None
    window, how, fresh, *_ = name.removeprefix("jacobi_window").split("_")
    return SpeculativeJacobi(
        window=int(window), coupled=how == "maximal", fresh="random" if fresh == "onehot" else "uniform"
    )


@pytest.mark.parametrize("case", oracles.cases("markov_joint"))
def test_sequences_have_the_joint_law_and_take_as_many_calls_as_known(case):
    checked = 0
    for name, expected in case["expected"].items():
        strategy = strategy_of(name)
        if strategy is None or strategy.window >= case["inputs"]["length"]:
            continue  # no other law than that of a smaller window
        drawn = draw(markov(case["inputs"]), strategy)
        assert sequence_fit(drawn.tokens, case["expected"]["joint"]) > LEAST, name
        assert call_fit(drawn.calls, expected["calls_distribution"]) > LEAST, name
        checked += 1
    assert checked >= 4


@dataclass(frozen=True, kw_only=True)
class Forgetful(SpeculativeJacobi):
    """Wrong: takes all drafts for uniform ones."""

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Window
    ) -> tuple[Verdict, Window]:
        verdict, memory = super().couple(job, progress, draft, log_law, memory)
        return verdict, memory._replace(laws=torch.full_like(memory.laws, 1 / job.codebook_size))


@dataclass(frozen=True, kw_only=True)
class Together(SpeculativeJacobi):
    """Wrong: pairs of rows advance by what both accepted; accepted drafts beyond that are judged again (as in batches
    of the public code)."""

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Window
    ) -> tuple[Verdict, Window]:
        verdict, _ = super().couple(job, progress, draft, log_law, memory)
        pairs = verdict.num_new.view(-1, 2)
        count = pairs.amin(1, keepdim=True).expand(-1, 2).flatten()
        p = log_law.exp()
        places = torch.arange(self.window) + 1
        beyond = places[None] < verdict.num_new[:, None]  # accepted: kept with the law they had
        redrawn = self.redrawn(job, progress, progress.next + places - 1, p, memory)
        mixed = torch.where(beyond, verdict.tokens[:, : self.window], redrawn)
        laws = torch.where(beyond[..., None], memory.laws, p[:, : self.window])
        at = places[None] == verdict.num_new[:, None]
        mixed = torch.where(at, verdict.tokens[:, : self.window], mixed)
        laws = torch.where(at[..., None], p[:, : self.window], laws)
        laws = torch.cat([laws, p[:, self.window :]], dim=1)
        return verdict._replace(num_new=count), self.slide(progress, count, mixed, laws, memory)


@pytest.mark.parametrize("wrong", [Forgetful, Together])
@pytest.mark.parametrize("case", oracles.cases("markov_joint")[:1])
def test_wrong_rules_are_seen_in_the_law(case, wrong):
    drawn = draw(markov(case["inputs"]), wrong(window=2))
    assert sequence_fit(drawn.tokens, case["expected"]["joint"]) < 1e-20


@pytest.mark.parametrize("case", oracles.cases("markov_joint")[:1])
def test_a_residual_without_subtraction_is_seen_in_the_law(case, monkeypatch):
    monkeypatch.setattr(coupling, "residual", lambda p, q: p)
    drawn = draw(markov(case["inputs"]), SpeculativeJacobi(window=2))
    assert sequence_fit(drawn.tokens, case["expected"]["joint"]) < 1e-20


@each_kind
@pytest.mark.parametrize("case", oracles.cases("markov_joint")[:1])
def test_an_image_is_the_same_in_any_company(case, kind):
    keys, rows = image_keys(0, range(40)), [17, 3, 30]
    whole, part = (draw(markov(case["inputs"]), kind, some) for some in (keys, keys[rows]))
    assert torch.equal(whole.tokens[rows], part.tokens)
    assert torch.equal(whole.calls[rows], part.calls)
    assert len(whole.calls.unique()) > 1


@each_kind
def test_an_image_of_a_real_generator_is_the_same_in_any_company(make_generator, kind):
    check_rows_are_alone(trial_of(make_generator), kind, guidance=Guidance(scale=2.0, steps=7))


@each_kind
def test_a_certain_law_leaves_no_choice(make_generator, kind):
    trial, greedy = trial_of(make_generator), Law(temperature=0)
    assert torch.equal(trial.draw(kind, law=greedy).tokens, trial.draw(law=greedy).tokens)


@each_kind
def test_a_round_never_waits(make_generator, kind):
    check_a_round_never_waits(trial_of(make_generator), kind)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=["independent-uniform", "coupled-random"])
def test_a_round_is_one_graph(make_generator, kind):
    check_a_round_compiles(trial_of(make_generator), kind)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"window": 0}, "window must be 1 or more, got 0"), ({"fresh": "left"}, '"uniform" or "random", got \'left\'')],
)
def test_bad_settings_are_told(options: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        SpeculativeJacobi(**options)


def test_it_is_exact():
    assert SpeculativeJacobi().guarantee == "exact"
