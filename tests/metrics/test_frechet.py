import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from imgtok.metrics.frechet import (
    FeatureStatistics,
    Gaussian,
    frechet_distance,
    kernel_distance,
    subset_kernel_distances,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def mixed(rows: int, dimension: int, seed: int) -> Tensor:
    """Features with correlations, unequal scales and a mean far from zero."""
    return normal(rows, dimension, seed=seed) @ normal(dimension, dimension, seed=seed + 100) + 50 * seed


def by_scipy(a: Tensor, b: Tensor) -> float:
    """The formula as the field's scripts have it."""
    first, second = a.numpy(), b.numpy()
    product = scipy.linalg.sqrtm(np.cov(first, rowvar=False) @ np.cov(second, rowvar=False)).real
    spread = np.cov(first, rowvar=False) + np.cov(second, rowvar=False) - 2 * product
    return float(np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(spread))


# Statistics


def test_statistics_are_numpys_however_the_rows_come() -> None:
    rows = mixed(300, 7, seed=1)
    streamed = FeatureStatistics(7)
    for part in rows.split([1, 0, 2, 97, 200]):
        streamed.update(part)
    assert streamed.count == 300
    np.testing.assert_allclose(streamed.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows.numpy(), rowvar=False), rtol=1e-10, atol=1e-10)


def test_merged_statistics_are_those_of_all_rows() -> None:
    rows = mixed(90, 5, seed=2)
    first, second, none = FeatureStatistics.of(rows[:31]), FeatureStatistics.of(rows[31:]), FeatureStatistics(5)
    first.merge(none)
    none.merge(first)
    none.merge(second)
    assert none.count == 90
    np.testing.assert_allclose(none.covariance, np.cov(rows.numpy(), rowvar=False), rtol=1e-10, atol=1e-10)


def test_a_mean_of_a_million_costs_no_digits_of_the_covariance() -> None:
    rows = normal(1000, 3)
    far = FeatureStatistics(3)
    for part in (rows + 1e6).split(100):
        far.update(part)
    np.testing.assert_allclose(far.covariance, np.cov(rows.numpy(), rowvar=False), atol=1e-8)


def test_statistics_refuse_other_shapes_and_what_is_not_finite() -> None:
    statistics = FeatureStatistics(4)
    with pytest.raises(ValueError, match=r"\(2, 5\), expected b x 4"):
        statistics.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="NaN"):
        statistics.update(torch.full((2, 4), torch.nan))
    with pytest.raises(ValueError, match="at least 2 rows"):
        _ = statistics.covariance
    with pytest.raises(ValueError, match="3 and 4 features cannot be merged"):
        statistics.merge(FeatureStatistics(3))


# Fréchet distance


def test_frechet_distance_equals_scipys_square_root() -> None:
    a, b = mixed(200, 24, seed=1), mixed(150, 24, seed=2)
    distance = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert distance == pytest.approx(by_scipy(a, b), rel=1e-9)


def test_in_one_dimension_it_is_the_difference_of_means_and_deviations() -> None:
    a = Gaussian(torch.tensor([1.0]).double(), torch.tensor([[9.0]]).double())
    b = Gaussian(torch.tensor([-1.0]).double(), torch.tensor([[4.0]]).double())
    assert frechet_distance(a, b) == pytest.approx(2**2 + (3 - 2) ** 2)


def test_with_diagonal_covariances_it_is_the_sum_over_dimensions() -> None:
    variances = normal(2, 6).exp()
    means = normal(2, 6, seed=1)
    a, b = (Gaussian(mean, variance.diag()) for mean, variance in zip(means, variances, strict=True))
    expected = (means[0] - means[1]).square().sum() + (variances[0].sqrt() - variances[1].sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)


