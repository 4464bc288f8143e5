"""Tiny random generators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig, TextFeatures
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.tokens import GridLayout

from .tree_trials import trial_of


@pytest.fixture(scope="session")
def make_generator() -> Callable[..., Generator]:
    """Builds generators in evaluation mode, with weights (the head's too) strong enough for laws that differ."""

    def make(layout: GridLayout, *, codebook_size: int = 13, text: bool = False, depth: int = 2) -> Generator:
        labels = LabelConditionConfig(labels=(Label(size=4), Label(name="style", size=2)))
        config = GeneratorConfig(
            layout=layout,
            codebook_size=codebook_size,
            condition=TextConditionConfig(num_slots=5, feature_dim=6) if text else labels,
            width=16,
            depth=depth,
            num_heads=4,
            num_kv_heads=2,
            mlp_hidden=24,
        )
        generator, dice = config.build().eval(), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in generator.parameters():
                noise = torch.randn(parameter.shape, generator=dice)
                scale = 1.5 / math.sqrt(parameter.shape[-1])
                parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else scale * noise)
        return generator

    return make


@pytest.fixture(scope="session", params=["labels", "text"])
def pair(request, make_generator) -> tuple[Generator, Any]:
    """A generator over 3 x 4 tokens and seven conditions for it."""
    if request.param == "labels":
        return make_generator(GridLayout(3, 4)), torch.tensor([[i % 5, i % 3] for i in range(7)])
    visible = torch.arange(5) >= torch.tensor([[i % 5] for i in range(7)])
    features = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(1))
    return make_generator(GridLayout(3, 4), text=True), TextFeatures(features * visible[:, :, None], visible)


@pytest.fixture(scope="module", params=["labels", "text"])
def trial(request, make_generator):
    return trial_of(make_generator, request.param)


@pytest.fixture(scope="module")
def labels(make_generator):
    return trial_of(make_generator)


@pytest.fixture(scope="module")
def shallow(make_generator):
    return trial_of(make_generator, depth=1)
