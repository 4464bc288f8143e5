"""Fidelity and variety of generated pictures apart: by neighbours among features, and by a classifier."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imgtok.metrics.frechet import check_features


class Neighbours(NamedTuple):
    """Shares in [0, 1]; density may be above 1."""

    precision: float
    """Of the samples, how many lie in the ball of a real picture."""
    recall: float
    """Of the real pictures, how many lie in the ball of a sample."""
    density: float
    """In how many balls of real pictures a sample lies, over k: 1 for samples of the real law."""
    coverage: float
    """Of the real pictures, how many have a sample in their ball."""


@torch.no_grad()
def neighbours(samples: Tensor, real: Tensor, k: int = 3, rows: int = 512) -> Neighbours:
    """Of features n d and m d: precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797).

    The ball of a point reaches to its k-th nearest neighbour in its own set, which belongs to it. Recall, density and
    coverage change with n and m: compare only values of equal numbers. ADM takes k = 3, all samples and 10,000 real
    pictures. ValueError for other shapes and for k that is not below both numbers.
    """
    check_features(samples, real)
    if not 1 <= k < min(len(samples), len(real)):
        raise ValueError(f"k must be from 1 to below {len(samples)} and {len(real)}, the numbers of pictures, got {k}")
    samples, real = samples.cpu().double(), real.cpu().double()
    sample_radii, real_radii = radii(samples, k, rows), radii(real, k, rows)
    inside, balls = 0, 0
    recalled = covered = torch.zeros(len(real), dtype=torch.bool)
    for part, reach in zip(samples.split(rows), sample_radii.split(rows), strict=True):
        distances = squared_distances(part, real)
        within = distances <= real_radii
        inside += int(within.any(1).sum())
        balls += int(within.sum())
        covered = covered | within.any(0)
        recalled = recalled | (distances <= reach[:, None]).any(0)
    n, m = len(samples), len(real)
    return Neighbours(inside / n, int(recalled.sum()) / m, balls / (k * n), int(covered.sum()) / m)


@torch.no_grad()
def neighbours_without(
    samples: Tensor, real: Tensor, k: int, part_of: Tensor, parts: int, rows: int = 512
) -> list[Neighbours]:
    """`neighbours` of the samples without each of their parts in turn; part_of: n, the number of each sample's part.

    Distances are computed once for all parts. ValueError as `neighbours`, for what stays.
    """
    check_features(samples, real)
    left = len(samples) - torch.bincount(part_of, minlength=parts)
    if not 1 <= k < min(int(left.min()), len(real)):
        raise ValueError(f"k must be from 1 to below {int(left.min())} and {len(real)}, pictures that stay, got {k}")
    samples, real = samples.cpu().double(), real.cpu().double()
    real_radii, reach = radii(real, k, rows), radii_without(samples, k, part_of, parts, rows)
    inside, balls = (torch.zeros(parts, dtype=torch.float64) for _ in range(2))
    covers, recalled = (torch.zeros(parts, len(real), dtype=torch.bool) for _ in range(2))
    for chunk, own, place in zip(samples.split(rows), reach.split(rows), part_of.split(rows), strict=True):
        distances = squared_distances(chunk, real)
        within = distances <= real_radii
        for part in range(parts):
            here = place == part
            inside[part] += within[here].any(1).sum()
            balls[part] += within[here].sum()
            covers[part] |= within[here].any(0)
            recalled[part] |= (distances <= own[:, part, None])[~here].any(0)
    covered = covers.sum(0) - covers.long() > 0
    return [
        Neighbours(
            float((inside.sum() - inside[part]) / left[part]),
            float(recalled[part].double().mean()),
            float((balls.sum() - balls[part]) / (k * left[part])),
            float(covered[part].double().mean()),
        )
        for part in range(parts)
    ]


def radii_without(features: Tensor, k: int, part_of: Tensor, parts: int, rows: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row outside of each part: n parts."""
    found = []
    for start in range(0, len(features), rows):
        distances = squared_distances(features[start : start + rows], features)
        place = torch.arange(len(distances))
        distances[place, start + place] = torch.inf
        outside = [distances.masked_fill(part_of == part, torch.inf).kthvalue(k).values for part in range(parts)]
        found.append(torch.stack(outside, 1))
    return torch.cat(found)


def radii(features: Tensor, k: int, rows: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row."""
    found = []
    for start in range(0, len(features), rows):
        distances = squared_distances(features[start : start + rows], features)
        place = torch.arange(len(distances))
        distances[place, start + place] = torch.inf  # by index: another row may be equal
        found.append(distances.kthvalue(k).values)
    return torch.cat(found)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """n d and m d -> n m, in float64 so that near neighbours far from the origin keep their order."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


class InceptionScore(NamedTuple):
    mean: float
    deviation: float
    """Over the splits."""


@torch.no_grad()
def inception_score(logits: Tensor, splits: int = 10, generator: torch.Generator | None = None) -> InceptionScore:
    """exp of the mean divergence of a picture's classes from those of its split (arXiv:1606.03498), of logits n c.

    Splits are consecutive, so pictures sorted by class give wrong values; with `generator` rows are shuffled first.
    ADM takes 10 splits of 5,000 in order, torch-fidelity 10 shuffled ones, TiTok one. The deviation over splits is
    that of numpy (divided by their number). ValueError for fewer rows than splits.
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits {tuple(logits.shape)} cannot be cut into {splits} splits")
    logits = logits.cpu().double()
    if generator is not None:
        logits = logits[torch.randperm(len(logits), generator=generator)]
    values = torch.stack([split_score(part.log_softmax(1)) for part in logits.tensor_split(splits)])
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))


def split_score(log_probs: Tensor) -> Tensor:
    probs = log_probs.exp()
    mean = probs.mean(0, keepdim=True)
    return ((probs * log_probs).sum(1) - torch.special.xlogy(mean, mean).sum()).mean().exp()
