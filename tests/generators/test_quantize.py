"""A generator in int8: what changes, what does not, and that it draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from imgtok.generators.quantize import quantized
from imgtok.nn.linear import Int8Linear
from imgtok.sample.engine import sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.noise import image_keys

from .test_generator import CONFIG, TEXT, TOKENS, condition_of, random_generator

CONFIGS = [CONFIG, replace(CONFIG, condition=TEXT)]


@pytest.mark.parametrize("config", CONFIGS, ids=["labels", "text"])
@torch.no_grad()
def test_only_the_linear_layers_of_blocks_and_head_change(config):
    generator = random_generator(config)
    small = quantized(generator)
    kept = dict(small.named_parameters())
    for name, part in generator.named_modules():
        if isinstance(part, nn.Linear) and name.startswith(("blocks", "head")):
            assert isinstance(small.get_submodule(name), Int8Linear), name
    for name, parameter in generator.named_parameters():
        linear = isinstance(generator.get_submodule(name.rpartition(".")[0]), nn.Linear)
        if linear and name.startswith(("blocks", "head")):
            assert name not in kept
        else:
            assert torch.equal(kept.pop(name), parameter)
    assert not kept
    assert (small.dtype, small.device) == (generator.dtype, generator.device)


@torch.no_grad()
def test_the_copy_shares_nothing():
    generator = random_generator(CONFIG)
    generator(TOKENS, condition_of(CONFIG))  # makes its tables
    small = quantized(generator)
    ours, theirs = ({x.data_ptr() for x in (*g.parameters(), *g.buffers())} for g in (generator, small))
    assert not ours & theirs
    before = small(TOKENS, condition_of(CONFIG))
    for parameter in generator.parameters():
        parameter.zero_()
    assert torch.equal(small(TOKENS, condition_of(CONFIG)), before)
    assert all(isinstance(part.weight, nn.Parameter) for part in generator.modules() if isinstance(part, nn.Linear))


@pytest.mark.parametrize("config", CONFIGS, ids=["labels", "text"])
@torch.no_grad()
def test_fewer_bits_are_further_off(config):
    generator, condition = random_generator(config), condition_of(config)
    whole = generator(TOKENS, condition)
    errors = [(quantized(generator, bits)(TOKENS, condition) - whole).std() / whole.std() for bits in (8, 6, 4)]
    assert 0 < errors[0] < 0.05
    assert errors[0] < errors[1] < errors[2]


def test_it_draws_as_any_generator_does():
    small, condition, keys = quantized(random_generator(CONFIG)), condition_of(CONFIG), image_keys(0, range(3))
    tokens = sample_tokens(small, condition, keys, guidance=Guidance(scale=2.0)).tokens
    assert tokens.shape == (3, 8)
    small = small.to(torch.bfloat16)
    assert small.dtype == torch.bfloat16
    assert sample_tokens(small, condition, keys).tokens.shape == (3, 8)


def test_bits_that_an_int8_has_not_are_told():
    with pytest.raises(ValueError, match="between 2 and 8, got 16"):
        quantized(random_generator(CONFIG), bits=16)


def test_a_second_time_is_refused():
    with pytest.raises(ValueError, match="quantized or packed already"):
        quantized(quantized(random_generator(CONFIG)))
