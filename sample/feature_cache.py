"""Features of reference pictures, kept in the user's cache folder: computed once for all the models they judge."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imgtok.atomic import replacing
from imgtok.data import FolderSource, ImageSource
from imgtok.metrics.features import FeatureExtractor
from imgtok.metrics.frechet import FeatureStatistics
from imgtok.sample.evaluate import FeatureSet, described
from imgtok.sample.measure import cpu_model
from imgtok.sample.tuner import cache_folder

logger = logging.getLogger(__name__)

FORMAT = "imgtok features 1"
MOST_BYTES = 4 * 2**30  # of all files together: features of some 400,000 pictures


class Recalled(NamedTuple):
    features: FeatureSet
    cached: bool
    """They were in the cache."""


class FeatureCache:
    """Sets of features in files, each under a hash of all that they depend on."""

    def __init__(self, folder: Path | None = None, enabled: bool = True, agree: Callable[[bool], bool] = bool) -> None:
        """`folder`: None: the user's cache folder. Not `enabled`: nothing is read or written.

        `agree`: asks all processes whether they have it; only then none of them computes.
        """
        self.folder, self.enabled, self.agree = folder or cache_folder(), enabled, agree

    def recall(
        self, source: ImageSource, size: int, extractor: FeatureExtractor, collect: Callable[[], FeatureSet]
    ) -> Recalled:
        """The features of a source's pictures, centre-cropped to `size`: from the cache, or else what `collect` finds.

        A file that is damaged or another's is replaced; where nothing can be written, a warning says so.
        """
        if not self.enabled:
            return Recalled(collect(), False)
        key = key_of(source, size, extractor)
        path = self.folder / f"features-{key}.safetensors"
        known = self.read(path, key, extractor)
        if self.agree(known is not None) and known is not None:
            return Recalled(known, True)
        features = collect()
        try:
            write_features(path, features, key)
            self.make_room(path)
        except OSError as error:
            logger.warning("the features of the reference are not kept for the next time: %s", error)
        return Recalled(features, False)

    def read(self, path: Path, key: str, extractor: FeatureExtractor) -> FeatureSet | None:
        if not path.is_file():
            return None
        try:
            found = read_features(path, key, extractor)
        except (ValueError, OSError, SafetensorError) as error:
            logger.warning("%s is damaged or no file of features (%s); computing them again", path, error)
            return None
        with suppress(OSError):  # a folder that can only be read needs no order
            path.touch()  # what was used last goes last
        return found

    def make_room(self, newest: Path) -> None:
        """Removes the files that were used longest ago, until all have at most MOST_BYTES; never the newest."""
        files = {path: path.stat() for path in self.folder.glob("features-*.safetensors") if path != newest}
        total = newest.stat().st_size + sum(facts.st_size for facts in files.values())
        for path in sorted(files, key=lambda each: files[each].st_mtime_ns):
            if total <= MOST_BYTES:
                return
            path.unlink(missing_ok=True)
            total -= files[path].st_size


def key_of(source: ImageSource, size: int, extractor: FeatureExtractor) -> str:
    """A hash of the pictures, in their order, and of what makes features of them. It tells splits apart by pictures."""
    device = next(extractor.parameters()).device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    facts = FORMAT, identity(source), size, described(extractor), device.type, machine, torch.__version__
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def identity(source: ImageSource) -> str:
    """A hash of pictures: of the files' paths, sizes and times of change, or else of the pixels."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, FolderSource):
        for path in source.paths:
            facts = path.stat()
            digest.update(json.dumps([str(path.resolve()), facts.st_size, facts.st_mtime_ns]).encode())
    else:
        for i in range(len(source)):
            image = source.image(i).contiguous()
            digest.update(str(tuple(image.shape)).encode() + image.numpy().tobytes())
    return digest.hexdigest()


def write_features(path: Path, features: FeatureSet, key: str) -> None:
    """In one move, with the key inside."""
    tensors = {"count": torch.tensor(features.count)}
    for name in ("pooled", "logits"):
        if (rows := getattr(features, name)) is not None:
            tensors[name] = rows.contiguous()
    for name in ("moments", "spatial"):
        if (moments := cast(FeatureStatistics | None, getattr(features, name))) is not None:
            tensors |= {f"{name}.mean": moments.mean, f"{name}.scatter": moments.scatter}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "key": key})


def read_features(path: Path, key: str, extractor: FeatureExtractor) -> FeatureSet:
    """ValueError (or what safetensors raises) if the file holds anything else."""
    with safe_open(path, "pt") as file:
        told = file.metadata() or {}
        if (told.get("format"), told.get("key")) != (FORMAT, key):
            raise ValueError(f"it is marked {told}, expected {FORMAT}, {key}")
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
    missing = {"count", "pooled", "moments.mean", "moments.scatter"} - tensors.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    count, pooled = int(tensors["count"]), tensors["pooled"]
    if pooled.shape != (count, extractor.dimension):
        raise ValueError(f"it holds features {tuple(pooled.shape)}, expected {(count, extractor.dimension)}")
    spatial = statistics(tensors, "spatial", count) if "spatial.mean" in tensors else None
    return FeatureSet(count, statistics(tensors, "moments", count), pooled, tensors.get("logits"), spatial)


def statistics(tensors: dict[str, Tensor], name: str, count: int) -> FeatureStatistics:
    mean, scatter = tensors[f"{name}.mean"], tensors.get(f"{name}.scatter", torch.zeros(0))
    if scatter.shape != (len(mean), len(mean)) or scatter.dtype != torch.float64:
        raise ValueError(f"it holds sums {scatter.dtype} {tuple(scatter.shape)} for {len(mean)} means")
    found = FeatureStatistics(len(mean))
    found.count, found.mean, found.scatter = count, mean, scatter
    return found
