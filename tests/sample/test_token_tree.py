"""Trees of guesses: their shape, the law of what is drawn with them, the images of plain sampling, fixed shapes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from imgtok.generators.tree import tree_of
from imgtok.sample import token_tree
from imgtok.sample.draft_model import read_committed
from imgtok.sample.engine import sample_tokens
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import Draft, Job, Progress
from imgtok.sample.token_tree import DynamicTree, StaticTree, likeliest
from imgtok.sample.walk import grow, parents_of, root_only, subtree

from .oracles import cases, close
from .toys import TableGenerator, markov
from .tree_trials import (
    GUIDANCES,
    check_a_round_compiles,
    check_a_round_never_waits,
    check_joint,
    check_rows_are_alone,
    start_of,
)

SHAPES = [(3,), (4, 2, 2, 1), (1, 1, 1, 1, 1), (2, 5)]


# -- growing ----------------------------------------------------------------------------------------------------------


def random_parents(rows: int, nodes: int) -> Tensor:
    """b w, the root its own."""
    dice = torch.Generator().manual_seed(0)
    columns = [torch.randint(max(node, 1), (rows,), generator=dice) for node in range(nodes)]
    return torch.stack(columns, dim=1)


def test_a_tree_grows_to_what_its_parents_say():
    parents = random_parents(6, 9)
    tree = root_only(6, torch.device("cpu"))
    for node in range(1, 9):
        tree = grow(tree, parents[:, node : node + 1])
    whole = tree_of(parents)
    assert torch.equal(tree.depths, whole.depths)
    assert torch.equal(tree.sees, whole.sees)
    assert torch.equal(parents_of(tree), parents)
    assert tree.depths.max() > 2


def test_nodes_that_grow_together_do_not_see_each_other():
    tree = grow(grow(root_only(1, torch.device("cpu")), torch.zeros(1, 2).long()), torch.tensor([[1, 1, 2]]))
    whole = tree_of(torch.tensor([[0, 0, 0, 1, 1, 2]]))
    assert torch.equal(tree.sees, whole.sees)
    assert tree.depths.tolist() == [[0, 1, 1, 2, 2, 2]]


def test_a_subtree_is_numbered_anew():
    tree = tree_of(torch.tensor([[0, 0, 0, 1, 2, 4], [0, 0, 1, 2, 0, 4]]))
    part = subtree(tree, torch.tensor([[0, 2, 4, 5], [0, 1, 4, 5]]))
    assert parents_of(part).tolist() == [[0, 0, 1, 2], [0, 0, 0, 2]]
    assert part.depths.tolist() == [[0, 1, 2, 3], [0, 1, 1, 2]]


@pytest.mark.parametrize("branching", SHAPES)
@torch.no_grad()
def test_a_static_tree_has_its_shape(labels, branching):
    strategy = StaticTree(labels.draft, branching=branching)
    start = start_of(labels, strategy)
    progress, memory, *_ = start.arguments
    draft, _ = strategy.draft(start.round.job, progress, memory)
    assert draft.tokens.shape == (5, strategy.window)
    parents = parents_of(draft.tree)
    children = [(parents[:, 1:] == node).sum(1).tolist() for node in range(strategy.window + 1)]
    depths = draft.tree.depths[0].tolist()
    assert children == [[(*branching, 0)[depth]] * 5 for depth in depths]
    assert depths == sorted(depths)
    for node in range(strategy.window + 1):  # siblings differ
        for row in range(5):
            siblings = draft.tokens[row][parents[row, 1:] == node].tolist()
            assert len(set(siblings)) == len(siblings)


# -- the dynamic tree -------------------------------------------------------------------------------------------------


def paths(v: int, depth: int) -> list[tuple[int, ...]]:
    """By length, then lexicographic."""
    return [path for length in range(1, depth + 1) for path in product(range(v), repeat=length)]


def probability(model: TableGenerator, path: tuple[int, ...]) -> float:
    log_prob = model.first[path[0]]
    if len(path) > 1:
        log_prob = log_prob + model.second[path[:2]]
    for i in range(2, len(path)):
        log_prob = log_prob + model.later[path[i - 2 : i + 1]]
    return float(log_prob.exp())


def models(case: dict) -> tuple[TableGenerator, TableGenerator]:
    inputs = {**case["inputs"], "length": case["inputs"]["max_depth"] + 1}
    return markov(inputs), markov(inputs, "draft")


def named(tokens: Tensor, parents: Tensor) -> list[str]:
    """The path of each node after the root."""
    names = [""]
    for token, parent in zip(tokens.tolist(), parents.tolist()[1:], strict=True):
        names.append(names[parent] + str(token))
    return names[1:]


@pytest.mark.parametrize("case", cases("draft_tree"))
def test_the_likeliest_paths_of_all_are_the_oracle_s_tree(case):
    (target, draft), inputs, expected = models(case), case["inputs"], case["expected"]
    every = paths(len(inputs["draft_first"]), inputs["max_depth"])
    scores = torch.tensor([[probability(draft, path) for path in every]]).log()
    kept = likeliest(scores, inputs["budget"])
    chosen = [every[node] for node in kept[0].tolist()]
    assert ["".join(map(str, path)) for path in chosen] == expected["nodes"]
    close(case, sum(probability(draft, path) for path in chosen), expected["estimated_accepted"])
    close(case, sum(probability(target, path) for path in chosen), expected["true_accepted"])
    number = {path: node for node, path in enumerate([(), *every])}
    whole = tree_of(torch.tensor([[0] + [number[path[:-1]] for path in every]]))
    tree = subtree(whole, torch.cat([torch.zeros(1, 1).long(), kept + 1], dim=1))
    assert (parents_of(tree)[0, 1:] - 1).tolist() == expected["parent"]
    assert tree.depths[0, 1:].tolist() == expected["depth"]
    assert tree.sees[0, 1:, 1:].long().tolist() == expected["attention_among_nodes"]
    assert tree.sees[0, :, 0].all()


@pytest.mark.parametrize("case", cases("draft_tree"))
def test_drafting_grows_the_oracle_s_tree_and_as_many_are_accepted_as_known(case):
    """The mean over 50,000 images, to five standard errors."""
    (target, draft), inputs, expected = models(case), case["inputs"], case["expected"]
    drafts, draws, rounds = list[Draft](), 50_000, list[Progress]()

    class Recording(DynamicTree):
        def draft(self, job, progress, memory):
            drafted, memory = super().draft(job, progress, memory)
            drafts.append(drafted)
            return drafted, memory

    size = {"nodes": inputs["budget"], "depth": inputs["max_depth"], "width": len(inputs["draft_first"])}
    sample_tokens(
        target,
        torch.zeros(draws, 1),
        image_keys(2, range(draws)),
        strategy=Recording(draft, **size),
        on_round=rounds.append,
    )
    first = drafts[0]
    parents = parents_of(first.tree)
    assert named(first.tokens[0], parents[0]) == expected["nodes"]
    assert (first.tokens == first.tokens[0]).all() and (parents == parents[0]).all()  # nothing was drawn yet
    accepted = rounds[0].start.double()  # the first round ends with one token that is not a draft
    assert abs(accepted.mean() - expected["true_accepted"]) < 5 * accepted.std() / draws**0.5


def test_of_equal_paths_the_shorter_then_the_earlier_stay():
    half = torch.tensor([0.5, 0.5]).log()
    #               0     1     00         01         10         11
    scores = torch.tensor([[half[0], half[1], half[0], -9.0, -9.0, half[1]]])
    assert likeliest(scores, 1).tolist() == [[0]]
    assert likeliest(scores, 2).tolist() == [[0, 1]]
    assert likeliest(scores, 3).tolist() == [[0, 1, 2]]
    assert likeliest(torch.full((1, 6), -torch.inf), 4).tolist() == [[0, 1, 2, 3]]


# -- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("markov_joint"))
def test_sequences_have_the_exact_joint_law(case):
    """Of three tokens, and of four where the tree has three levels and one call may do."""
    branching = (2, 1, 2) if case["inputs"]["length"] == 4 else (2, 2)
    strategy = StaticTree(markov(case["inputs"], "draft"), branching=branching)
    assert strategy.guarantee == "exact"
    drawn = check_joint(markov(case["inputs"]), case["expected"]["joint"], strategy)
    assert drawn.calls.unique().tolist()[:2] == [1, 2]


@pytest.mark.parametrize("case", cases("markov_joint")[:1])
def test_children_that_cannot_be_drawn_do_not_matter(case):
    """Each law keeps two of four tokens, mostly not the same two, so a third child has no probability."""
    target, law = markov(case["inputs"]), Law(top_k=2)
    first, second, later = (law(part.float()).double().exp() for part in (target.first, target.second, target.later))
    joint = {f"{a}{b}{c}": float(first[a] * second[a, b] * later[a, b, c]) for a, b, c in product(range(4), repeat=3)}
    check_joint(target, joint, StaticTree(markov(case["inputs"], "draft"), branching=(3, 1)), law)


# -- the images of plain sampling -------------------------------------------------------------------------------------


def pathwise(draft, shape) -> StaticTree | DynamicTree:
    if shape[0] == "dynamic":
        _, nodes, depth, width = shape
        return DynamicTree(draft, nodes=nodes, depth=depth, width=width)
    return StaticTree(draft, branching=shape, coupling="shared")


DYNAMIC = [("dynamic", 16, 4, 4), ("dynamic", 1, 1, 13)]


@pytest.mark.parametrize("shape", SHAPES + DYNAMIC, ids=str)
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_shared_noise_gives_the_images_of_plain_sampling(trial, guidance, shape):
    strategy = pathwise(trial.draft, shape)
    assert strategy.guarantee == "pathwise"
    drawn = trial.draw(strategy, guidance=GUIDANCES[guidance])
    assert torch.equal(drawn.tokens, trial.draw(guidance=GUIDANCES[guidance]).tokens)
    assert drawn.calls.sum() < 24 * 5


@pytest.mark.parametrize("law", [Law(temperature=0), Law(temperature=0.7, top_k=5, top_p=0.9)], ids=["greedy", "cut"])
@pytest.mark.parametrize("shape", [(4, 2, 2, 1), ("dynamic", 16, 4, 4)], ids=str)
def test_any_law_will_do(labels, law, shape):
    drawn = labels.draw(pathwise(labels.draft, shape), law=law)
    assert torch.equal(drawn.tokens, labels.draw(law=law).tokens)


@pytest.mark.parametrize("coupling", ["recursive", "shared"])
@pytest.mark.parametrize("guidance", ["off", "stopped"])
def test_the_target_as_its_own_draft_is_always_accepted(trial, guidance, coupling):
    drawn = trial.draw(StaticTree(trial.target, branching=(2, 2, 1), coupling=coupling), guidance=GUIDANCES[guidance])
    assert drawn.calls.tolist() == [6] * 5  # three levels and a token after them


@pytest.mark.parametrize("kind", range(3), ids=["recursive", "shared", "dynamic"])
@torch.no_grad()
def test_the_drafting_generator_has_read_what_was_committed(trial, kind, monkeypatch):
    """In every round, its law of the next token is that of one pass over all tokens before it."""
    compared = 0

    def checked(scorer: Scorer, job: Job, progress: Progress, width: int) -> Tensor:
        nonlocal compared
        logits = read_committed(scorer, job, progress, width)
        for row, length in enumerate((progress.start + 1).tolist()):
            if length < job.total:
                condition = trial.draft.condition.select(trial.condition, slice(row, row + 1))
                whole = trial.draft(progress.tokens[row : row + 1, : length + 1], condition)
                torch.testing.assert_close(logits[row], whole[0, length], atol=1e-4, rtol=1e-4)
                compared += 1
        return logits

    monkeypatch.setattr(token_tree, "read_committed", checked)
    drawn = trial.draw(each(trial.draft)[kind])
    assert compared == drawn.calls.sum()


@pytest.mark.parametrize("shape", [(1, 1, 1), ("dynamic", 3, 3, 1)], ids=str)
def test_the_likeliest_path_of_the_target_itself_is_accepted_if_nothing_is_random(trial, shape):
    drawn = trial.draw(pathwise(trial.target, shape), law=Law(temperature=0), guidance=GUIDANCES["constant"])
    assert drawn.calls.tolist() == [6] * 5


def test_a_wider_tree_accepts_more(labels):
    calls = [
        int(labels.draw(pathwise(labels.draft, shape), guidance=GUIDANCES["constant"]).calls.sum())
        for shape in [(1,), (4, 2), (4, 2, 2, 1)]
    ]
    assert calls[0] > calls[1] > calls[2]


def each(draft) -> list[StaticTree | DynamicTree]:
    """One strategy of each kind, small."""
    return [StaticTree(draft, branching=(2, 2)), pathwise(draft, (3, 1)), pathwise(draft, ("dynamic", 4, 2, 2))]


@pytest.mark.parametrize("kind", range(3), ids=["recursive", "shared", "dynamic"])
def test_an_image_does_not_depend_on_its_batch(trial, kind):
    check_rows_are_alone(trial, each(trial.draft)[kind], guidance=GUIDANCES["stopped"])


@pytest.mark.parametrize("kind", range(3), ids=["recursive", "shared", "dynamic"])
def test_stopping_early_gives_the_first_tokens(labels, kind):
    strategy = each(labels.draft)[kind]
    assert torch.equal(labels.draw(strategy, num_tokens=7).tokens, labels.draw(strategy).tokens[:, :7])


# -- fixed shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(3), ids=["recursive", "shared", "dynamic"])
def test_a_round_never_waits_for_the_device(labels, kind):
    check_a_round_never_waits(labels, each(labels.draft)[kind])


@pytest.mark.parametrize("kind", range(3), ids=["recursive", "shared", "dynamic"])
def test_a_round_compiles(shallow, kind):
    check_a_round_compiles(shallow, each(shallow.draft)[kind])


# -- what is refused --------------------------------------------------------------------------------------------------


def test_wrong_settings_are_named(labels):
    with pytest.raises(ValueError, match=r"branching .* got \(\)"):
        StaticTree(labels.draft, branching=())
    with pytest.raises(ValueError, match=r"branching .* got \(2, 0\)"):
        StaticTree(labels.draft, branching=(2, 0))
    with pytest.raises(ValueError, match="got 'best'"):
        StaticTree(labels.draft, coupling="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"branching \(14,\) needs as many codes, but there are 13"):
        labels.draw(StaticTree(labels.draft, branching=(14,)))
    with pytest.raises(ValueError, match="got 4, 0, 2"):
        DynamicTree(labels.draft, nodes=4, depth=0, width=2)
    with pytest.raises(ValueError, match="nodes 7 is more than the 6"):
        DynamicTree(labels.draft, nodes=7, depth=2, width=2)
    with pytest.raises(ValueError, match="width 14 needs as many codes, but there are 13"):
        labels.draw(DynamicTree(labels.draft, width=14))
