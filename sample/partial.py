"""Features of images that were drawn so far, on disk: what an interrupted evaluation goes on from."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imgtok.atomic import replacing, write_text
from imgtok.metrics.features import FeatureExtractor, Features
from imgtok.sample.evaluate import Collector, joined

logger = logging.getLogger(__name__)

RECIPE = "recipe.json"
EVERY = 4  # batches in a file


class Partial:
    """A folder of files, each with the features of some images that follow each other, and the recipe of all.

    Files are written once and never again, so many images cost no more than what is kept of them.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """`recipe`: all that the features depend on."""
        self.folder, self.recipe = folder, json.loads(json.dumps(recipe))
        told = json.dumps(self.recipe, sort_keys=True).encode()
        self.key = hashlib.blake2b(told, digest_size=16).hexdigest()

    def start(self, resume: bool) -> None:
        """Makes the folder, or with `resume` takes what is there. ValueError if that has another recipe."""
        path = self.folder / RECIPE
        if resume and path.is_file():
            self.check(json.loads(path.read_text(encoding="utf-8")))
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        write_text(path, json.dumps(self.recipe, indent=1) + "\n")

    def check(self, found: Mapping[str, Any]) -> None:
        names = sorted(name for name in {*self.recipe, *found} if self.recipe.get(name) != found.get(name))
        if names:
            told = ", ".join(f"{name} was {found.get(name)!r}, now {self.recipe.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.folder} was begun with another recipe ({told}); ask for that one again, "
                "or leave --resume out and add --overwrite to begin anew"
            )

    def save(self, first: int, features: Features) -> None:
        """Of images from number `first` on."""
        rows = {name: value.contiguous() for name, value in features._asdict().items() if value is not None}
        with replacing(self.path(first)) as temporary:
            save_file(rows, temporary, metadata={"recipe": self.key})

    def restore(self, collector: Collector, share: range) -> int:
        """Gives the collector what is there of the share's images, from its first on; returns the first that is not."""
        place = share.start
        while place < share.stop and (features := self.read(place)) is not None:
            own = first_rows(features, share.stop - place)
            collector.take(own)
            place += len(own.pooled)
        return place

    def read(self, first: int) -> Features | None:
        path = self.path(first)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("recipe") != self.key:  # on the disk of another machine, of another run
                    return None
                return Features(**{name: file.get_tensor(name) for name in file.keys()})
        except (SafetensorError, TypeError, OSError) as error:
            logger.warning("%s is damaged (%s); drawing its images again", path, error)
            return None

    def path(self, first: int) -> Path:
        return self.folder / f"{first:09d}.safetensors"

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def first_rows(features: Features, count: int) -> Features:
    pooled, logits, spatial = (None if rows is None else rows[:count] for rows in features)
    assert pooled is not None
    return Features(pooled, logits, spatial)


def collect_drawn(
    extractor: FeatureExtractor, draw: Callable[[range], Iterator[Tensor]], share: range, partial: Partial | None
) -> Collector:
    """The features of a share of the images: those that `partial` has, and the others as `draw` gives them.

    An interruption keeps all that was drawn.
    """
    collector, waiting = Collector(extractor), list[Features]()
    place = share.start if partial is None else partial.restore(collector, share)

    def keep() -> None:
        nonlocal place
        if waiting and partial is not None:
            features = joined(waiting)
            partial.save(place, features)
            place += len(features.pooled)
        waiting.clear()

    try:
        for batch in draw(range(place, share.stop)) if place < share.stop else ():
            waiting.append(collector.add(batch))
            if len(waiting) == EVERY:
                keep()
    finally:
        keep()
    return collector
