"""Trees of tokens: what a generator says of each node, and what stays in its cache of the path that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imgtok.generators.cache import KVCache
from imgtok.generators.generator import Generator
from imgtok.generators.tree import Tree, tree_of

from .test_generator import CONFIG, TOKENS, condition_of, kinds, random_generator

PARENTS = torch.tensor(
    [
        [0, 0, 0, 1, 1, 4, 2],  # a tree like those that strategies draft
        [0, 0, 1, 2, 3, 4, 5],  # a chain
        [0, 0, 0, 0, 1, 3, 3],
    ]
)
NODES = torch.randint(13, (3, 7), generator=torch.Generator().manual_seed(6))


def way(row: int, node: int) -> list[int]:
    """Nodes from the root to this one."""
    nodes = [node]
    while nodes[0]:
        nodes.insert(0, int(PARENTS[row, nodes[0]]))
    return nodes


def alone(generator: Generator, condition: Any, row: int) -> Any:
    return generator.condition.select(condition, slice(row, row + 1))


def begun(generator: Generator, condition: Any) -> KVCache:
    """A cache that has read the condition and all of TOKENS; what does not come before a root is overwritten."""
    cache = generator.new_cache(3, extra=9)
    generator.prefill(condition, cache)
    generator.score(torch.nn.functional.pad(TOKENS, (1, 0)), torch.full((3,), -1), cache, cache.length)
    return cache


def test_a_tree_is_what_its_parents_say():
    tree = tree_of(PARENTS)
    for row in range(3):
        for node in range(7):
            assert tree.sees[row, node].nonzero()[:, 0].tolist() == sorted(way(row, node))
            assert tree.depths[row, node] == len(way(row, node)) - 1


@kinds
@torch.no_grad()
@pytest.mark.parametrize("starts", [(1, 4, 0), (-1, 0, 2), (-1, -1, -1)], ids=str)
def test_each_node_has_the_law_of_its_path(config, starts):
    generator, condition, start = random_generator(config), condition_of(config), torch.tensor(starts)
    cache = begun(generator, condition)
    logits = generator.score(NODES, start, cache, cache.length, tree_of(PARENTS))
    compared = 0
    for row, at in enumerate(starts):
        for node in range(7):
            nodes = way(row, node) if at >= 0 else way(row, node)[1:]  # a root before the image is the condition
            path = torch.cat([TOKENS[row, : max(at, 0)], NODES[row, nodes]])
            if len(path) < 8:  # else there is no token after it
                whole = generator(torch.nn.functional.pad(path, (0, 1))[None], alone(generator, condition, row))
                torch.testing.assert_close(logits[row, node], whole[0, -1])
                compared += 1
    assert compared >= 17


@kinds
@torch.no_grad()
@pytest.mark.parametrize("starts", [(1, 2, 0), (-1, 0, 1)], ids=str)
def test_after_a_path_is_kept_the_next_laws_are_those_of_one_pass(config, starts):
    """Paths of which rows keep 3 nodes or 2; what follows overwrites the rest."""
    generator, condition, start = random_generator(config), condition_of(config), torch.tensor(starts)
    cache = begun(generator, condition)
    generator.score(NODES, start, cache, cache.length, tree_of(PARENTS))
    path, kept = torch.tensor([[1, 4, 5], [1, 2, 3], [3, 6, 0]]), torch.tensor([3, 3, 2])
    generator.commit(path, start, cache)
    root = start + kept
    next_tokens = TOKENS[:, :2]
    logits = generator.score(next_tokens, root + 1, cache, cache.length)
    for row, at in enumerate(starts):
        history = [*TOKENS[row, : max(at, 0)].tolist(), *([int(NODES[row, 0])] if at >= 0 else [])]
        history += NODES[row, path[row, : kept[row]]].tolist() + next_tokens[row].tolist()
        whole = generator(torch.tensor([[*history, 0]]), alone(generator, condition, row))[0]
        torch.testing.assert_close(logits[row], whole[len(history) - 1 : len(history) + 1])


@torch.no_grad()
def test_entries_move_to_places_that_others_leave():
    """A path may cross itself: sources are read before anything is written."""
    generator = random_generator(CONFIG)
    cache = generator.new_cache(3, extra=2)
    dice = torch.Generator().manual_seed(0)
    for memory in (*cache.keys, *cache.values):
        memory.normal_(generator=dice)
    before = torch.stack([*cache.keys, *cache.values])
    path = torch.tensor([[2, 3, 1], [1, 2, 3], [3, 1, 1]])
    start = torch.tensor([0, 3, -1])
    generator.commit(path, start, cache)
    after = torch.stack([*cache.keys, *cache.values])
    for row in range(3):
        root = 1 + int(start[row])
        for i in range(3):
            assert torch.equal(after[:, row, :, root + 1 + i], before[:, row, :, root + int(path[row, i])])
        others = [column for column in range(cache.length) if not root < column <= root + 3]
        assert torch.equal(after[:, row][..., others, :], before[:, row][..., others, :])


@torch.no_grad()
def test_a_chain_as_a_tree_is_the_chain():
    generator, condition, start = random_generator(CONFIG), condition_of(CONFIG), torch.tensor([1, 0, 3])
    chain = torch.arange(4).sub(1).clamp_min(0).expand(3, -1)
    laws = []
    for tree in (None, tree_of(chain)):
        cache = begun(generator, condition)
        laws.append(generator.score(NODES[:, :4], start, cache, cache.length, tree))
    torch.testing.assert_close(laws[1], laws[0])


@kinds
@torch.no_grad()
def test_padding_and_other_branches_are_invisible(config):
    """A node's law changes with the nodes on its way and with no other."""
    generator, condition, start = random_generator(config), condition_of(config), torch.tensor([1, 2, 0])
    tree, laws = tree_of(PARENTS), []
    for changed in range(7):
        nodes = NODES.clone()
        nodes[:, changed] = (nodes[:, changed] + 1) % 13
        cache = begun(generator, condition)
        laws.append(generator.score(nodes, start, cache, cache.length, Tree(*tree)))
    cache = begun(generator, condition)
    original = generator.score(NODES, start, cache, cache.length, tree)
    for changed in range(7):
        differs = (laws[changed] - original).abs().amax(-1) > 1e-6
        assert torch.equal(differs, tree.sees[:, :, changed])
