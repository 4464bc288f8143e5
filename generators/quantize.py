"""A generator in fewer bits: a draft model that needs no training."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from imgtok.generators.generator import Generator
from imgtok.nn.linear import int8


def quantized(generator: Generator, bits: int = 8) -> Generator:
    """A copy whose blocks and head have int8 weights, a scale for each output; embeddings and norms are as they were.

    Below 8 `bits`, weights are coarser but take as much memory. The copy shares nothing with the generator, and its
    state dict does not load into one.

    Raises:
        ValueError: bits outside [2, 8], or no layers to quantize.
    """
    parts = [*generator.blocks.modules(), *generator.head.modules()]
    instead: dict[int, Any] = {id(part): int8(part, bits) for part in parts if isinstance(part, nn.Linear)}
    if not instead:
        raise ValueError("the generator's linear layers are quantized or packed already; quantize the one it came from")
    return deepcopy(generator, instead)
