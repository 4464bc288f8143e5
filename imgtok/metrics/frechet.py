"""How far apart two sets of pictures are in the features of a network: the Fréchet distance and the kernel distance.

FID and KID are these distances on the features of one network, Inception; on any other they are other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Moments(Protocol):
    """Mean d and covariance d d (divided by n - 1), float64."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def covariance(self) -> Tensor: ...


class Gaussian(NamedTuple):
    """Moments that come from elsewhere, such as a file of reference statistics."""

    mean: Tensor
    covariance: Tensor


class FeatureStatistics:
    """Count, mean and covariance of features that come batch by batch; float64 on the CPU, where it always exists.

    Deviations are taken from the running mean (Chan, Golub and LeVeque 1983), so no digits are lost to large means.
    The order of batches changes the result by rounding only.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64)
        """Sum of outer products of deviations from the mean."""

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Of features n d that are all there."""
        statistics = cls(features.shape[-1])
        statistics.update(features)
        return statistics

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Adds features b d. ValueError for another shape or for values that are not finite."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features are {tuple(features.shape)}, expected b x {len(self.mean)}")
        if not features.isfinite().all():
            raise ValueError("features contain infinite values or NaN; are the pictures finite?")
        if len(features):
            features = features.cpu().double()
            mean = features.mean(0)
            self.add(len(features), mean, (features - mean).T @ (features - mean))

    def merge(self, other: FeatureStatistics) -> None:
        """Adds what `other` has seen, as another process did."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"statistics of {len(other.mean)} and {len(self.mean)} features cannot be merged")
        self.add(other.count, other.mean, other.scatter)

    def add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if count:
            shift = mean - self.mean
            self.scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
            self.mean = self.mean + shift * (count / total)
            self.count = total

    def without(self, part: FeatureStatistics) -> FeatureStatistics:
        """Of the rows that `part`, some of these, lacks: `add` solved for what it was added to."""
        rest = FeatureStatistics(len(self.mean))
        rest.count = self.count - part.count
        if rest.count < 1:
            raise ValueError(f"{part.count} of {self.count} rows cannot be left out: none would stay")
        rest.mean = self.mean + (self.mean - part.mean) * (part.count / rest.count)
        shift = part.mean - rest.mean
        rest.scatter = self.scatter - part.scatter - torch.outer(shift, shift) * (rest.count * part.count / self.count)
        return rest

    @property
    def covariance(self) -> Tensor:
        """d d, unbiased. ValueError with fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows of features, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Wasserstein-2 distance of two Gaussians: |m - n|² + tr(A + B - 2 (A B)^½) (arXiv:1706.08500 eq. 6).

    tr (A B)^½ is the sum of the singular values of B^½ A^½, which stays exact where covariances are singular.
    The estimate from n pictures is biased upwards, much if n is not far above the number of features: compare only
    values of equal n. ValueError if the numbers of features differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of {len(a.mean)} and {len(b.mean)} features cannot be compared")
    first, second = a.covariance, b.covariance
    overlap = torch.linalg.svdvals(root(second).T @ root(first)).sum()
    return float((a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * overlap)


@torch.no_grad()
def frechet_distances_without(whole: FeatureStatistics, parts: Sequence[FeatureStatistics], fixed: Moments) -> Tensor:
    """The Fréchet distance to `fixed` of a set without each of its parts in turn: float64, one value a part.

    Faster than as many `frechet_distance`: with one root R of the fixed covariance B, tr (A B)^½ is the sum of the
    roots of the eigenvalues of Rᵀ A R. Where A is singular that loses half of the digits, which differences bear.
    """
    known, values = root(fixed.covariance), []
    for part in parts:
        rest = whole.without(part)
        covariance = rest.covariance
        overlap = torch.linalg.eigvalsh(known.T @ covariance @ known).clamp_min(0).sqrt().sum()
        apart = (rest.mean - fixed.mean).square().sum()
        values.append(apart + covariance.trace() + fixed.covariance.trace() - 2 * overlap)
    return torch.stack(values)


def root(covariance: Tensor) -> Tensor:
    """R of d r with R Rᵀ = covariance, without the directions in which it is zero."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


class KernelDistance(NamedTuple):
    value: float
    """Unbiased, so slightly negative at times for sets of one law."""
    error: float
    """Standard error over the drawing of both sets, to first order."""


@torch.no_grad()
def kernel_distance(a: Tensor, b: Tensor) -> KernelDistance:
    """Squared maximum mean discrepancy of features n d and m d, kernel (x·y / d + 1)³ (arXiv:1801.01401 eq. 4, §3).

    The unbiased estimate over all pairs, which is the mean of KID over all subsets of one size; papers often print it
    times 1000. ValueError for other shapes or fewer than two rows.
    """
    check_features(a, b)
    a, b = a.cpu().double(), b.cpu().double()
    within_a, within_b = kernel_means(a, a), kernel_means(b, b)
    across_a, across_b = kernel_means(a, b), kernel_means(b, a)
    value = within_a.mean() + within_b.mean() - 2 * across_a.mean()
    # How much each row moves the value (its Hájek projection): twice its kernel mean within less across.
    variance = sum(4 * (own - other).var() / len(own) for own, other in ((within_a, across_a), (within_b, across_b)))
    return KernelDistance(float(value), float(variance) ** 0.5)


@torch.no_grad()
def kernel_distances_without(a: Tensor, b: Tensor, part_of: Tensor, parts: int, rows: int = 1024) -> Tensor:
    """The kernel distance to b (m d) of a (n d) without each of its parts in turn: float64, one value a part.

    part_of: n, the number of each row's part. Kernels are summed by pairs of parts, so all this costs one distance.
    """
    check_features(a, b)
    a, b = a.cpu().double(), b.cpu().double()
    member = torch.nn.functional.one_hot(part_of, parts).double()  # n parts
    sums = torch.cat([cubic(part @ a.T, a.shape[1]) @ member for part in a.split(rows)])  # n parts
    pairs = member.T @ sums - torch.diag(member.T @ cubic(a.square().sum(1), a.shape[1]))
    left = len(a) - member.sum(0)
    within = (pairs.sum() - pairs.sum(0) - pairs.sum(1) + pairs.diag()) / (left * (left - 1))
    across = kernel_means(a, b)
    return within + kernel_means(b, b).mean() - 2 * (across.sum() - member.T @ across) / left


@torch.no_grad()
def subset_kernel_distances(a: Tensor, b: Tensor, subsets: int, size: int, generator: torch.Generator) -> Tensor:
    """The kernel distance of `subsets` pairs of random subsets, `size` rows each: float64, one value a pair.

    Papers report their mean and standard deviation, mostly of 100 subsets of 1000. ValueError for a size that is not
    from 2 to the number of rows.
    """
    check_features(a, b)
    if not 2 <= size <= min(len(a), len(b)) or subsets < 1:
        raise ValueError(f"{subsets} subsets of {size} cannot be drawn from {len(a)} and {len(b)} rows")

    def drawn(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]]

    a, b = a.cpu(), b.cpu()
    return torch.tensor([kernel_distance(drawn(a), drawn(b)).value for _ in range(subsets)], dtype=torch.float64)


def kernel_means(a: Tensor, b: Tensor, rows: int = 1024) -> Tensor:
    """For each row of a (n d) the mean of its kernel with the rows of b; with the others, if b is a."""
    sums, own = [], 0.0
    for part in a.split(rows):
        sums.append(cubic(part @ b.T, a.shape[1]).sum(1))
    total = torch.cat(sums)
    if b is a:
        own = 1.0
        total = total - cubic(a.square().sum(1), a.shape[1])
    return total / (len(b) - own)


def cubic(products: Tensor, dimension: int) -> Tensor:
    return (products / dimension + 1) ** 3


def check_features(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features are {tuple(a.shape)} and {tuple(b.shape)}, expected n x d and m x d, n, m >= 2")
