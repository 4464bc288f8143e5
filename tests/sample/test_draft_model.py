"""Draft models and early exit: exact laws, plain sampling's images, and a draft cache that lacks nothing."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.generators.quantize import quantized
from imgtok.generators.tree import Tree
from imgtok.sample import coupling
from imgtok.sample.draft_model import DraftModel, EarlyExit
from imgtok.sample.engine import sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys
from imgtok.sample.plain import Plain
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import Draft, Job, Progress, Strategy, Verdict
from imgtok.tokens import GridLayout

from . import oracles
from .chain_trials import LEAST, call_fit, draw, sequence_fit
from .toys import TableCache, TableGenerator, markov
from .tree_trials import (
    GUIDANCES,
    Trial,
    check_a_round_compiles,
    check_a_round_never_waits,
    check_rows_are_alone,
    trial_of,
)

COUPLINGS = ["maximal", "block", "shared"]
SCHEDULES = {**GUIDANCES, "stopped": Guidance(scale=3.0, steps=7)}
toys = pytest.mark.parametrize("case", oracles.cases("markov_joint"))
a_toy = pytest.mark.parametrize("case", oracles.cases("markov_joint")[:1])


class TwoDepths(TableGenerator):
    """A toy whose first block says what another toy says."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        target, self.exit = markov(inputs), markov(inputs, "draft")
        super().__init__(target.first.exp(), target.second.exp(), target.later.exp(), target.num_tokens)
        self.blocks = [None, None]

    def score(
        self,
        tokens: Tensor,
        start: Tensor,
        cache: TableCache,
        length: int,
        tree: Tree | None = None,
        depth: int | None = None,
    ) -> Tensor:
        score = super().score if depth is None else self.exit.score
        return score(tokens, start, cache, length, tree)


# -- the law ----------------------------------------------------------------------------------------------------------


@toys
def test_sequences_have_the_joint_law_and_take_as_many_calls_as_known(case):
    target, generator, checked = markov(case["inputs"]), markov(case["inputs"], "draft"), 0
    for name, expected in case["expected"].items():
        kind, _, gamma = name.rpartition("_gamma")
        if not kind or int(gamma) >= case["inputs"]["length"]:
            continue  # no other law than that of a shorter chain
        how = {"chain_speculation": "maximal", "block_verification": "block"}[kind]
        drawn = draw(target, DraftModel(generator, window=int(gamma), coupling=how))
        assert sequence_fit(drawn.tokens, case["expected"]["joint"]) > LEAST, name
        assert call_fit(drawn.calls, expected["calls_distribution"]) > LEAST, name
        checked += 1
    assert checked >= 4


@toys
def test_an_early_exit_has_the_joint_law(case):
    for how, name in (("maximal", "chain_speculation_gamma2"), ("block", "block_verification_gamma2")):
        drawn = draw(TwoDepths(case["inputs"]), EarlyExit(1, window=2, coupling=how))
        assert sequence_fit(drawn.tokens, case["expected"]["joint"]) > LEAST
        assert call_fit(drawn.calls, case["expected"][name]["calls_distribution"]) > LEAST


@toys
def test_with_shared_noise_a_toy_draws_what_plain_sampling_draws(case):
    target, keys = TwoDepths(case["inputs"]), image_keys(1, range(5000))
    plain = draw(target, Plain(), keys)
    for window in (1, 2, 3):
        model = DraftModel(markov(case["inputs"], "draft"), window=window, coupling="shared")
        for strategy in (model, EarlyExit(1, window=window)):
            drawn = draw(target, strategy, keys)
            assert torch.equal(drawn.tokens, plain.tokens)
            assert drawn.calls.double().mean() < plain.calls.double().mean() - 0.5


@a_toy
@pytest.mark.parametrize("how", ["maximal", "block"])
def test_a_residual_without_subtraction_is_seen_in_the_law(case, how, monkeypatch):
    monkeypatch.setattr(coupling, "residual", lambda p, q: p / p.sum(-1, keepdim=True))
    drawn = draw(markov(case["inputs"]), DraftModel(markov(case["inputs"], "draft"), coupling=how))
    assert sequence_fit(drawn.tokens, case["expected"]["joint"]) < 1e-20


