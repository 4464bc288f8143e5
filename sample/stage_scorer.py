"""Guided logits of stages: a next-scale generator, its cache, and the rows that guidance needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.sample.guidance import Guidance, guide_at, last_guided, wide


class StageScorer:
    """Rows [given; null] of a batch of images; as long as all null rows are equal, there is one of them.

    Guidance counts stages: "linear" rises from none at the first to its full scale at the last.
    """

    def __init__(
        self, generator: NextScaleGenerator, condition: Tensor, guidance: Guidance, rows: int, cache: KVCache
    ) -> None:
        scales = guidance.scales(generator.num_stages)
        self.generator, self.rows, self.doubled = generator, rows, last_guided(scales) > 0
        self.scales = torch.tensor(scales, device=generator.device)
        self.cache = cache
        self.cache.reset()
        self.cache.keep(rows + 1 if self.doubled else rows)
        self.told = generator.tell(with_one_null(generator, condition) if self.doubled else condition)

    def __call__(self, stage: int, seen: Tensor | None) -> Tensor:
        """Of all tokens of a stage, b n_k v, float32; stages are asked in order. `seen` b n_k d, None for the first."""
        logits = self.generator.score(self.told, stage, None if seen is None else self.both(seen), self.cache)
        if self.doubled and stage == 0:  # until here, all null rows are equal
            logits = logits[self.twins]
            self.told = self.told.rows(self.twins)
            self.cache.copy_row(self.rows, to=2 * self.rows, length=logits.shape[1])
        return self.guided(logits, stage)

    def first(self, seen: Sequence[Tensor]) -> list[Tensor]:
        """The same of the first stages in one call: `seen` b n_k d of each of them but the very first."""
        if self.doubled:
            self.told = self.told.rows(self.twins)
            self.cache.keep(2 * self.rows)
        logits = self.generator.score_first(self.told, self.both(torch.cat(list(seen), dim=1)), self.cache)
        sizes = self.generator.config.layout.group_sizes[: len(seen) + 1]
        return [self.guided(part, stage) for stage, part in enumerate(logits.split(sizes, dim=1))]

    @property
    def twins(self) -> Tensor:
        """Which of the rows [given; one null] each of [given; null] is."""
        return torch.arange(2 * self.rows, device=self.scales.device).clamp_max(self.rows)

    def both(self, seen: Tensor) -> Tensor:
        return seen.repeat(2, 1, 1) if self.doubled else seen

    def guided(self, logits: Tensor, stage: int) -> Tensor:
        return guide_at(logits, self.scales[stage]) if self.doubled else wide(logits)


def with_one_null(generator: NextScaleGenerator, condition: Tensor) -> Tensor:
    """b k -> b + 1 k"""
    return generator.condition.with_null(condition)[: len(condition) + 1]
