"""Token by token with a KV cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.generator import Generator
from imgtok.sample.guidance import Guidance, guide, last_guided
from imgtok.sample.law import Law
from imgtok.sample.noise import gumbel

OnStep = Callable[[int, Tensor, Tensor], None]
BUCKET = 64  # the cache is read in multiples of this many columns: few shapes, little waste


@torch.no_grad()
def sample_tokens(
    generator: Generator,
    condition: Any,
    keys: Tensor,
    *,
    law: Law | None = None,
    guidance: Guidance | None = None,
    num_tokens: int | None = None,
    cache: KVCache | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draws tokens b n for a batch of conditions; keys b 2 (`image_keys`) decide them, whatever else is in the batch.

    `cache`: memory to use again, from `generator.new_cache(2 * b)` (b suffices without guidance).
    `num_tokens`: stop early. `on_step(i, tokens, logits)` sees the drawn tokens b and guided logits b v of step i.
    """
    law, guidance = law or Law(), guidance or Guidance()
    total = num_tokens or generator.num_tokens
    scales = guidance.scales(generator.num_tokens)[:total]  # stopping early changes no token before
    guided, rows = last_guided(scales), len(keys)
    cache = cache or generator.new_cache(2 * rows if guided else rows)
    cache.reset()
    cache.keep(2 * rows if guided else rows)
    places = torch.arange(total, device=keys.device)
    tokens = torch.zeros(rows, total, dtype=torch.int64, device=keys.device)
    logits = generator.prefill(generator.condition.with_null(condition) if guided else condition, cache)
    for i, scale in enumerate(scales):
        if i > 0:
            if i == guided:
                cache.keep(rows)
            previous = tokens[:, i - 1 : i].repeat(cache.rows // rows, 1)
            start = places[i - 1 : i].expand(cache.rows)
            logits = generator.score(previous, start, cache, columns(generator, cache, i))[:, -1]
        step = guide(logits, scale) if i < guided else logits.float()
        tokens[:, i] = draw(law(step), keys, places[i : i + 1])
        if on_step is not None:
            on_step(i, tokens[:, i], step)
    return tokens


def draw(log_probs: Tensor, keys: Tensor, place: Tensor) -> Tensor:
    """One token per row: log_probs b v, place 1 -> b."""
    noise = gumbel(keys, place.expand(len(keys), 1), log_probs.shape[-1])[:, 0]
    return (log_probs + noise).argmax(-1)


def columns(generator: Generator, cache: KVCache, written: int) -> int:
    """Cache columns to look at when `written` tokens are in it."""
    needed = generator.num_slots + written
    return min(-(-needed // BUCKET) * BUCKET, cache.length)
