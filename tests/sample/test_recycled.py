"""Token recycling: what the tables remember, the chain they give, the images of plain sampling, fixed shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imgtok.sample.law import Law
from imgtok.sample.recycled import Memory, Recycled, Table, of_others
from imgtok.sample.strategy import Draft

from .tree_trials import (
    GUIDANCES,
    check_a_round_compiles,
    check_a_round_never_waits,
    check_rows_are_alone,
    start_of,
)

# -- the tables -------------------------------------------------------------------------------------------------------


def empty(rows: int, codes: int, slots: int) -> Table:
    log_probs = torch.full((rows, codes + 1, slots), -torch.inf)
    return Table(torch.zeros_like(log_probs, dtype=torch.int32), log_probs)


def test_of_equal_neighbours_the_last_counts_and_no_neighbour_teaches_nothing():
    table = empty(2, 4, 1)
    neighbours = torch.tensor([[1, 3, 1, 4], [0, 0, 0, 2]])
    tokens = torch.arange(8).view(2, 4, 1)
    table.learn(neighbours, tokens, -tokens.float())
    known = [[int(table.at(torch.tensor([key, key]))[0][row, 0]) for key in range(4)] for row in range(2)]
    assert known[0] == [0, 2, 0, 1]
    assert known[1] == [6, 0, 7, 0]
    assert table.log_probs[0, :, 0].tolist() == [-math.inf, -2.0, -math.inf, -1.0, -math.inf]
    assert table.log_probs[1, :, 0].tolist() == [-6.0, -math.inf, -7.0, -math.inf, -math.inf]
    table.learn(neighbours[:, :1], tokens[:, 1:2], tokens[:, 1:2].float())
    assert table.log_probs[0, :, 0].tolist() == [-math.inf, 1.0, -math.inf, -1.0, -math.inf]


def test_tokens_without_a_slot_share_what_is_left():
    log_probs = torch.tensor([[0.5, 0.25], [0.6, 0.0], [0.0, 0.0], [0.75, 0.25]]).log()
    probs = of_others(log_probs, 7).exp()[:, 0]
    torch.testing.assert_close(probs, torch.tensor([0.25 / 5, 0.4 / 6, 1 / 7, 0.0]))


# -- the chain --------------------------------------------------------------------------------------------------------


def chain(row: int, table: dict[str, dict[int, dict[int, float]]], noise: Tensor, tokens: list[int], width: int):
    """What is to be guessed, with dictionaries: neighbour -> token -> log-probability."""
    tokens, v = list(tokens), noise.shape[2]
    for step in range(noise.shape[1] - 1):
        place, scores = len(tokens), dict[int, float]()
        known = []
        for name, distance in (("left", 1), ("upper", width)):
            known.append(table[name].get(tokens[place - distance], {}) if place >= distance else {})
            for token, log_prob in known[-1].items():
                score = log_prob + float(noise[row, step, token])
                scores[token] = max(score, scores.get(token, -math.inf))
        others = min((1 - sum(math.exp(log_prob) for log_prob in laws.values())) / (v - len(laws)) for laws in known)
        blind = int(noise[row, step].argmax())
        score = math.log(max(others, 1e-38)) + float(noise[row, step, blind])
        scores[blind] = max(score, scores.get(blind, -math.inf))
        tokens.append(max(scores, key=scores.__getitem__))
    return tokens


@pytest.mark.parametrize("window", [3, 8])
@torch.no_grad()
def test_guesses_are_what_the_tables_say(labels, window):
    """Against the plainest loop; the longer window is longer than a row of six tokens, so guesses are neighbours."""
    strategy = Recycled(window=window, slots=3)
    start = start_of(labels, strategy)
    job, (progress, memory, *_) = start.round.job, start.arguments
    dice = torch.Generator().manual_seed(0)
    laws = torch.randn(2, 5, 13, 13, generator=dice).mul(2).log_softmax(-1)
    history = torch.randint(13, progress.tokens.shape, generator=dice)
    for table, law in zip(memory[:2], laws, strict=True):
        values, tokens = law.topk(3)
        for code in range(10):  # three codes stay unknown
            table.learn(torch.full((5, 1), code), tokens[:, code, None], values[:, code, None])
    progress = progress._replace(tokens=history, start=torch.tensor([-1, 0, 4, 6, 14]))
    noise = job.noise(progress.next + torch.arange(window + 1))
    draft, _ = strategy.draft(job, progress, memory)
    for row, at in enumerate(progress.start.tolist()):
        known = {
            name: {
                code: {int(token): float(law[row, code, token]) for token in law[row, code].topk(3).indices}
                for code in range(10)
            }
            for name, law in zip(("left", "upper"), laws, strict=True)
        }
        expected = chain(row, known, noise, history[row, : at + 1].tolist(), width=6)
        assert draft.tokens[row].tolist() == expected[at + 1 :]


@torch.no_grad()
def test_a_call_teaches_both_tables(labels):
    strategy = Recycled(window=8, slots=2)
    start = start_of(labels, strategy)
    job, (progress, memory, *_) = start.round.job, start.arguments
    dice = torch.Generator().manual_seed(0)
    progress = progress._replace(
        tokens=torch.randint(13, progress.tokens.shape, generator=dice), start=torch.tensor([-1, 0, 4, 9, 20])
    )
    draft = Draft(torch.randint(13, (5, 8), generator=dice))
    log_law = torch.randn(5, 9, 13, generator=dice).log_softmax(-1)
    noise = job.noise(progress.next + torch.arange(9))
    _, after = strategy.couple(job, progress, draft, log_law, memory._replace(noise=noise))
    assert isinstance(after, Memory) and after.noise is None
    for row, at in enumerate(progress.start.tolist()):
        tokens = progress.tokens[row, : at + 1].tolist() + draft.tokens[row].tolist()
        for table, distance in ((after.left, 1), (after.upper, 6)):
            known = {}
            for node in range(9):
                place = at + 1 + node
                if distance <= place < 24:  # has that neighbour, and is in the image
                    known[tokens[place - distance]] = log_law[row, node].topk(2)
            for code in range(14):
                if code in known:
                    assert table.tokens[row, code].tolist() == known[code].indices.tolist()
                    assert torch.equal(table.log_probs[row, code], known[code].values)
                else:
                    assert (table.log_probs[row, code] == -torch.inf).all()


# -- the images of plain sampling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "slots"), [(1, 1), (5, 3), (8, 13), (30, 4)])
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_images_are_those_of_plain_sampling(trial, guidance, window, slots):
    strategy = Recycled(window=window, slots=slots)
    assert strategy.guarantee == "pathwise"
    drawn = trial.draw(strategy, guidance=GUIDANCES[guidance])
    assert torch.equal(drawn.tokens, trial.draw(guidance=GUIDANCES[guidance]).tokens)
    assert drawn.calls.sum() < 24 * 5


@pytest.mark.parametrize("law", [Law(temperature=0), Law(temperature=0.7, top_k=5, top_p=0.9)], ids=["greedy", "cut"])
def test_any_law_will_do(labels, law):
    drawn = labels.draw(Recycled(slots=4), law=law)
    assert torch.equal(drawn.tokens, labels.draw(law=law).tokens)


def test_what_was_learned_saves_calls(labels):
    """Without tables, the noise alone is guessed."""

    class Forgetful(Recycled):
        def couple(self, job, progress, draft, log_law, memory):
            verdict, _ = super().couple(job, progress, draft, log_law, memory)
            return verdict, self.begin(job)

    guidance = GUIDANCES["constant"]
    calls = [int(labels.draw(kind(), guidance=guidance).calls.sum()) for kind in (Recycled, Forgetful)]
    assert calls[0] < calls[1] < 24 * 5


def test_an_image_does_not_depend_on_its_batch(trial):
    check_rows_are_alone(trial, Recycled(slots=4), guidance=GUIDANCES["stopped"])


def test_stopping_early_gives_the_first_tokens(labels):
    assert torch.equal(labels.draw(Recycled(), num_tokens=7).tokens, labels.draw(Recycled()).tokens[:, :7])


# -- fixed shapes -----------------------------------------------------------------------------------------------------


def test_a_round_never_waits_for_the_device(labels):
    check_a_round_never_waits(labels, Recycled())


def test_a_round_compiles(shallow):
    check_a_round_compiles(shallow, Recycled(window=3))


def test_wrong_settings_are_named(labels):
    with pytest.raises(ValueError, match="got 0 and 8"):
        Recycled(window=0)
    with pytest.raises(ValueError, match="got 8 and 0"):
        Recycled(slots=0)
    with pytest.raises(ValueError, match="14 slots need as many codes, but there are 13"):
        labels.draw(Recycled(slots=14))
