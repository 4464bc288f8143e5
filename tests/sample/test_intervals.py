"""Intervals of scores: the shortcuts equal leaving blocks out, and they hold what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imgtok.metrics.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_distances_without,
    kernel_distance,
    kernel_distances_without,
)
from imgtok.metrics.manifold import neighbours, neighbours_without
from imgtok.sample.evaluate import Measures, collect, compare, pictures
from imgtok.sample.intervals import interval, student_quantile, with_intervals

from .colours import colours, source


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


PART_OF = torch.randperm(23, generator=torch.Generator().manual_seed(3)) % 4


def test_statistics_without_a_part_are_those_of_the_rest() -> None:
    rows = normal(23, 5) + 40
    rest = FeatureStatistics.of(rows).without(FeatureStatistics.of(rows[PART_OF == 1]))
    expected = FeatureStatistics.of(rows[PART_OF != 1])
    assert rest.count == expected.count
    torch.testing.assert_close(rest.mean, expected.mean)
    torch.testing.assert_close(rest.covariance, expected.covariance)
    with pytest.raises(ValueError, match="23 of 23 rows cannot be left out"):
        FeatureStatistics.of(rows).without(FeatureStatistics.of(rows))


@pytest.mark.parametrize("d", [3, 40])
def test_distances_without_a_part_are_those_of_the_rest(d: int) -> None:
    """Also of fewer rows than features."""
    rows, others = normal(23, d) * 1.3, normal(31, d, seed=1)
    kept = [rows[PART_OF != part] for part in range(4)]
    parts = [FeatureStatistics.of(rows[PART_OF == part]) for part in range(4)]
    fixed = FeatureStatistics.of(others)
    found = frechet_distances_without(FeatureStatistics.of(rows), parts, fixed)
    expected = [frechet_distance(FeatureStatistics.of(rest), fixed) for rest in kept]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    for size in (5, 1024):
        found = kernel_distances_without(rows, others, PART_OF, 4, rows=size)
        expected = [kernel_distance(rest, others).value for rest in kept]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    for size in (5, 512):
        near = neighbours_without(rows, others, 3, PART_OF, 4, rows=size)
        for one, rest in zip(near, kept, strict=True):
            assert one == pytest.approx(neighbours(rest, others, 3))


def test_too_many_neighbours_for_what_stays_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to below 17 and 31, pictures that stay, got 17"):
        neighbours_without(normal(23, 2), normal(31, 2), 17, PART_OF, 4)


def test_the_interval_of_a_mean_is_students() -> None:
    """Blocks of one: the jackknife's error of a mean is s / √n, and 1.8331 is the 95 % point for 9 degrees."""
    values = normal(10, 1)[:, 0].double()
    low, high = interval(float(values.mean()), (values.sum() - values) / 9)
    assert (low + high) / 2 == pytest.approx(float(values.mean()))
    assert (high - low) / 2 == pytest.approx(1.8331 * float(values.std()) / 10**0.5, rel=1e-3)
    assert student_quantile(0.95, 19) == pytest.approx(1.7291, rel=1e-3)
    assert student_quantile(0.95, 10**6) == pytest.approx(1.6449, rel=1e-4)


@pytest.mark.parametrize(("n", "d"), [(120, 4), (30, 40)])
def test_intervals_hold_the_expected_score_of_so_many_samples(n: int, d: int) -> None:
    """Scaled and shifted Gaussian samples beside a fixed set; the expected score is the mean over all trials.

    Of 150 trials 90 % should hold it: the deviation of that share is 2.4 %, and the bound is three of them below. A
    jackknife is rather too wide than too narrow, but not twice too wide.
    """
    dice, trials, blocks = torch.Generator().manual_seed(0), 150, 10
    others = torch.randn(200, d, generator=dice)
    fixed, found = FeatureStatistics.of(others), {"frechet": [], "kernel": []}
    for _ in range(trials):
        rows = torch.randn(n, d, generator=dice) * 1.2 + 0.3
        part_of = torch.randperm(n, generator=dice) % blocks
        parts, whole = (
            [FeatureStatistics.of(rows[part_of == part]) for part in range(blocks)],
            FeatureStatistics.of(rows),
        )
        value = frechet_distance(whole, fixed)
        found["frechet"].append((value, interval(value, frechet_distances_without(whole, parts, fixed))))
        value = kernel_distance(rows, others).value
        found["kernel"].append((value, interval(value, kernel_distances_without(rows, others, part_of, blocks))))
    for results in found.values():
        values = torch.tensor([value for value, _ in results], dtype=torch.float64)
        held = sum(low <= float(values.mean()) <= high for _, (low, high) in results) / trials
        assert held >= 0.9 - 3 * 0.0245
        width = sum(high - low for _, (low, high) in results) / trials
        assert width < 2 * 2 * 1.8331 * float(values.std())


def test_scores_get_intervals_around_them() -> None:
    extractor, measures = colours(), Measures(neighbours=2, splits=2)
    samples, others = (collect(extractor, pictures(source(n, seed), 16, 8)) for n, seed in ((24, 0), (15, 1)))
    scores = compare(samples, others, extractor, measures, prefix="g")
    told = with_intervals(scores, samples, others, extractor, measures, 6, prefix="g")
    assert list(told) == list(scores)
    with_one = {"gFD-c", "KD-c", "precision-c", "recall-c", "density-c", "coverage-c"}
    assert {name for name, score in told.items() if score.interval} == with_one
    for name in with_one:
        low, high = told[name].interval
        assert low <= told[name].value <= high and told[name]._replace(interval=None) == scores[name]
    assert told == with_intervals(scores, samples, others, extractor, measures, 6, prefix="g")
    with pytest.raises(ValueError, match="24 samples cannot be put in 13 blocks of two or more"):
        with_intervals(scores, samples, others, extractor, measures, 13)