# -- plain sampling's images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", SCHEDULES)
@pytest.mark.parametrize("kind", ["labels", "text"])
def test_with_shared_noise_the_images_are_those_of_plain_sampling(make_generator, kind, guidance):
    trial, guided = trial_of(make_generator, kind), SCHEDULES[guidance]
    plain = trial.draw(guidance=guided)
    strategies: list[Strategy] = [
        DraftModel(trial.draft, window=5, coupling="shared"),
        DraftModel(trial.draft, window=30, coupling="shared"),
        DraftModel(trial.draft, coupling="shared", guidance=Guidance(scale=2.0, steps=12)),
        DraftModel(quantized(trial.target), coupling="shared", guidance=Guidance()),
        EarlyExit(1, window=5),
        EarlyExit(1, window=30),
    ]
    for strategy in strategies:
        assert strategy.guarantee == "pathwise"
        drawn = trial.draw(strategy, guidance=guided)
        assert torch.equal(drawn.tokens, plain.tokens)
        assert (drawn.calls <= 24).all()
        assert drawn.calls.min() < 24


@pytest.mark.parametrize("how", COUPLINGS)
def test_a_certain_law_leaves_no_choice(make_generator, how):
    trial, greedy = trial_of(make_generator), Law(temperature=0)
    plain = trial.draw(law=greedy)
    for strategy in (DraftModel(trial.draft, coupling=how), EarlyExit(1, coupling=how)):
        assert torch.equal(trial.draw(strategy, law=greedy).tokens, plain.tokens)


# -- what the drafting generator knows --------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", SCHEDULES)
@pytest.mark.parametrize("kind", ["labels", "text"])
@pytest.mark.parametrize("how", COUPLINGS)
def test_a_generator_that_drafts_for_itself_has_all_accepted(make_generator, how, kind, guidance):
    """So its cache is complete after whole drafts, at the first token, and when the null rows are dropped."""
    trial, guided = trial_of(make_generator, kind), SCHEDULES[guidance]
    for window in (1, 4):
        drawn = trial.draw(DraftModel(trial.target, window=window, coupling=how), guidance=guided)
        assert drawn.calls.tolist() == [-(-24 // (window + 1))] * 5


@toys
@pytest.mark.parametrize("how", COUPLINGS)
def test_a_toy_that_drafts_for_itself_has_all_accepted(case, how):
    target = markov(case["inputs"])
    for window in (1, 2, 3):
        drawn = draw(target, DraftModel(target, window=window, coupling=how), image_keys(0, range(2000)))
        assert drawn.calls.unique().tolist() == [-(-target.num_tokens // (window + 1))]


class Recording(DraftModel):
    """Remembers what was drafted after what."""

    seen: list[tuple[Progress, Draft]]

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Scorer
    ) -> tuple[Verdict, Scorer]:
        self.seen.append((progress, draft))
        return super().couple(job, progress, draft, log_law, memory)


@pytest.mark.parametrize("kind", ["labels", "text"])
@pytest.mark.parametrize("how", ["maximal", "block"])
@torch.no_grad()
def test_drafts_are_drawn_from_the_law_that_the_model_has_after_all_tokens_before(make_generator, how, kind):
    trial, window = trial_of(make_generator, kind), 3
    draft = make_generator(GridLayout(4, 6), depth=1, text=kind == "text")  # unlike the target: all lengths are kept
    recording = Recording(draft, window=window, coupling=how)
    object.__setattr__(recording, "seen", [])
    trial.draw(recording)
    checked, starts = 0, set()
    for progress, guess in recording.seen:
        places = progress.next + torch.arange(window)
        tokens = progress.tokens.scatter(1, places, guess.tokens)[:, :24]
        laws = draft(tokens, trial.condition).softmax(-1)
        for row, start in enumerate(progress.start.tolist()):
            inside = min(window, 23 - start)
            torch.testing.assert_close(guess.law[row, :inside], laws[row, start + 1 : start + 1 + inside])
            checked += inside
            starts.add(start)
    assert {-1, 0, 1, 2} <= starts
    assert checked > 100


@torch.no_grad()
def test_an_early_exit_leaves_the_generator_s_cache_as_it_was(make_generator):
    """Its laws are those of the first block and the head; and it needs no cache of its own."""
    trial = trial_of(make_generator)
    shallow = deepcopy(trial.target)
    shallow.blocks = shallow.blocks[:1]
    plain = trial.draw(DraftModel(shallow, coupling="block"))
    drawn = trial.draw(EarlyExit(1, coupling="block"))
    assert torch.equal(drawn.tokens, plain.tokens)
    assert torch.equal(drawn.calls, plain.calls)


# -- rows, rounds -----------------------------------------------------------------------------------------------------


def strategies_of(trial: Trial) -> list[Strategy]:
    chains: list[Strategy] = [DraftModel(trial.draft, window=3, coupling=how) for how in COUPLINGS]
    return [*chains, *(EarlyExit(1, window=3, coupling=how) for how in COUPLINGS)]


each = pytest.mark.parametrize(
    "index", range(6), ids=[f"{kind}-{how}" for kind in ("model", "exit") for how in COUPLINGS]
)


@each
def test_an_image_is_the_same_in_any_company(make_generator, index):
    trial = trial_of(make_generator)
    check_rows_are_alone(trial, strategies_of(trial)[index], guidance=Guidance(scale=2.0, steps=7))


@a_toy
@pytest.mark.parametrize("how", COUPLINGS)
def test_a_toy_s_image_is_the_same_in_any_company(case, how):
    keys, rows = image_keys(0, range(40)), [17, 3, 30]
    target, generator = TwoDepths(case["inputs"]), markov(case["inputs"], "draft")
    for strategy in (DraftModel(generator, window=2, coupling=how), EarlyExit(1, window=2, coupling=how)):
        whole, part = (draw(target, strategy, some) for some in (keys, keys[rows]))
        assert torch.equal(whole.tokens[rows], part.tokens)
        assert torch.equal(whole.calls[rows], part.calls)
        assert len(whole.calls.unique()) > 1


@each
def test_a_round_never_waits(make_generator, index):
    trial = trial_of(make_generator)
    check_a_round_never_waits(trial, strategies_of(trial)[index])


@pytest.mark.parametrize("how", ["maximal", "block"])
def test_a_round_is_one_graph(make_generator, how):
    trial = trial_of(make_generator)
    check_a_round_compiles(trial, DraftModel(trial.draft, window=2, coupling=how))


def test_a_round_with_an_early_exit_is_one_graph(make_generator):
    check_a_round_compiles(trial_of(make_generator), EarlyExit(1, window=2))


# -- what is told -----------------------------------------------------------------------------------------------------


LABELS = GeneratorConfig(
    layout=GridLayout(4, 6),
    codebook_size=13,
    condition=LabelConditionConfig(labels=(Label(size=4), Label(name="style", size=2))),
    width=16,
    depth=1,
    num_heads=2,
)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            replace(LABELS, codebook_size=12),
            "codes of the draft generator, 12, .* has, 13; use one of the same tokenizer",
        ),
        (
            replace(LABELS, layout=GridLayout(6, 4)),
            r"height=6, width=4\), .* GridLayout\(height=4, width=6\); use one for images of the same size",
        ),
        (
            replace(LABELS, condition=LabelConditionConfig(labels=(Label(size=5), Label(size=2)))),
            r"labels with \[5, 2\] classes, .* labels with \[4, 2\] classes; use one trained with the same conditions",
        ),
        (
            replace(LABELS, condition=TextConditionConfig(num_slots=5, feature_dim=6)),
            r"5 text features of 6 numbers, .* labels with \[4, 2\] classes",
        ),
    ],
)
def test_a_draft_model_for_other_images_is_refused(make_generator, config, told):
    trial = trial_of(make_generator)
    with pytest.raises(ValueError, match=told):
        trial.draw(DraftModel(config.build()))


