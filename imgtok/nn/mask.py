"""Attention masks; the only place where they are made. True means: may be seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def causal(length: int, device: torch.device | str = "cpu") -> Tensor:
    """n n: each position sees itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def group_causal(sizes: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """n n for groups of these sizes, one after the other: each position sees its own group and those before it."""
    group = torch.repeat_interleave(torch.tensor(sizes, device=device))
    return group[:, None] >= group


def padded_causal(visible: Tensor, length: int) -> Tensor:
    """Causal over `length` positions, the first of which may be padding: b p (bool) -> b 1 length length.

    Padded slots are hidden from all others; each position sees itself, so that no row is empty.
    """
    columns = torch.nn.functional.pad(visible, (0, length - visible.shape[1]), value=True)
    diagonal = torch.eye(length, dtype=torch.bool, device=visible.device)
    return (causal(length, visible.device) & columns[:, None, :] | diagonal)[:, None]


def first_columns(lengths: Tensor, total: int) -> Tensor:
    """b 1 1 total: every position of a row sees the first `lengths` (b) of `total` columns."""
    return (torch.arange(total, device=lengths.device) < lengths[:, None])[:, None, None]


def cached(positions: Tensor, visible: Tensor) -> Tensor:
    """For queries at `positions` (b w) over the columns of a cache, `visible` b l: b 1 w l.

    Columns after the query are hidden, whatever the cache holds there; each query sees itself.
    """
    columns = torch.arange(visible.shape[1], device=positions.device)
    before = columns < positions[:, :, None]
    own = columns == positions[:, :, None]
    return (before & visible[:, None, :] | own)[:, None]


def drafted(start: Tensor, width: int, visible: Tensor, sees: Tensor) -> Tensor:
    """For a tree of `width` nodes in columns start, start + 1, … (start b) of a cache, `visible` b l: b 1 w l.

    All nodes see the columns before `start`, and of the tree what `sees` (b w w) says.
    """
    columns = torch.arange(visible.shape[1], device=start.device)
    node = columns - start[:, None]
    inside = (node >= 0) & (node < width)
    own = sees.gather(2, node.clamp(0, width - 1)[:, None, :].expand(-1, width, -1))
    return torch.where(inside[:, None, :], own, (node < 0)[:, None, :] & visible[:, None, :])[:, None]
