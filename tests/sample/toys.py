"""Generators small enough to know everything about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from imgtok.generators.tree import Tree
from imgtok.sample.law import Law
from imgtok.tokens import GridLayout


class Recorder:
    """A law that remembers the logits it is asked about."""

    def __init__(self, law: Law) -> None:
        self.law, self.logits = law, list[Tensor]()

    def __call__(self, logits: Tensor) -> Tensor:
        self.logits.append(logits)
        return self.law(logits)


class TableCache:
    """Remembers tokens; column 0 is the condition."""

    def __init__(self, rows: int, length: int) -> None:
        self.length, self.tokens = length, torch.zeros(rows, length, dtype=torch.int64)

    def reset(self) -> None:
        self.tokens.zero_()

    def keep(self, rows: int) -> None:
        assert rows <= len(self.tokens)


class TableGenerator:
    """Each token's law is looked up by the two tokens before it, so the joint law can be enumerated.

    Offers what a `Scorer` asks of a generator. first v, second v v (by the token before), later v v v (by the token
    two before, then the one before).
    """

    num_slots = 1

    def __init__(self, first: Tensor, second: Tensor, later: Tensor, num_tokens: int) -> None:
        self.first, self.second, self.later, self.num_tokens = first.log(), second.log(), later.log(), num_tokens
        self.config = SimpleNamespace(codebook_size=len(first), layout=GridLayout(1, num_tokens))
        self.device = first.device
        self.condition = SimpleNamespace(with_null=lambda condition: torch.cat([condition, condition]))
        self.calls = 0

    def new_cache(self, rows: int, extra: int = 0) -> TableCache:
        return TableCache(rows, 1 + self.num_tokens + extra)

    def prefill(self, condition: Any, cache: TableCache) -> None:
        pass

    def score(
        self,
        tokens: Tensor,
        start: Tensor,
        cache: TableCache,
        length: int,
        tree: Tree | None = None,
        depth: int | None = None,
    ) -> Tensor:
        self.calls += 1
        width = tokens.shape[1]
        columns = 1 + start[:, None] + torch.arange(width)
        assert int(columns.max()) < length <= cache.length
        cache.tokens[: len(tokens)].scatter_(1, columns, tokens)
        if tree is None:
            places = columns - 1
            before = cache.tokens[: len(tokens)].gather(1, (columns - 1).clamp_min(0))
        else:
            places = start[:, None] + tree.depths
            parent = (tree.sees & (tree.depths[:, None, :] == tree.depths[:, :, None] - 1)).long().argmax(-1)
            before = tokens.gather(1, parent)
            before[:, 0] = cache.tokens[: len(tokens)].gather(1, start.clamp_min(0)[:, None])[:, 0]
        later = self.later[before, tokens]
        return torch.where(
            (places < 0)[..., None], self.first, torch.where((places == 0)[..., None], self.second[tokens], later)
        )

    def commit(self, path: Tensor, start: Tensor, cache: TableCache) -> None:
        root = 1 + start[:, None]
        kept = cache.tokens[: len(path)].gather(1, root + path)
        cache.tokens[: len(path)].scatter_(1, root + 1 + torch.arange(path.shape[1]), kept)


def markov(inputs: dict[str, Any], which: str = "target") -> TableGenerator:
    """The toy of `markov_joint.json` (which: "target" or "draft")."""
    tables = [
        torch.tensor(inputs[f"{which}_{part}"], dtype=torch.float64)
        for part in ("first", "second_given_first", "later_given_two")
    ]
    return TableGenerator(*tables, num_tokens=inputs["length"])
