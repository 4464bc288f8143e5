"""How good a set of pictures is beside a reference set: what is kept of each, and the scores of the two."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from imgtok.data import ImageSource, to_float, to_uint8
from imgtok.metrics.features import FeatureExtractor, Features
from imgtok.metrics.frechet import FeatureStatistics, Moments, frechet_distance, kernel_distance
from imgtok.metrics.manifold import inception_score, neighbours
from imgtok.tokencache import readable

Rounding = Literal["round", "truncate", "none"]
ROUNDINGS: tuple[Rounding, ...] = ("round", "truncate", "none")
BLOCK = 256  # rows of features whose moments are taken at once


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The numbers in the definitions of scores."""

    neighbours: int = 3
    """k of precision, recall, density and coverage, which need more pictures than that."""
    splits: int = 10
    """Of the inception score, at most one for each two pictures."""
    shuffle_seed: int | None = 2020
    """Shuffles the pictures before they are split; None: consecutive splits, as ADM takes them."""


class Interval(NamedTuple):
    low: float
    high: float


class Score(NamedTuple):
    value: float
    error: float | None = None
    error_of: str = ""
    """What the error is: a standard error, or a deviation over splits."""
    floor: float | None = None
    """The same number for real pictures in place of the samples."""
    interval: Interval | None = None
    """Of 90 %, for other samples and the same reference."""


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


class BlockMoments:
    """Moments of rows that come in any parts, taken block by block: the parts change no bit, and a block costs little
    more than a row, since the sums over a thousand by a thousand features are the cost.
    """

    def __init__(self, dimension: int) -> None:
        self.statistics = FeatureStatistics(dimension)
        self.waiting = torch.zeros(0, dimension)

    def add(self, rows: Tensor) -> None:
        """b d"""
        rows = torch.cat([self.waiting, rows.cpu()])
        whole = len(rows) - len(rows) % BLOCK
        for block in rows[:whole].split(BLOCK):
            self.statistics.update(block)
        self.waiting = rows[whole:]

    def finished(self) -> FeatureStatistics:
        """Of all rows so far; no others may follow."""
        self.statistics.update(self.waiting)
        self.waiting = self.waiting[:0]
        return self.statistics


def joined(parts: Sequence[Features]) -> Features:
    """Rows one after the other, on the CPU."""

    def all_of(rows: Sequence[Tensor | None]) -> Tensor | None:
        there = [each.cpu() for each in rows if each is not None]
        return torch.cat(there) if there else None

    pooled, logits, spatial = (all_of(rows) for rows in zip(*parts, strict=True))
    assert pooled is not None
    return Features(pooled, logits, spatial)


class Collector:
    """Takes pictures batch by batch and keeps their features; the pixels are gone after each batch."""

    def __init__(self, extractor: FeatureExtractor, moments_only: bool = False) -> None:
        """moments_only: for Fréchet distances alone; then memory does not grow with the number of pictures."""
        self.extractor, self.moments_only = extractor, moments_only
        self.device = next(extractor.parameters()).device
        self.batch_size = 8 if self.device.type == "cpu" else 64  # a CPU's caches hold the activations of a few
        self.pooled, self.logits = list[Tensor](), list[Tensor]()
        self.moments = BlockMoments(extractor.dimension)
        self.spatial = BlockMoments(extractor.spatial_dimension) if extractor.spatial_dimension else None

    def add(self, images: Tensor) -> Features:
        """b 3 h w, float in [-1, 1]; returns what was seen in them."""
        parts = [self.extractor.features(part.to(self.device)) for part in images.split(self.batch_size)]
        features = joined(parts)
        self.take(features)
        return features

    def take(self, features: Features) -> None:
        """Of pictures that were seen before or elsewhere."""
        self.moments.add(features.pooled)
        if not self.moments_only:
            self.pooled.append(features.pooled.cpu())
        if not self.moments_only and features.logits is not None:
            self.logits.append(features.logits.cpu())
        if self.spatial is not None and features.spatial is not None:
            self.spatial.add(features.spatial)

    def collected(self) -> FeatureSet:
        """ValueError if there are fewer than two pictures."""
        moments = self.moments.finished()
        if moments.count < 2:
            raise ValueError(f"at least 2 pictures are needed to compare sets, got {moments.count}")
        pooled, logits = (torch.cat(parts) if parts else None for parts in (self.pooled, self.logits))
        spatial = None if self.spatial is None else self.spatial.finished()
        return FeatureSet(moments.count, moments, pooled, logits, spatial)


def collect(extractor: FeatureExtractor, batches: Iterable[Tensor], processes: Processes | None = None) -> FeatureSet:
    """Of batches b 3 h w, float in [-1, 1]; with `processes`, of those of all of them."""
    collector = Collector(extractor)
    for batch in batches:
        collector.add(batch)
    return collector.collected() if processes is None else processes.gathered(collector)


class Processes:
    """Those that accelerate launched, each with a share of the pictures; or this one alone."""

    def __init__(self, device: torch.device) -> None:
        """`device`: what was asked for; each of several processes has one of its own of that kind."""
        self.index, self.count, self.device, self.state = 0, 1, device, None
        if launched() > 1:
            from accelerate import PartialState

            self.state = PartialState(cpu=device.type == "cpu")
            self.index, self.count = self.state.process_index, self.state.num_processes
            self.device = self.state.device

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def share(self, total: int) -> range:
        """The numbers of this process' pictures; the processes' shares follow each other."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def agree(self, here: bool) -> bool:
        """True where all processes say so."""
        return bool(self.rows(torch.tensor([here])).all())

    def rows(self, own: Tensor) -> Tensor:
        """The rows of all processes in order, n ..., on the CPU; how many each has need not be the same."""
        if self.state is None:
            return own
        from accelerate.utils import gather

        counts = gather(torch.tensor([len(own)], device=self.device)).tolist()
        padded = own.new_zeros(max(counts), *own.shape[1:], device=self.device)
        padded[: len(own)] = own.to(self.device)
        parts = gather(padded).cpu().split(max(counts))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gathered(self, collector: Collector) -> FeatureSet:
        """What the collectors of all processes have, in order of the processes. ValueError for fewer than two pictures.

        Moments of the pooled features are taken of them all, so the number of processes does not change them.
        """
        if self.state is None:
            return collector.collected()
        extractor, whole = collector.extractor, Collector(collector.extractor)
        pooled = self.rows(torch.cat([torch.zeros(0, extractor.dimension), *collector.pooled]))
        classes = int(self.rows(torch.tensor([collector.logits[0].shape[1] if collector.logits else 0])).max())
        logits = self.rows(torch.cat([torch.zeros(0, classes), *collector.logits])) if classes else None
        whole.take(Features(pooled, logits))
        if whole.spatial is not None and collector.spatial is not None:
            own = collector.spatial.finished()
            counts = self.rows(torch.tensor([own.count])).tolist()
            for count, mean, scatter in zip(
                counts, *(self.rows(x[None]) for x in (own.mean, own.scatter)), strict=True
            ):
                whole.spatial.statistics.add(count, mean, scatter)
        return whole.collected()

    def close(self) -> None:
        if self.state is not None:
            self.state.destroy_process_group()


def launched() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first of them, before they know each other."""
    return os.environ.get("RANK", "0") == "0"


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
