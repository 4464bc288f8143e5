"""Guided logits of tokens at any place: a generator, its cache, and the rows that guidance needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.generator import Generator
from imgtok.generators.tree import Tree
from imgtok.sample.guidance import Guidance, guide_at, last_guided, wide

BUCKET = 64  # the cache is read in multiples of this many columns: few shapes, little waste


class Scorer:
    """Rows [given; null] of a batch of images, as one network call.

    The null rows are left out of all calls once no image is at a place whose guidance scale differs from 1.
    """

    def __init__(
        self,
        generator: Generator,
        condition: Any,
        guidance: Guidance,
        rows: int,
        spare: int,
        cache: KVCache | None = None,
    ) -> None:
        """`spare`: places after the last token that drafts may run into."""
        scales = guidance.scales(generator.num_tokens)
        self.generator, self.rows = generator, rows
        self.guided_until = last_guided(scales)
        self.doubled = self.guided_until > 0
        device = generator.device
        self.scales = torch.tensor(scales + [1.0] * (spare + 1), device=device)
        self.cache = cache or new_cache(generator, rows, guidance, spare)
        self.cache.reset()
        self.cache.keep(2 * rows if self.doubled else rows)
        generator.prefill(generator.condition.with_null(condition) if self.doubled else condition, self.cache)

    def __call__(
        self, tokens: Tensor, start: Tensor, length: int, tree: Tree | None = None, depth: int | None = None
    ) -> Tensor:
        """Of the token after each of tokens b w, the first of which stands at `start` (b): b w v, float32.

        `depth`: ask the first blocks only, this once; what they leave in the cache is what a full call would.
        """
        doubled = 2 if self.doubled else 1
        if tree is not None:
            tree = Tree(tree.depths.repeat(doubled, 1), tree.sees.repeat(doubled, 1, 1))
        logits = self.generator.score(tokens.repeat(doubled, 1), start.repeat(doubled), self.cache, length, tree, depth)
        if not self.doubled:
            return wide(logits)
        steps = torch.arange(tokens.shape[1], device=start.device) if tree is None else tree.depths[: self.rows]
        return guide_at(logits, self.scales[start[:, None] + 1 + steps][..., None])

    def commit(self, path: Tensor, start: Tensor) -> None:
        """Of the tree scored last, rooted at `start`, keeps the nodes `path` (b m) as the tokens after the root."""
        doubled = 2 if self.doubled else 1
        self.generator.commit(path.repeat(doubled, 1), start.repeat(doubled), self.cache)

    def forget_null(self, least: int) -> None:
        """To be told that no image is at a place before `least`."""
        if self.doubled and least >= self.guided_until:
            self.doubled = False
            self.cache.keep(self.rows)

    def columns(self, places: int) -> int:
        """Cache columns to look at when tokens stand at places below `places`.

        Never all of them, for which compiled code would be made apart.
        """
        needed = self.generator.num_slots + places
        return min(-(-needed // BUCKET) * BUCKET, self.cache.length - 1)


def new_cache(generator: Generator, rows: int, guidance: Guidance, spare: int = 0) -> KVCache:
    """Memory for a scorer of `rows` images."""
    guided = last_guided(guidance.scales(generator.num_tokens)) > 0
    return generator.new_cache(2 * rows if guided else rows, spare + 2)