def test_it_is_symmetric_zero_to_itself_and_blind_to_rotations() -> None:
    a, b = mixed(100, 12, seed=1), mixed(100, 12, seed=3)
    turn = torch.linalg.qr(normal(12, 12, seed=5)).Q
    first, second = FeatureStatistics.of(a), FeatureStatistics.of(b)
    distance = frechet_distance(first, second)
    assert frechet_distance(second, first) == pytest.approx(distance, rel=1e-10)
    turned = frechet_distance(FeatureStatistics.of(a @ turn), FeatureStatistics.of(b @ turn))
    assert turned == pytest.approx(distance, rel=1e-9)
    assert abs(frechet_distance(first, first)) < 1e-9 * float(first.covariance.trace())


def test_singular_covariances_keep_their_digits() -> None:
    """Fewer rows than features: in the plane of the rows it is a small, regular problem."""
    small_a, small_b = mixed(20, 4, seed=1), mixed(25, 4, seed=2)
    plane = torch.linalg.qr(normal(64, 4, seed=7)).Q
    expected = by_scipy(small_a, small_b)
    a, b = FeatureStatistics.of(small_a @ plane.T), FeatureStatistics.of(small_b @ plane.T)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    constant = FeatureStatistics.of(torch.ones(5, 64))
    assert frechet_distance(constant, constant) == 0


def test_unlike_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 features"):
        frechet_distance(FeatureStatistics.of(normal(9, 3)), FeatureStatistics.of(normal(9, 4)))


# Kernel distance


def naive_kernel_distance(a: Tensor, b: Tensor) -> float:
    """Over all pairs, in Python."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    own = [
        sum(kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    return sum(own) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


def test_kernel_distance_equals_the_sum_over_pairs() -> None:
    a, b = normal(7, 3), normal(5, 3, seed=1) + 0.5
    assert kernel_distance(a, b).value == pytest.approx(naive_kernel_distance(a, b), rel=1e-12)


def test_kernel_distance_of_known_laws_is_its_closed_form_within_its_error() -> None:
    """In one dimension with k = (xy + 1)³, N(0, 1) and N(t, 1): the squared differences of the first three moments,
    weighted 3, 3, 1, are 3 t² + 3 t⁴ + (t³ + 3t)²."""
    t = 0.5
    expected = 3 * t**2 + 3 * t**4 + (t**3 + 3 * t) ** 2
    distance = kernel_distance(normal(4000, 1), normal(4000, 1, seed=1) + t)
    assert abs(distance.value - expected) < 4 * distance.error < expected


def test_the_kernel_distance_is_unbiased_and_its_error_is_its_spread() -> None:
    """200 pairs of sets: the mean is that of the laws within 4 standard errors, the mean error within 25 % (the
    deviation of 200 values is known to 5 %, and the error is first order in the 60 rows)."""
    t = 0.5
    expected = 3 * t**2 + 3 * t**4 + (t**3 + 3 * t) ** 2
    pairs = [kernel_distance(normal(60, 1, seed=2 * i), normal(60, 1, seed=2 * i + 1) + t) for i in range(200)]
    values = torch.tensor([pair.value for pair in pairs])
    errors = torch.tensor([pair.error for pair in pairs])
    assert abs(values.mean() - expected) < 4 * values.std() / 200**0.5
    assert errors.square().mean().sqrt() == pytest.approx(float(values.std()), rel=0.25)


def test_subsets_are_drawn_without_repetition_and_by_the_generator_alone() -> None:
    a, b = normal(30, 4), normal(20, 4, seed=1)
    whole = subset_kernel_distances(a[:20], b, 3, 20, seeded())
    assert torch.allclose(whole, torch.full_like(whole, kernel_distance(a[:20], b).value))
    drawn = subset_kernel_distances(a, b, 400, 10, seeded(1))
    assert torch.equal(drawn, subset_kernel_distances(a, b, 400, 10, seeded(1)))
    assert abs(drawn.mean() - kernel_distance(a, b).value) < 4 * drawn.std() / 20


def test_what_has_no_kernel_distance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(5, 3\)"):
        kernel_distance(normal(1, 3), normal(5, 3))
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(5, 3\)"):
        kernel_distance(normal(4, 2), normal(5, 3))
    with pytest.raises(ValueError, match="subsets of 6 cannot be drawn from 9 and 5 rows"):
        subset_kernel_distances(normal(9, 3), normal(5, 3), 2, 6, seeded())
