"""How far scores would move with other samples: a jackknife over blocks of them, the reference held fixed."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import torch
from torch import Tensor

from imgtok.metrics.features import FeatureExtractor
from imgtok.metrics.frechet import FeatureStatistics, frechet_distances_without, kernel_distances_without
from imgtok.metrics.manifold import Neighbours, neighbours_without
from imgtok.sample.evaluate import FeatureSet, Interval, Measures, Score

LEVEL = 0.9


def with_intervals(
    scores: Mapping[str, Score],
    samples: FeatureSet,
    reference: FeatureSet,
    extractor: FeatureExtractor,
    measures: Measures,
    blocks: int,
    prefix: str = "",
    seed: int = 0,
) -> dict[str, Score]:
    """Scores of `compare` with 90 % intervals: of Fréchet and kernel distance, precision, recall, density, coverage.

    They are about what a set of as many samples scores on average, which for a Fréchet distance is more than what an
    endless set would. Samples are put in blocks at random. ValueError for fewer than two pictures a block.
    """
    if samples.pooled is None or not 2 <= blocks <= samples.count // 2:
        raise ValueError(f"{samples.count} samples cannot be put in {blocks} blocks of two or more")
    block_of = torch.randperm(samples.count, generator=torch.Generator().manual_seed(seed)) % blocks
    left_out = without_blocks(samples, reference, extractor, measures, block_of, blocks, prefix)
    return {
        name: score._replace(interval=interval(score.value, left_out[name])) if name in left_out else score
        for name, score in scores.items()
    }


def without_blocks(
    samples: FeatureSet,
    reference: FeatureSet,
    extractor: FeatureExtractor,
    measures: Measures,
    block_of: Tensor,
    blocks: int,
    prefix: str,
) -> dict[str, Tensor]:
    """Each score without each block."""
    assert samples.pooled is not None
    naming, pooled = extractor.naming, samples.pooled
    parts = [FeatureStatistics.of(pooled[block_of == block]) for block in range(blocks)]
    whole = FeatureStatistics(pooled.shape[1])
    for part in parts:
        whole.merge(part)
    found = {f"{prefix}{naming.frechet}": frechet_distances_without(whole, parts, reference.moments)}
    if reference.pooled is not None:
        found[naming.kernel] = kernel_distances_without(pooled, reference.pooled, block_of, blocks)
        stay = samples.count - int(block_of.bincount().max())
        if measures.neighbours < min(stay, reference.count):
            near = neighbours_without(pooled, reference.pooled, measures.neighbours, block_of, blocks)
            for name in Neighbours._fields:
                found[f"{name}{naming.neighbours}"] = torch.tensor([getattr(each, name) for each in near]).double()
    return found


def interval(value: float, without: Tensor, level: float = LEVEL) -> Interval:
    """value ± t s, where s² = (B - 1) / B Σ (value without block b - their mean)², and t has B - 1 degrees of freedom.

    By the inequality of Efron and Stein (1981) s² is on average not below the variance of any score of independent
    samples that does not ask for their order, be it as rough as recall.
    """
    blocks = len(without)
    error = float(((blocks - 1) / blocks * (without - without.mean()).square().sum()).sqrt())
    reach = student_quantile((1 + level) / 2, blocks - 1) * error
    return Interval(value - reach, value + reach)


def student_quantile(share: float, freedom: int) -> float:
    """Of Student's t, to three digits from 4 degrees of freedom on (Cornish and Fisher's expansion)."""
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
