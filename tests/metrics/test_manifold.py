import math

import pytest
import torch
from torch import Tensor

from imgtok.metrics.manifold import inception_score, neighbours


def points(*values: float) -> Tensor:
    """On a line."""
    return torch.tensor(values, dtype=torch.float32)[:, None]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(samples: Tensor, real: Tensor, k: int) -> tuple[float, float, float, float]:
    """The definitions, point by point."""

    def reach(points: Tensor, i: int) -> float:
        return sorted(float((points[i] - points[j]).norm()) for j in range(len(points)) if j != i)[k - 1]

    def lies_in(point: Tensor, ball: Tensor, radius: float) -> bool:
        return float((point - ball).norm()) <= radius

    of_real, of_samples = ([reach(s, i) for i in range(len(s))] for s in (real, samples))
    table = [[lies_in(s, r, of_real[i]) for i, r in enumerate(real)] for s in samples]
    recalled = [any(lies_in(r, s, of_samples[j]) for j, s in enumerate(samples)) for r in real]
    covered = [any(row[i] for row in table) for i in range(len(real))]
    n, m = len(samples), len(real)
    return sum(map(any, table)) / n, sum(recalled) / m, sum(map(sum, table)) / (k * n), sum(covered) / m


def test_points_by_hand() -> None:
    """Real balls (k = 1): 0 and 1 reach 1, 3 reaches 2, 10 reaches 7. Samples 0.5 and 2 reach 1.5, 20 reaches 18.

    0.5 lies in the balls of 0, 1 (not 3: 2.5 > 2); 2 in those of 1 and 3; 20 in none. 10 has no sample within 7. The
    balls of the samples cover [-1, 3.5] and [2, 38], which is all real points.
    """
    found = neighbours(points(0.5, 2, 20), points(0, 1, 3, 10), k=1)
    assert found == pytest.approx((2 / 3, 1.0, 4 / 3, 3 / 4))


def test_a_lost_mode_lowers_recall_and_coverage_only() -> None:
    real = torch.cat([normal(60, 3), normal(60, 3, seed=1) + 100])
    found = neighbours(normal(60, 3, seed=2), real)
    assert found.precision > 0.8 and found.density > 0.6
    assert found.recall < 0.51 and found.coverage < 0.51


@pytest.mark.parametrize("k", [1, 3, 5])
def test_they_equal_their_definitions_in_blocks_of_any_size(k: int) -> None:
    samples, real = normal(23, 4) * 1.3, normal(19, 4, seed=1)
    expected = naive(samples, real, k)
    for rows in (5, 512):
        assert neighbours(samples, real, k, rows) == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_a_set_against_itself_is_perfect_even_with_duplicates() -> None:
    real = normal(20, 3)
    real[5] = real[6]
    found = neighbours(real, real, k=3)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)


def test_samples_of_the_real_law_have_density_one() -> None:
    """The expectation over both sets; 2000 points, and a deviation of about 0.03 over seeds."""
    assert neighbours(normal(2000, 2), normal(2000, 2, seed=1), k=5).density == pytest.approx(1, abs=0.12)


def test_near_points_far_from_the_origin_keep_their_order() -> None:
    samples, real = normal(23, 4), normal(19, 4, seed=1)
    assert neighbours(samples + 1000, real + 1000) == pytest.approx(neighbours(samples, real))


def test_too_many_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="from 1 to below 3 and 4, the numbers of pictures, got 3"):
        neighbours(points(1, 2, 3), points(1, 2, 3, 4))


def test_inception_score_of_sure_and_even_classes_is_their_number() -> None:
    sure = torch.eye(7).repeat(6, 1) * 200
    assert inception_score(sure, splits=3).mean == pytest.approx(7)
    assert inception_score(sure, splits=3).deviation == pytest.approx(0, abs=1e-9)


def test_inception_score_of_equal_pictures_is_one() -> None:
    assert inception_score(normal(1, 5).repeat(8, 1), 2) == pytest.approx((1, 0))


def test_inception_score_equals_its_formula() -> None:
    logits = normal(30, 6)
    values = []
    for part in logits.softmax(1).split(15):
        divergences = [sum(p * math.log(p / q) for p, q in zip(row, part.mean(0), strict=True)) for row in part]
        values.append(math.exp(sum(divergences) / 15))
    mean = sum(values) / 2
    assert inception_score(logits, splits=2) == pytest.approx((mean, abs(values[0] - mean)))


def test_sorted_pictures_need_shuffling() -> None:
    by_class = torch.eye(4).repeat_interleave(50, 0) * 200
    assert inception_score(by_class, splits=4).mean == pytest.approx(1)
    assert inception_score(by_class, splits=4, generator=torch.Generator().manual_seed(0)).mean > 3.7


def test_more_splits_than_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 9\) cannot be cut into 5 splits"):
        inception_score(torch.zeros(4, 9), splits=5)
