"""Guesses that share beginnings, to be scored in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tree(NamedTuple):
    """Node 0 is the root; node j continues the path of one earlier node."""

    depths: Tensor
    """b w, steps from the root."""
    sees: Tensor
    """b w w, [i, j]: node j lies on the way from the root to node i, both ends included."""


def tree_of(parents: Tensor) -> Tree:
    """parents b w: an earlier node for each node; the root is its own."""
    width = parents.shape[1]
    nodes = torch.arange(width, device=parents.device)
    sees = torch.zeros(*parents.shape, width, dtype=torch.bool, device=parents.device)
    for node in range(width):  # parents come first, so one pass is enough
        above = sees.gather(1, parents[:, node, None, None].expand(-1, 1, width))[:, 0]
        sees[:, node] = above | (nodes == node)
    return Tree(sees.sum(-1) - 1, sees)
