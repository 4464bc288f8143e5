"""Noise that is a function of seed, image, position and token, and of nothing else.

Bounds are five standard deviations, or the value that a right generator exceeds once in a million tries.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from imgtok.sample.noise import _exponential, gumbel, image_keys

SEEDS = [0, 1, 2, 3, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 2 * 2**64, 3 * 2**64]
SEEDS += [2**65 + 1, 2**128, 2**128 + 2**64, 10**40]
SEEDS += [-seed for seed in SEEDS if seed]
LAW = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.01, 0.005, 0.003, 0.001, 0.0007, 0.0003])
DRAWS = 400_000


def noise_of(seed: int, images: range, places: range, size: int) -> Tensor:
    """images places size"""
    keys = image_keys(seed, images)
    return gumbel(keys, torch.arange(places.start, places.stop).expand(len(keys), -1), size)


def chi_square(counts: Tensor, probs: Tensor) -> tuple[float, float]:
    """The statistic, and what a right sampler exceeds once in a million tries."""
    expected = probs.double() * counts.sum()
    assert expected.min() >= 5, "too few draws for this test"
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(statistic), float(stats.chi2.ppf(1 - 1e-6, len(probs) - 1))


# -- the distribution -------------------------------------------------------------------------------------------------


def test_moments_are_those_of_a_gumbel_variable():
    noise = noise_of(0, range(64), range(64), 256).double().flatten()
    n, variance = noise.numel(), math.pi**2 / 6
    assert abs(float(noise.mean()) - 0.5772156649) < 5 * math.sqrt(variance / n)
    assert abs(float(noise.var()) - variance) < 5 * variance * math.sqrt(4.4 / n)  # 2 + excess kurtosis 12/5
    assert noise.dtype == torch.float64 and noise.isfinite().all()


def test_the_distribution_function_is_that_of_a_gumbel_variable():
    noise = noise_of(1, range(100), range(40), 50).flatten()
    distance = stats.kstest(noise.double().numpy(), stats.gumbel_r.cdf).statistic
    assert distance < 2.7 / math.sqrt(len(noise))  # exceeded once in a million: 2 exp(-2 * 2.7^2)


@pytest.mark.parametrize("along", ["images", "places", "both"])
def test_the_largest_is_a_draw_from_the_law(along):
    images, places = {"images": (DRAWS, 1), "places": (1, DRAWS), "both": (400, DRAWS // 400)}[along]
    drawn = (LAW.log() + noise_of(7, range(images), range(places), len(LAW))).argmax(-1)
    statistic, bound = chi_square(torch.bincount(drawn.flatten(), minlength=len(LAW)), LAW)
    assert statistic < bound


def test_the_largest_is_a_draw_from_the_law_along_seeds():
    keys = torch.cat([image_keys(seed, [0]) for seed in range(20_000)])
    law = LAW[:6] / LAW[:6].sum()
    drawn = (law.log() + gumbel(keys, torch.zeros(len(keys), 1, dtype=torch.int64), 6)).argmax(-1)
    statistic, bound = chi_square(torch.bincount(drawn.flatten(), minlength=6), law)
    assert statistic < bound


def test_small_steps_of_the_exponential_are_kept():
    bits = torch.tensor([0, 1, 2, 3, 255, 256, 257, 2**20 + 1, 2**31 - 1, -(2**31), -1], dtype=torch.int32)
    uniform = ((bits.long() % 2**32).double() + 0.5) / 2**32
    exact = -torch.log1p(-uniform.clamp_max(1 - 2.0**-24))
    torch.testing.assert_close(_exponential(bits).double(), exact, atol=0, rtol=1e-6)
    assert _exponential(bits).isfinite().all()


def test_the_tail_is_as_heavy_as_it_should_be():
    bits = torch.randint(-(2**31), 2**31, (2**22,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    small = _exponential(bits)
    for threshold in (2.0**-8, 2.0**-14, 2.0**-18):
        expected = len(bits) * -math.expm1(-threshold)
        assert abs(int((small < threshold).sum()) - expected) < 5 * math.sqrt(expected)


# -- independence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", ["tokens", "places", "images", "seeds"])
def test_neighbours_know_nothing_of_each_other(neighbours):
    law, n = torch.tensor([0.5, 0.3, 0.2]), 200_000
    if neighbours == "tokens":  # two halves of one vocabulary
        noise = noise_of(3, range(n), range(1), 6)[:, 0]
        one, other = noise[:, :3], noise[:, 3:]
    elif neighbours == "places":
        one, other = noise_of(3, range(n), range(2), 3).unbind(1)
    elif neighbours == "images":
        noise = noise_of(3, range(n + 1), range(1), 3)[:, 0]
        one, other = noise[:-1], noise[1:]
    else:
        one, other = noise_of(3, range(n), range(1), 3)[:, 0], noise_of(4, range(n), range(1), 3)[:, 0]
    both = 3 * (law.log() + one).argmax(-1) + (law.log() + other).argmax(-1)
    statistic, bound = chi_square(torch.bincount(both, minlength=9), torch.outer(law, law).flatten())
    assert statistic < bound
    correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(one.numel())


# -- keys -------------------------------------------------------------------------------------------------------------


def test_all_seeds_and_images_have_keys_of_their_own():
    keys = torch.cat([image_keys(seed, range(500)) for seed in SEEDS])
    assert keys.dtype == torch.int32
    assert len(torch.unique(keys, dim=0)) == 500 * len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_has_noise_of_its_own(seed):
    others = torch.stack([noise_of(other, range(1), range(4), 8)[0] for other in SEEDS if other != seed])
    assert (noise_of(seed, range(1), range(4), 8)[0] != others).flatten(1).float().mean() > 0.99


def test_places_and_images_have_noise_of_their_own():
    noise = noise_of(0, range(50), range(50), 4).reshape(2500, 4)
    assert len(torch.unique(noise, dim=0)) == 2500
    assert not torch.equal(noise_of(0, range(1), range(1, 2), 4), noise_of(0, range(1, 2), range(1), 4))


def test_large_image_numbers_are_told_apart():
    keys = image_keys(0, [0, 2**32, 2**40, 2**63, 2**64 - 1])
    assert len(torch.unique(keys, dim=0)) == 5


# -- what noise depends on --------------------------------------------------------------------------------------------


def test_noise_does_not_depend_on_its_neighbours():
    whole = noise_of(5, range(6), range(10), 16)
    assert torch.equal(noise_of(5, range(2, 5), range(10), 16), whole[2:5])
    assert torch.equal(noise_of(5, range(6), range(3, 7), 16), whole[:, 3:7])
    assert torch.equal(noise_of(5, range(6), range(10), 9), whole[..., :9])


def test_rows_may_stand_at_different_places():
    whole, keys = noise_of(5, range(3), range(10), 16), image_keys(5, range(3))
    places = torch.tensor([[0, 9], [4, 4], [7, 2]])
    noise = gumbel(keys, places, 16)
    for row in range(3):
        assert torch.equal(noise[row], whole[row, places[row]])


def test_the_first_image_of_seed_zero_is_like_any_other():
    assert (image_keys(0, [0]) != 0).all()  # zero would stay zero through every hash
    noise = noise_of(0, range(1), range(1), 16384).flatten()
    distance = stats.kstest(noise.double().numpy(), stats.gumbel_r.cdf).statistic
    assert distance < 2.7 / math.sqrt(len(noise))
    assert noise[:4].abs().max() < 3


def test_noise_is_the_same_tomorrow():
    """Images made with a seed depend on these numbers: they may only change together with a version that says so."""
    assert image_keys(0, [0, 1]).tolist() == [[2065550767, -501176263], [-1581685260, 1853398634]]
    noise = noise_of(2026, range(1), range(1), 4)[0, 0]
    expected = torch.tensor([0.2191486, -0.3198565, 0.2941180, -0.4639577])
    torch.testing.assert_close(noise, expected, atol=1e-6, rtol=1e-5)