@pytest.mark.parametrize("depth", [-1, 0, 2, 3])
def test_an_exit_is_between_the_first_and_the_last_block(make_generator, depth):
    with pytest.raises(
        ValueError, match=f"depth must be at least 1 and less than the generator's 2 blocks, got {depth}"
    ):
        trial_of(make_generator).draw(EarlyExit(depth))


@pytest.mark.parametrize(
    ("options", "told"),
    [({"window": 0}, "window must be 1 or more, got 0"), ({"coupling": "best"}, "\"shared\", got 'best'")],
)
@pytest.mark.parametrize(
    "build", [lambda **options: DraftModel(None, **options), lambda **options: EarlyExit(1, **options)]
)
def test_bad_settings_are_told(build: Callable[..., Any], options: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        build(**options)


def test_guarantees(make_generator):
    generator = make_generator(GridLayout(4, 6))
    for how in COUPLINGS:
        for strategy in (DraftModel(generator, coupling=how), EarlyExit(1, coupling=how)):
            assert strategy.guarantee == ("pathwise" if how == "shared" else "exact")
    assert EarlyExit(1).guarantee == "pathwise"
    assert DraftModel(generator).guarantee == "exact"


def test_a_used_draft_model_remembers_nothing(make_generator: Callable[..., Generator]):
    trial = trial_of(make_generator)
    strategy = DraftModel(trial.draft)
    first = trial.draw(strategy)
    sample_tokens(trial.target, trial.condition[:2], image_keys(9, range(2)), strategy=strategy)
    assert torch.equal(trial.draw(strategy).tokens, first.tokens)
