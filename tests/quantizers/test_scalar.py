"""Finite scalar quantization: codes and indices are one thing, levels are where the paper puts them, gradients pass."""

import math

import pytest
import torch
from torch import Tensor

from imgtok.quantizers.scalar import ScalarConfig, ScalarQuantizer
from imgtok.tokens import GridLayout, SequenceLayout

LEVELS = [(8, 8, 8, 5, 5, 5), (2,), (3, 4), (7, 5, 5, 5, 5)]
each = pytest.mark.parametrize("levels", LEVELS, ids=str)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unbounded(quantizer: ScalarQuantizer, codes: Tensor) -> Tensor:
    """Latents whose bounded values are exactly these codes: the tanh undone."""
    levels = torch.tensor(quantizer.config.levels, dtype=torch.float64)
    reach, offset = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0).double()
    whole = codes.double() * quantizer.halves(codes).double()
    return (((whole + offset) / reach).atanh() - (offset / reach).atanh()).float()


@each
def test_every_code_is_its_own(levels):
    quantizer = ScalarConfig(levels=levels).build()
    indices = torch.arange(quantizer.codebook_size)
    codes = quantizer.codes(indices)
    assert codes.unique(dim=0).shape == (math.prod(levels), len(levels))
    result = quantizer(unbounded(quantizer, codes))
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.latents, codes, atol=1e-6, rtol=0)
    assert torch.equal(quantizer.nearest(unbounded(quantizer, codes)), indices)


def test_levels_of_a_number():
    quantizer = ScalarConfig(levels=(5, 4)).build()
    codes = quantizer.codes(torch.arange(20))
    assert codes[:5, 0].tolist() == [-1, -0.5, 0, 0.5, 1]  # the first level changes fastest
    assert codes[::5, 1].tolist() == [-1, -0.5, 0, 0.5]


@each
def test_the_nearest_level_is_taken_and_zero_stays(levels):
    quantizer = ScalarConfig(levels=levels).build()
    latents = 3 * noise(2, 50, len(levels))
    bounded, result = quantizer.bound(latents), quantizer(latents)
    whole = result.latents * quantizer.halves(latents)
    assert ((whole - bounded).abs() <= 0.5 + 1e-5).all()
    torch.testing.assert_close(quantizer.codes(result.indices), result.latents, atol=1e-6, rtol=0)
    torch.testing.assert_close(quantizer.bound(torch.zeros(1, len(levels))), torch.zeros(1, len(levels)))
    assert (quantizer.bound(noise(9, len(levels)).sort(0).values).diff(dim=0) >= 0).all()


@each
def test_latents_of_any_size_have_a_code(levels):
    quantizer = ScalarConfig(levels=levels).build()
    for size, index in ((-1e4, 0), (1e4, quantizer.codebook_size - 1)):
        assert quantizer.nearest(torch.full((1, 2, len(levels)), size)).tolist() == [[index, index]]


def test_the_gradient_is_that_of_the_bounded_latents():
    quantizer = ScalarConfig(levels=(8, 5)).build()
    latents, weights = noise(2, 6, 2).requires_grad_(), noise(2, 6, 2, seed=1)
    (given,) = torch.autograd.grad((quantizer(latents).latents * weights).sum(), latents)
    (expected,) = torch.autograd.grad((quantizer.bound(latents) / quantizer.halves(latents) * weights).sum(), latents)
    assert torch.equal(given, expected)
    assert (given.abs() > 0).all()


def test_half_precision_latents_are_quantised_in_float32():
    quantizer = ScalarConfig().build()
    latents = noise(2, 9, 6).bfloat16()
    assert quantizer(latents).latents.dtype == torch.float32
    assert torch.equal(quantizer.nearest(latents), quantizer.nearest(latents.float()))


def test_sizes_and_layouts():
    config = ScalarConfig()
    assert (config.codebook_size, config.codebook_dim, config.latent_dim, config.index_shape) == (64_000, 6, 6, ())
    assert config.layout_of(2, 4) == GridLayout(2, 4)
    assert config.layout_of(7) == SequenceLayout(7)


def test_what_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"at least 2, got \(8, 1\)"):
        ScalarConfig(levels=(8, 1))
    with pytest.raises(ValueError, match="no entropy loss"):
        ScalarConfig().build().entropy_loss(noise(1, 2, 6))
    with pytest.raises(ValueError, match="stages must be"):
        ScalarConfig().build().codes(torch.zeros(1, 2, dtype=torch.int64), stages=2)
