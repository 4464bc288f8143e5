"""Load generators: a preset's name, a folder, or a published file with its preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from imgtok import zoo
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.generators.masked import MaskedConfig, MaskedGenerator
from imgtok.generators.next_scale import NextScaleConfig, NextScaleGenerator
from imgtok.hub import CONFIG_FILE, find_config, load_model

AnyConfig = GeneratorConfig | NextScaleConfig | MaskedConfig
AnyGenerator = Generator | NextScaleGenerator | MaskedGenerator
CONFIGS = (GeneratorConfig, NextScaleConfig, MaskedConfig)


def load(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> AnyGenerator:
    """A generator in evaluation mode; arguments and errors as in `imgtok.load`."""
    from imgtok.generators.presets import PRESETS

    packaged = zoo.generator_folder(source)
    dtype = dtype or (torch.float32 if packaged else None)
    return load_model(packaged or source, CONFIGS, PRESETS, weights=weights, device=device, dtype=dtype)


def load_config(source: str | Path) -> AnyConfig:
    """The configuration alone, of a preset or a folder."""
    from imgtok.generators.presets import PRESETS

    return find_config(zoo.generator_folder(source) or source, CONFIGS, PRESETS)


def tokenizer_source(source: str | Path) -> str | None:
    """The tokenizer that belongs to a generator, as `imgtok.load` takes it; None if it comes without."""
    from imgtok.generators.presets import PRESETS

    if str(source) in PRESETS:
        return PRESETS[str(source)].tokenizer
    folder = zoo.tokenizer_folder(source) or Path(source) / "tokenizer"
    return str(folder) if (folder / CONFIG_FILE).is_file() else None


def load_next_token(source: str | Path, *, weights: str | Path | None = None, **options: Any) -> Generator:
    """`load`, for what only next-token generators can do; ValueError if it is of another kind."""
    next_token_config(source)
    return cast(Generator, load(source, weights=weights, **options))


def next_token_config(source: str | Path) -> GeneratorConfig:
    """`load_config`, with the same ValueError."""
    config = load_config(source)
    if not isinstance(config, GeneratorConfig):
        raise ValueError(f"{source} is no next-token generator; this needs one that draws token by token")
    return config
