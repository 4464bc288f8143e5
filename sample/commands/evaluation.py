"""What the evaluate commands share: extractors, reference sets and their floors, conditions, results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from imgtok import __version__
from imgtok.atomic import write_text
from imgtok.data import ImageSource, read_folder, to_float
from imgtok.data import load as load_images
from imgtok.generators.condition import LENGTH, LabelConditionConfig, TextConditionConfig
from imgtok.metrics.adm import read_pictures, read_reference
from imgtok.metrics.features import FeatureExtractor, feature_extractor
from imgtok.sample.commands.common import check_positive, check_replaced_place, contents, progress
from imgtok.sample.commands.generate import wanted_images
from imgtok.sample.evaluate import (
    FeatureSet,
    Measures,
    Processes,
    Score,
    collect,
    compare,
    described,
    is_first,
    launched,
    pictures,
    spread,
    with_floors,
)
from imgtok.sample.feature_cache import FeatureCache, Recalled
from imgtok.sample.intervals import LEVEL, with_intervals

RESULT, PARTIAL = "evaluation.json", "partial"
BLOCKS = 20  # of the jackknife, where nobody asks for a number
REAL_BATCH = 64  # pictures of a reference that are read at a time
Extractor = Literal["efficientnet-lite0", "efficientnet-lite0-320", "efficientnet-lite0-112", "inception"]
Resize = Literal["tf1-bilinear", "bilinear", "bicubic"]
Perceptual = Literal["none", "lpips-vgg", "lpips-alex", "efficientnet-lite0", "vgg-hed"]


class Network(NamedTuple):
    """Which features are compared, and how."""

    extractor: Extractor = "efficientnet-lite0"
    weights: Path | None = None
    resize: Resize | None = None
    neighbours: int = 3
    splits: int = 10

    def load(self, device: torch.device) -> FeatureExtractor:
        return feature_extractor(self.extractor, self.weights, self.resize).to(device)

    @property
    def measures(self) -> Measures:
        check_positive("neighbours", self.neighbours)
        check_positive("splits", self.splits)
        return Measures(neighbours=self.neighbours, splits=self.splits)


@dataclass(frozen=True)
class Compared:
    """A reference set, and real pictures of the same kind for the floor."""

    name: str
    features: FeatureSet
    floor: FeatureSet | None
    source: ImageSource | None
    cached: tuple[bool, bool] = (False, False)
    """Reference and floor were in the cache."""


def opened(data: str, split: str, val_share: float, most: int | None) -> ImageSource:
    """The pictures of a split, at most so many, evenly spread."""
    source = load_images(data, None if split == "all" else split, val_share=val_share)
    return source if most is None else spread(source, most)


def check_new_file(option: str, path: Path | None, overwrite: bool) -> None:
    if path is not None and path.exists() and not overwrite:
        raise ValueError(f"--{option} {path} is there already; choose another, or add --overwrite to replace it")


def other_split(data: str, split: str, val_share: float, most: int) -> ImageSource | None:
    """Pictures for the floor: of the split that is not asked for. None if there are no two of them."""
    other = {"train": "val", "val": "train"}.get(split)
    source = None if other is None else opened(data, other, val_share, most)
    return source if source is not None and len(source) > 1 else None


def batches_of(place: str, size: int, batch_size: int) -> tuple[Iterator[Tensor], int]:
    """The pictures of a folder, cropped, or of an .npz, as they are: float batches, and how many pictures."""
    if place.endswith(".npz"):
        count = read_reference(place).pictures
        return (to_float(batch) for batch in read_pictures(place, batch_size)), count
    source = read_folder(place)
    return pictures(source, size, batch_size), len(source)


def compared(
    reference: str,
    split: str,
    val_share: float,
    size: int,
    most: int,
    extractor: FeatureExtractor,
    batch_size: int,
    cache: FeatureCache,
    processes: Processes,
) -> Compared:
    """What --reference names. The floor is of as many pictures as the samples, if there are."""
    if reference.endswith(".npz"):
        return Compared(reference, npz_features(reference, extractor, batch_size), None, None)
    source = opened(reference, split, val_share, None)
    features, cached = real_features("reference", source, size, extractor, cache, processes)
    real = other_split(reference, split, val_share, most)
    if real is None:
        return Compared(reference, features, None, source, (cached, False))
    floor, floor_cached = real_features("floor", real, size, extractor, cache, processes)
    return Compared(reference, features, floor, source, (cached, floor_cached))


def real_features(
    name: str,
    source: ImageSource,
    size: int,
    extractor: FeatureExtractor,
    cache: FeatureCache,
    processes: Processes,
) -> Recalled:
    """Read in batches of one size, so that what is kept does not depend on an option."""

    def compute() -> FeatureSet:
        own = source.select(list(processes.share(len(source)))) if processes.count > 1 else source
        return collect(extractor, shown(name, pictures(own, size, REAL_BATCH), len(own)), processes)

    return cache.recall(source, size, extractor, compute)


def npz_features(path: str, extractor: FeatureExtractor, batch_size: int) -> FeatureSet:
    """Of ADM's file: statistics as they are, features of its pictures for what needs neighbours."""
    known = read_reference(path)
    seen = None
    if known.pictures:
        batches = (to_float(batch) for batch in read_pictures(path, batch_size))
        seen = collect(extractor, shown("reference", batches, known.pictures))
    if known.pooled is None:
        assert seen is not None
        return seen
    if len(known.pooled.mean) != extractor.dimension:
        raise ValueError(
            f"--reference {path} has statistics of {len(known.pooled.mean)} features, "
            f"but {extractor.name} has {extractor.dimension}; they are another network's"
        )
    count, pooled = (seen.count, seen.pooled) if seen is not None else (0, None)
    return FeatureSet(count, known.pooled, pooled, None, known.spatial)


