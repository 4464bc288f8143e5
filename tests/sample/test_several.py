"""Several drafts for the next position: the law of what is drawn, the images of plain sampling, fixed shapes."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from imgtok.sample.law import Law
from imgtok.sample.several import SeveralDrafts

from .oracles import cases
from .toys import TableGenerator, markov
from .tree_trials import (
    GUIDANCES,
    check_a_round_compiles,
    check_a_round_never_waits,
    check_joint,
    check_rows_are_alone,
)

COUPLINGS = ["recursive", "k-seq", "shared"]


# -- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("coupling", "drafts"), [("recursive", 2), ("k-seq", 3)])
@pytest.mark.parametrize("case", cases("markov_joint"))
def test_sequences_have_the_exact_joint_law(case, coupling, drafts):
    target, draft = markov(case["inputs"]), markov(case["inputs"], "draft")
    strategy = SeveralDrafts(draft, drafts=drafts, coupling=coupling)
    assert strategy.guarantee == "exact"
    drawn = check_joint(target, case["expected"]["joint"], strategy)
    assert drawn.accepted[1] + drawn.accepted[2] == drawn.calls.sum()


def truncated(target: TableGenerator, law: Law) -> dict[str, float]:
    """The joint law of three tokens."""
    first, second, later = (law(table.float()).double().exp() for table in (target.first, target.second, target.later))
    v = len(first)
    return {f"{a}{b}{c}": float(first[a] * second[a, b] * later[a, b, c]) for a, b, c in product(range(v), repeat=3)}


@pytest.mark.parametrize("coupling", ["recursive", "k-seq"])
@pytest.mark.parametrize("case", cases("markov_joint")[:1])
def test_candidates_that_cannot_be_drawn_do_not_matter(case, coupling):
    """Each law keeps two of four tokens, mostly not the same two, so a third candidate has no probability."""
    target, draft, law = markov(case["inputs"]), markov(case["inputs"], "draft"), Law(top_k=2)
    check_joint(target, truncated(target, law), SeveralDrafts(draft, drafts=3, coupling=coupling), law)


# -- the images of plain sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafts", [1, 4, 13])
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_shared_noise_gives_the_images_of_plain_sampling(trial, guidance, drafts):
    strategy = SeveralDrafts(trial.draft, drafts=drafts, coupling="shared")
    assert strategy.guarantee == "pathwise"
    drawn = trial.draw(strategy, guidance=GUIDANCES[guidance])
    plain = trial.draw(guidance=GUIDANCES[guidance])
    assert torch.equal(drawn.tokens, plain.tokens)
    assert plain.tokens.unique().numel() > 6
    if drafts == 13:  # all codes: one of them is right
        assert drawn.calls.tolist() == [12] * 5


@pytest.mark.parametrize("law", [Law(temperature=0), Law(temperature=0.7, top_k=5, top_p=0.9)], ids=["greedy", "cut"])
def test_any_law_will_do(labels, law):
    drawn = labels.draw(SeveralDrafts(labels.draft, coupling="shared"), law=law)
    assert torch.equal(drawn.tokens, labels.draw(law=law).tokens)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("guidance", ["off", "stopped"])
def test_the_target_as_its_own_draft_is_always_accepted(trial, guidance, coupling):
    drawn = trial.draw(SeveralDrafts(trial.target, coupling=coupling), guidance=GUIDANCES[guidance])
    assert drawn.calls.tolist() == [12] * 5
    assert drawn.accepted.tolist() == [0, 0, 60, 0, 0, 0]


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_two_tokens_of_most_calls_with_a_near_relative(labels, coupling):
    drawn = labels.draw(SeveralDrafts(labels.draft, coupling=coupling), guidance=GUIDANCES["constant"])
    assert 12 * 5 <= drawn.calls.sum() < 15 * 5


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_an_image_does_not_depend_on_its_batch(trial, coupling):
    check_rows_are_alone(trial, SeveralDrafts(trial.draft, coupling=coupling), guidance=GUIDANCES["stopped"])


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_stopping_early_gives_the_first_tokens(labels, coupling):
    strategy = SeveralDrafts(labels.draft, coupling=coupling)
    part = labels.draw(strategy, num_tokens=7)
    assert torch.equal(part.tokens, labels.draw(strategy).tokens[:, :7])


def test_drafts_may_be_guided_otherwise(labels):
    guidance = GUIDANCES["constant"]
    for own in GUIDANCES.values():
        strategy = SeveralDrafts(labels.draft, coupling="shared", guidance=own)
        assert torch.equal(labels.draw(strategy, guidance=guidance).tokens, labels.draw(guidance=guidance).tokens)


# -- fixed shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_round_never_waits_for_the_device(labels, coupling):
    check_a_round_never_waits(labels, SeveralDrafts(labels.draft, coupling=coupling))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_round_compiles(shallow, coupling):
    check_a_round_compiles(shallow, SeveralDrafts(shallow.draft, drafts=2, coupling=coupling))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_settings_are_named(labels):
    with pytest.raises(ValueError, match="drafts must be 1 or more, got 0"):
        SeveralDrafts(labels.draft, drafts=0)
    with pytest.raises(ValueError, match="got 'best'"):
        SeveralDrafts(labels.draft, coupling="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"14 different drafts .* 13"):
        labels.draw(SeveralDrafts(labels.draft, drafts=14))


def test_candidates_with_replacement_may_be_more_than_the_codes():
    laws = torch.full((2,), 0.5, dtype=torch.float64)
    target = TableGenerator(laws, laws.expand(2, 2), laws.expand(2, 2, 2), num_tokens=3)
    joint = {f"{a}{b}{c}": 1 / 8 for a, b, c in product(range(2), repeat=3)}
    drawn = check_joint(target, joint, SeveralDrafts(target, drafts=3, coupling="k-seq"))
    assert math.isclose(drawn.calls.double().mean(), 2.0)  # the target itself drafts: two tokens, then one
