"""What the evaluate commands share: extractors, reference sets and their floors, conditions, results."""

from __future__ import annotations

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
from imgtok.generators.condition import LabelConditionConfig, TextConditionConfig
from imgtok.metrics.adm import read_pictures, read_reference
from imgtok.metrics.features import FeatureExtractor, feature_extractor
from imgtok.sample.commands.common import check_positive, progress
from imgtok.sample.commands.generate import wanted_images
from imgtok.sample.evaluate import (
    FeatureSet,
    Measures,
    Score,
    collect,
    compare,
    described,
    pictures,
    spread,
    with_floors,
)

RESULT = "evaluation.json"
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
    reference: str, split: str, val_share: float, size: int, most: int, extractor: FeatureExtractor, batch_size: int
) -> Compared:
    """What --reference names. The floor is of as many pictures as the samples, if there are."""
    if reference.endswith(".npz"):
        return Compared(reference, npz_features(reference, extractor, batch_size), None, None)
    source = opened(reference, split, val_share, None)
    features = collect(extractor, shown("reference", pictures(source, size, batch_size), len(source)))
    real = other_split(reference, split, val_share, most)
    if real is None:
        return Compared(reference, features, None, source)
    floor = collect(extractor, shown("floor", pictures(real, size, batch_size), len(real)))
    return Compared(reference, features, floor, source)


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
    samples: FeatureSet, target: Compared, extractor: FeatureExtractor, measures: Measures, prefix: str = ""
) -> dict[str, Score]:
    """Scores with their floors."""
    scores = compare(samples, target.features, extractor, measures, prefix)
    if target.floor is None:
        return scores
    return with_floors(scores, compare(target.floor, target.features, extractor, measures, prefix))


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
        columns = [known.get(label.name, -1) for label in config.labels]
        if all(
            i >= 0 and source.label_sets[i].values == own.values for i, own in zip(columns, config.labels, strict=True)
        ):
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
            rows = order[torch.arange(count) % len(source)]
            return source.labels[rows][:, columns], "labels of the reference pictures, shuffled with the seed"
    return wanted_images(config, (), features, count).condition, "every class or caption in turn"


def shown(name: str, batches: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """The batches, while a bar counts their pictures."""
    with progress(name, "image", count) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def distance_name(perceptual: str) -> str:
    """LPIPS only for LPIPS."""
    return perceptual.replace("lpips", "LPIPS") if perceptual.startswith("lpips") else f"{perceptual}-distance"


def reference_recipe(target: Compared, split: str, extractor: FeatureExtractor, measures: Measures) -> dict[str, Any]:
    return {
        "reference": {
            "name": target.name,
            "split": None if target.source is None else split,
            "images": target.features.count or "statistics only",
        },
        "floor": None if target.floor is None else {"images": target.floor.count},
        "extractor": described(extractor),
        "measures": asdict(measures),
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
    """One line a score: value, error, floor."""
    width = max(map(len, scores))
    lines = [f"{'':<{width}}  {'value':>10}  {'±':>9}  {'floor':>10}"]
    for name, score in scores.items():
        error, floor = ("" if number is None else f"{number:.4g}" for number in (score.error, score.floor))
        lines.append(f"{name:<{width}}  {score.value:>10.5g}  {error:>9}  {floor:>10}".rstrip())
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
