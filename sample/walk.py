"""Trees of guesses in fixed shapes: how they grow, and which way through them is kept. Node 0 is the root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.generators.tree import Tree
from imgtok.sample import coupling
from imgtok.sample.draft_model import judged
from imgtok.sample.strategy import Draft, Job, Progress, Verdict

Judge = Callable[[int, Tensor, Tensor, Tensor], coupling.Choice]
"""Level, node b, the target's law after it b v, its children's tokens b k: which of them to keep."""


# Growing.


def root_only(rows: int, device: torch.device) -> Tree:
    depths = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    return Tree(depths, torch.ones(rows, 1, 1, dtype=torch.bool, device=device))


def grow(tree: Tree, parents: Tensor) -> Tree:
    """The tree and one more node below each of `parents` (b m, numbers of nodes, also repeated ones)."""
    rows, added = parents.shape
    depths = torch.cat([tree.depths, tree.depths.gather(1, parents) + 1], dim=1)
    above = tree.sees.gather(1, parents[..., None].expand(-1, -1, tree.sees.shape[2]))
    own = torch.eye(added, dtype=torch.bool, device=parents.device).expand(rows, -1, -1)
    return Tree(depths, torch.cat([F.pad(tree.sees, (0, added)), torch.cat([above, own], dim=2)], dim=1))


def subtree(tree: Tree, nodes: Tensor) -> Tree:
    """Of `nodes` (b m, ascending, each with all nodes above it), which are numbered anew."""
    rows = tree.sees.gather(1, nodes[..., None].expand(-1, -1, tree.sees.shape[2]))
    return Tree(tree.depths.gather(1, nodes), rows.gather(2, nodes[:, None].expand(-1, nodes.shape[1], -1)))


def parents_of(tree: Tree) -> Tensor:
    """The node above each: b w; 0 for the root."""
    return (tree.sees & (tree.depths[:, None] == tree.depths[:, :, None] - 1)).long().argmax(-1)


# Walking.


def of_node(values: Tensor, node: Tensor) -> Tensor:
    """values b w v of the nodes, node b -> b v."""
    return values.gather(1, node[:, None, None].expand(-1, 1, values.shape[2]))[:, 0]


def match(job: Job, progress: Progress, draft: Draft, log_law: Tensor, depth: int) -> Verdict:
    """Goes on as long as the choice of the shared noise is among the children: always what plain sampling draws.

    A draft's tree of any shape, its own for each row; no node deeper than `depth`.
    """
    assert draft.tree is not None
    parents = parents_of(draft.tree)[:, 1:]
    node, going = torch.zeros_like(progress.start), torch.ones_like(progress.start, dtype=torch.bool)
    count = torch.ones_like(node)
    tokens: list[Tensor] = []
    path: list[Tensor] = []
    for step in range(depth + 1):
        tokens.append(job.choose(of_node(log_law, node)[:, None], progress.next + step))
        child = (parents == node[:, None]) & (draft.tokens == tokens[-1])
        going = going & child.any(1)
        node = torch.where(going, child.long().argmax(1) + 1, node)
        count = count + going
        path.append(node)
    return Verdict(torch.cat(tokens, dim=1), count, torch.stack(path[:depth], dim=1))


class Walk(NamedTuple):
    """A way down from the root."""

    nodes: Tensor
    """b depth, of which the first `length` are accepted."""
    length: Tensor
    """b"""
    law: Tensor
    """Of the token after them: b v."""


def descend(tokens: Tensor, branching: Sequence[int], log_law: Tensor, judge: Judge) -> Walk:
    """Level by level to an accepted child, up to the first level without one.

    Nodes of a level stand together and have `branching[level]` children each. tokens b k of the nodes after the root,
    log_law b k+1 v: the target's law after each node, the root first.
    """
    node = torch.zeros_like(tokens[:, 0])
    going, length, law = torch.ones_like(node, dtype=torch.bool), torch.zeros_like(node), of_node(log_law, node).exp()
    path: list[Tensor] = []
    first, count = 0, 1  # the level begins with node `first` and has `count`
    for level, width in enumerate(branching):
        children = (first + count + (node - first) * width)[:, None] + torch.arange(width, device=node.device)
        choice = judge(level, node, of_node(log_law, node).exp(), tokens.gather(1, children - 1))
        accepted = going & (choice.chosen < width)
        node = children.gather(1, choice.chosen.clamp_max(width - 1)[:, None])[:, 0]
        after = torch.where(accepted[:, None], of_node(log_law, node).exp(), choice.law)
        law, going, length = torch.where(going[:, None], after, law), accepted, length + accepted
        path.append(node)
        first, count = first + count, count * width
    return Walk(torch.stack(path, dim=1), length, law)


def settle(job: Job, progress: Progress, draft: Draft, walk: Walk) -> Verdict:
    """The accepted tokens, and one more from the law after them."""
    way = Draft(draft.tokens.gather(1, walk.nodes - 1))
    return judged(job, progress, way, coupling.Verdict(walk.length, walk.law))._replace(path=walk.nodes)
