"""How good a set of pictures is beside a reference set: what is kept of each, and the scores of the two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from imgtok.data import ImageSource, to_float, to_uint8
from imgtok.metrics.features import FeatureExtractor
from imgtok.metrics.frechet import FeatureStatistics, Moments, frechet_distance, kernel_distance
from imgtok.metrics.manifold import inception_score, neighbours
from imgtok.tokencache import readable

Rounding = Literal["round", "truncate", "none"]
ROUNDINGS: tuple[Rounding, ...] = ("round", "truncate", "none")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The numbers in the definitions of scores."""

    neighbours: int = 3
    """k of precision, recall, density and coverage, which need more pictures than that."""
    splits: int = 10
    """Of the inception score, at most one for each two pictures."""
    shuffle_seed: int | None = 2020
    """Shuffles the pictures before they are split; None: consecutive splits, as ADM takes them."""


class Score(NamedTuple):
    value: float
    error: float | None = None
    error_of: str = ""
    """What the error is: a standard error, or a deviation over splits."""
    floor: float | None = None
    """The same number for real pictures in place of the samples."""


@dataclass(frozen=True)
class FeatureSet:
    """What is kept of a set of pictures. None: not known, for statistics that come from a file."""

    count: int
    moments: Moments
    pooled: Tensor | None = None
    """n d"""
    logits: Tensor | None = None
    """n classes"""
    spatial: Moments | None = None


class Collector:
    """Takes pictures batch by batch and keeps their features; the pixels are gone after each batch."""

    def __init__(self, extractor: FeatureExtractor, moments_only: bool = False) -> None:
        """moments_only: for Fréchet distances alone; then memory does not grow with the number of pictures."""
        self.extractor, self.moments_only = extractor, moments_only
        self.device = next(extractor.parameters()).device
        self.batch_size = 8 if self.device.type == "cpu" else 64  # a CPU's caches hold the activations of a few
        self.pooled, self.logits = list[Tensor](), list[Tensor]()
        self.moments = FeatureStatistics(extractor.dimension)
        self.spatial = FeatureStatistics(extractor.spatial_dimension) if extractor.spatial_dimension else None

    def add(self, images: Tensor) -> None:
        """b 3 h w, float in [-1, 1]."""
        for part in images.split(self.batch_size):
            features = self.extractor.features(part.to(self.device))
            self.moments.update(features.pooled)
            if not self.moments_only:
                self.pooled.append(features.pooled.cpu())
            if not self.moments_only and features.logits is not None:
                self.logits.append(features.logits.cpu())
            if self.spatial is not None and features.spatial is not None:
                self.spatial.update(features.spatial)

    def collected(self) -> FeatureSet:
        """ValueError if there are fewer than two pictures."""
        count = self.moments.count
        if count < 2:
            raise ValueError(f"at least 2 pictures are needed to compare sets, got {count}")
        pooled, logits = (torch.cat(parts) if parts else None for parts in (self.pooled, self.logits))
        return FeatureSet(count, self.moments, pooled, logits, self.spatial)


def collect(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> FeatureSet:
    """Of batches b 3 h w, float in [-1, 1]."""
    collector = Collector(extractor)
    for batch in batches:
        collector.add(batch)
    return collector.collected()


def compare(
    samples: FeatureSet, reference: FeatureSet, extractor: FeatureExtractor, measures: Measures, prefix: str = ""
) -> dict[str, Score]:
    """Every score that the two sets allow, under its honest name: FID only where the features are Inception's.

    `prefix` goes before the Fréchet distance's: r of reconstructions, g of generated pictures.
    """
    naming = extractor.naming
    scores = {f"{prefix}{naming.frechet}": Score(frechet_distance(samples.moments, reference.moments))}
    if samples.spatial is not None and reference.spatial is not None:
        scores[f"s{naming.frechet}"] = Score(frechet_distance(samples.spatial, reference.spatial))
    if samples.logits is not None:
        shuffle = None if measures.shuffle_seed is None else torch.Generator().manual_seed(measures.shuffle_seed)
        splits = min(measures.splits, samples.count // 2)
        score = inception_score(samples.logits, splits, shuffle)
        scores[naming.score] = Score(score.mean, score.deviation, f"deviation over {splits} splits")
    if samples.pooled is not None and reference.pooled is not None:
        kernel = kernel_distance(samples.pooled, reference.pooled)
        scores[naming.kernel] = Score(kernel.value, kernel.error, "standard error")
        if measures.neighbours < min(samples.count, reference.count):
            found = neighbours(samples.pooled, reference.pooled, measures.neighbours)
            scores |= {f"{name}{naming.neighbours}": Score(value) for name, value in found._asdict().items()}
    return scores


def with_floors(scores: Mapping[str, Score], floors: Mapping[str, Score]) -> dict[str, Score]:
    """Each score beside that of real pictures."""
    return {
        name: score._replace(floor=floors[name].value if name in floors else None) for name, score in scores.items()
    }


def rounded(images: Tensor, rule: Rounding) -> Tensor:
    """Float pictures in [-1, 1] as they would be after a trip through 8 bits, back in [-1, 1].

    `round`: to the nearest level, as a PNG file of ours and as LlamaGen's clamp(127.5 x + 128). `truncate`: to the
    level below, as TiTok and IBQ do: half a level darker on average. `none`: clamped only, as pytorch-fid's users do.
    """
    if rule == "round":
        return to_float(to_uint8(images))
    if rule == "truncate":
        levels = (images.float().clamp(-1, 1) + 1) * 127.5
        return (levels + 1e-4).floor() / 127.5 - 1  # whole levels stay what they are, whatever float32 makes of them
    if rule == "none":
        return images.float().clamp(-1, 1)
    raise ValueError(f"rounding {rule!r} is unknown; use one of {', '.join(ROUNDINGS)}")


def pictures(source: ImageSource, size: int, batch_size: int) -> Iterator[Tensor]:
    """The readable pictures of a source, centre-cropped: float b 3 s s in [-1, 1]."""
    for start in range(0, len(source), batch_size):
        images, kept = readable(source, range(start, min(start + batch_size, len(source))), size)
        if kept:
            yield to_float(images)


def spread(source: ImageSource, count: int) -> ImageSource:
    """`count` pictures evenly spread over a source, or all of them if there are no more."""
    if count >= len(source):
        return source
    return source.select(torch.arange(count) * len(source) // count)


class Average:
    """Mean and standard error of numbers that come batch by batch, as float64."""

    def __init__(self) -> None:
        self.values = list[Tensor]()

    def add(self, values: Tensor) -> None:
        self.values.append(values.detach().cpu().double())

    def score(self) -> Score:
        values = torch.cat(self.values)
        error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
        return Score(float(values.mean()), error, "standard error")


def fingerprint_of(extractor: FeatureExtractor) -> str:
    """Of an extractor's weights: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(extractor.state_dict().items()):
        digest.update(name.encode())
        digest.update(cast(Tensor, value).cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def described(extractor: FeatureExtractor) -> dict[str, object]:
    """What a number must name of its extractor."""
    return {
        "name": extractor.name,
        "weights": fingerprint_of(extractor),
        "resize": extractor.resize,
        "size": extractor.size,
        "dimension": extractor.dimension,
    }
