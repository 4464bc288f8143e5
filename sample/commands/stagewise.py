"""How `imgtok generate` draws from next-scale generators."""

from __future__ import annotations

from pathlib import Path

import torch

from imgtok.generators.hub import AnyConfig, load, load_config
from imgtok.generators.next_scale import NextScaleConfig, NextScaleGenerator
from imgtok.generators.pack import packed
from imgtok.generators.presets import PRESETS
from imgtok.sample.commands.common import check_weights
from imgtok.sample.next_scale import StageStrategy
from imgtok.sample.strategies import ENTRIES, STAGE_ENTRIES, StageParts, build_stage_strategy


def check_stage_options(
    model: str,
    config: AnyConfig,
    *,
    strategy: str,
    window: int | None,
    compile: bool,
    draft_stages: int | None,
    smooth: bool,
) -> None:
    """ValueError for options that are for generators of another kind than `model`, before its weights are loaded."""
    alone = strategy in STAGE_ENTRIES and strategy not in ENTRIES
    for_stages = {f"--strategy {strategy}": alone, "--draft-stages": draft_stages is not None, "--smooth": smooth}
    known = strategy == "auto" or strategy in STAGE_ENTRIES
    for_tokens = {f"--strategy {strategy}": not known, "--window": window is not None, "--compile": compile}
    if not isinstance(config, NextScaleConfig):
        refuse(for_stages, f"is for next-scale generators, which {model} is not")
        return
    refuse(for_tokens, f"is for next-token generators; {model} is drawn stage by stage")
    if draft_stages is not None and not (strategy in STAGE_ENTRIES and STAGE_ENTRIES[strategy].needs_draft):
        raise ValueError(f"--draft-stages {draft_stages} is of no use to --strategy {strategy}; leave it out")


def refuse(given: dict[str, bool], why: str) -> None:
    for word, is_given in given.items():
        if is_given:
            raise ValueError(f"{word} {why}; leave it out")


def stage_way(
    generator: NextScaleGenerator, strategy: str, draft_model: str | None, weights: Path | None, stages: int | None
) -> StageStrategy:
    """The strategy by its name; the draft model is of the generator's type and on its device."""
    draft = None
    if draft_model is not None:
        draft = packed(load_stage_draft(draft_model, weights, generator.device, generator.dtype))
    parts = StageParts(generator=generator, draft=draft, stages=stages)
    return build_stage_strategy("plain" if strategy == "auto" else strategy, parts)


def load_stage_draft(model: str, weights: Path | None, device: torch.device, dtype: torch.dtype) -> NextScaleGenerator:
    check_weights("draft-weights", weights, model, PRESETS)
    if not isinstance(load_config(model), NextScaleConfig):
        raise ValueError(f"--draft-model {model} is no next-scale generator; this needs one that draws stage by stage")
    draft = load(model, weights=weights, device=device, dtype=dtype)
    assert isinstance(draft, NextScaleGenerator)
    return draft