def scored(
    samples: FeatureSet,
    target: Compared,
    extractor: FeatureExtractor,
    measures: Measures,
    intervals: int | None,
    prefix: str = "",
) -> tuple[dict[str, Score], dict[str, Any] | None]:
    """Scores with their floors and intervals, and the recipe of the intervals."""
    scores = compare(samples, target.features, extractor, measures, prefix)
    if target.floor is not None:
        scores = with_floors(scores, compare(target.floor, target.features, extractor, measures, prefix))
    blocks = blocks_for(intervals, samples.count, target.floor is not None)
    if not blocks:
        return scores, None
    scores = with_intervals(scores, samples, target.features, extractor, measures, blocks, prefix)
    return scores, {"method": "jackknife over blocks of samples, reference fixed", "blocks": blocks, "level": LEVEL}


def blocks_for(asked: int | None, count: int, has_floor: bool) -> int:
    """How many blocks --intervals means for so many samples; 0: no intervals."""
    if asked is None:
        return 0 if has_floor or count < 2 * BLOCKS else BLOCKS
    if asked and not 2 <= asked <= count // 2:
        raise ValueError(f"--intervals must be 0, or from 2 to {count // 2}, half of the images; got {asked}")
    return asked


def conditions(
    config: LabelConditionConfig | TextConditionConfig,
    source: ImageSource | None,
    features: Path | None,
    count: int,
    seed: int,
) -> tuple[Any, str]:
    """What to draw images of, and how that was chosen."""
    if isinstance(config, LabelConditionConfig) and source is not None and features is None:
        known = {labels.name: i for i, labels in enumerate(source.label_sets)}
        told = [label for label in config.labels if label.name != LENGTH]  # the length is the sampler's to tell
        columns = [known.get(label.name, -1) for label in told]
        if all(i >= 0 and source.label_sets[i].values == own.values for i, own in zip(columns, told, strict=True)):
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
            rows = order[torch.arange(count) % len(source)]
            return source.labels[rows][:, columns], "labels of the reference pictures, shuffled with the seed"
    return wanted_images(config, (), features, count).condition, "every class or caption in turn"


