"""Stage by stage: all tokens of a stage are drawn in one network call, given the latents so far (arXiv:2404.02905)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.sample.engine import Clock, Drawn, check_numeric
from imgtok.sample.guidance import Guidance, guide_at, last_guided, wide
from imgtok.sample.law import Law
from imgtok.sample.noise import gumbel
from imgtok.sample.strategy import AnyLaw
from imgtok.tokens import ScaleLayout

OnStage = Callable[[int, Tensor], None]


class Stages(Protocol):
    """What is asked of the tokenizer's quantizer: a `ResidualQuantizer`."""

    def accumulate(self, latents: Tensor, indices: Tensor, stage: int, layout: ScaleLayout) -> Tensor: ...

    def seen(self, latents: Tensor, stage: int, layout: ScaleLayout) -> Tensor: ...


@torch.no_grad()
def sample_stages(
    generator: NextScaleGenerator,
    quantizer: Stages,
    condition: Tensor,
    keys: Tensor,
    *,
    law: AnyLaw | None = None,
    guidance: Guidance | None = None,
    cache: KVCache | None = None,
    on_stage: OnStage | None = None,
    clock: Clock | None = None,
) -> Drawn:
    """Draws tokens b n for conditions b k; keys b 2 (`image_keys`) decide them, whatever else is in the batch.

    A token's noise belongs to its place in the sequence of all stages. Guidance counts stages: "linear" rises from
    none at the first to its full scale at the last. `on_stage` sees each stage's number and the latents b h w d after
    it. ValueError if the generator gives logits that are no numbers.
    """
    law, guidance = law or Law(), guidance or Guidance()
    layout, rows, device = generator.config.layout, len(keys), generator.device
    scales = guidance.scales(generator.num_stages)
    doubled = last_guided(scales) > 0
    cache = cache or new_cache(generator, rows, guidance)
    cache.reset()
    cache.keep(2 * rows if doubled else rows)
    by_stage = torch.tensor(scales, device=device)
    told = generator.tell(generator.condition.with_null(condition) if doubled else condition)
    latents = torch.zeros(rows, *layout.latent_shape, generator.config.codebook_dim, device=device)
    numeric, tokens, start = torch.ones(rows, dtype=torch.bool, device=device), list[Tensor](), 0
    if clock is not None:
        clock.start()
    for stage, (size, (height, width)) in enumerate(zip(layout.group_sizes, layout.sizes, strict=True)):
        seen = None if stage == 0 else quantizer.seen(latents, stage, layout).flatten(1, 2)
        tick(clock, "latents")
        if seen is not None and doubled:
            seen = seen.repeat(2, 1, 1)
        logits = generator.score(told, stage, seen, cache)
        tick(clock, "model")
        guided = guide_at(logits, by_stage[stage]) if doubled else wide(logits)
        places = torch.arange(start, start + size, device=device).expand(rows, -1)
        log_law = law(guided)
        tick(clock, "law")
        chosen = (log_law + gumbel(keys, places, log_law.shape[-1])).argmax(-1)
        latents = quantizer.accumulate(latents, chosen.unflatten(1, (height, width)), stage, layout)
        tick(clock, "latents")
        numeric, start = numeric & guided.sum((1, 2)).isfinite(), start + size
        tokens.append(chosen)
        if on_stage is not None:
            on_stage(stage, latents)
    check_numeric(numeric)
    drawn = torch.bincount(torch.tensor(layout.group_sizes)) * rows
    return Drawn(torch.cat(tokens, dim=1), torch.full((rows,), generator.num_stages), drawn, None)


def new_cache(generator: NextScaleGenerator, rows: int, guidance: Guidance) -> KVCache:
    guided = last_guided(guidance.scales(generator.num_stages)) > 0
    return generator.new_cache(2 * rows if guided else rows)


def tick(clock: Clock | None, part: str) -> None:
    if clock is not None:
        clock.stop(part)
