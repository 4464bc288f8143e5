"""Load generators: a preset's name, a folder, or a published file with its preset."""

from __future__ import annotations

from pathlib import Path

import torch

from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.hub import find_config, load_model


def load(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Generator:
    """A generator in evaluation mode; arguments and errors as in `imgtok.load`."""
    from imgtok.generators.presets import PRESETS

    return load_model(source, GeneratorConfig, PRESETS, weights=weights, device=device, dtype=dtype)


def load_config(source: str | Path) -> GeneratorConfig:
    """The configuration alone, of a preset or a folder."""
    from imgtok.generators.presets import PRESETS

    return find_config(source, GeneratorConfig, PRESETS)