def check_unfinished(out: Path, overwrite: bool, resume: bool) -> None:
    """`out` may take a generator's scores: new or empty, or with `resume` what an interrupted run left there."""
    begun = contents(out) == {PARTIAL}
    if begun and not (resume or overwrite):
        raise ValueError(
            f"--out {out} holds an unfinished evaluation; add --resume to go on with it, or --overwrite to begin anew"
        )
    check_replaced_place(out, (RESULT, PARTIAL), overwrite or begun)


def check_alone(command: str) -> None:
    if launched() > 1:
        raise ValueError(f"imgtok {command} runs in one process, but a launcher started {launched()}; run it without")


def hashed(condition: Any) -> str:
    """Of a condition, be it one tensor or several: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in [condition] if isinstance(condition, Tensor) else condition:
        digest.update(str((part.dtype, tuple(part.shape))).encode() + part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shown(name: str, batches: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The batches, while a bar counts their pictures; of several processes, the first has one."""
    if not is_first():
        yield from batches
        return
    with progress(name, "image", count) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def distance_name(perceptual: str) -> str:
    """LPIPS only for LPIPS."""
    return perceptual.replace("lpips", "LPIPS") if perceptual.startswith("lpips") else f"{perceptual}-distance"


def reference_recipe(
    target: Compared,
    split: str,
    extractor: FeatureExtractor,
    measures: Measures,
    intervals: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "reference": {
            "name": target.name,
            "split": None if target.source is None else split,
            "images": target.features.count or "statistics only",
            "cached": target.cached[0],
        },
        "floor": None if target.floor is None else {"images": target.floor.count, "cached": target.cached[1]},
        "extractor": described(extractor),
        "measures": asdict(measures),
        "intervals": intervals,
    }


def write_result(
    out: Path, kind: str, recipe: Mapping[str, Any], scores: Mapping[str, Score], more: Mapping[str, Any]
) -> None:
    versions = {"imgtok": __version__, "torch": torch.__version__}
    result = {
        "kind": kind,
        "scores": {
            name: {k: v for k, v in score._asdict().items() if v not in (None, "")} for name, score in scores.items()
        },
        **more,
        "recipe": recipe,
        "versions": versions,
    }
    write_text(out / RESULT, json.dumps(result, indent=1) + "\n")


def table(scores: Mapping[str, Score]) -> list[str]:
    """One line a score: value, error, floor, and intervals if there are any."""
    width, wide = max(map(len, scores)), any(score.interval for score in scores.values())
    lines = [f"{'':<{width}}  {'value':>10}  {'±':>9}  {'floor':>10}" + f"  {f'{LEVEL:.0%} interval':>21}" * wide]
    for name, score in scores.items():
        error, floor = ("" if number is None else f"{number:.4g}" for number in (score.error, score.floor))
        between = "" if score.interval is None else " … ".join(f"{end:.4g}" for end in score.interval)
        lines.append(f"{name:<{width}}  {score.value:>10.5g}  {error:>9}  {floor:>10}  {between:>21}".rstrip())
    return lines


def codebook_lines(codebooks: list[dict[str, Any]]) -> list[str]:
    lines = []
    for i, use in enumerate(codebooks, 1):
        name = "codes" if len(codebooks) == 1 else f"codebook {i}"
        lines.append(f"{name}: {usage_text(use)}")
        lines += [f"  {part['tokens']} tokens: {usage_text(part)}" for part in use.get("groups", ())]
    return lines


def usage_text(use: Mapping[str, Any]) -> str:
    return f"{use['codes']} used ({use['usage']:.1%}), {use['entropy']:.2f} bits, perplexity {use['perplexity']:.1f}"


def summary(out: Path, extractor: FeatureExtractor, count: int) -> str:
    few = count <= extractor.dimension
    warning = f"; {count} are few for {extractor.dimension} features: read the floor, or the kernel distance" * few
    told = f"features of {extractor.name}, {extractor.resize} to {extractor.size}"
    return f"{out / RESULT}: {count} images, {told}{warning}"
