"""Features that are kept are the features, bit for bit, and only while the pictures and the network are the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imgtok.data import ArraySource, ImageSource, read_folder, save_png
from imgtok.metrics.features import FeatureExtractor
from imgtok.sample import feature_cache
from imgtok.sample.evaluate import FeatureSet, Measures, collect, compare, pictures
from imgtok.sample.feature_cache import FeatureCache, key_of

from .colours import colours, source


@pytest.fixture
def extractor() -> FeatureExtractor:
    return colours()


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


class Counted:
    """Collects features of a source and counts how often it had to."""

    def __init__(self, cache: FeatureCache, extractor: FeatureExtractor) -> None:
        self.cache, self.extractor, self.times = cache, extractor, 0

    def __call__(self, source: ImageSource, size: int = 16) -> FeatureSet:
        def compute() -> FeatureSet:
            self.times += 1
            return collect(self.extractor, pictures(source, size, 4))

        before = self.times
        found = self.cache.recall(source, size, self.extractor, compute)
        assert found.cached == (self.times == before)
        return found.features


def assert_same(a: FeatureSet, b: FeatureSet) -> None:
    assert a.count == b.count and torch.equal(a.pooled, b.pooled) and torch.equal(a.logits, b.logits)
    for one, other in ((a.moments, b.moments), (a.spatial, b.spatial)):
        assert torch.equal(one.mean, other.mean) and torch.equal(one.covariance, other.covariance)


def test_features_come_back_bit_for_bit_with_equal_scores(cache, extractor) -> None:
    ask, other = Counted(cache, extractor), collect(extractor, pictures(source(9, 1), 16, 4))
    first, second = ask(source(21)), ask(source(21))
    assert ask.times == 1
    assert_same(first, second)
    scores = [compare(other, known, extractor, Measures(neighbours=2, splits=2)) for known in (first, second)]
    assert scores[0] == scores[1]


def test_other_pictures_sizes_networks_and_resizes_have_entries_of_their_own(cache, extractor) -> None:
    data = source(6)
    swapped = data.select([1, 0, 2, 3, 4, 5])
    brighter = ArraySource(data.images.clone().clamp_min(1), data.labels, data.label_sets, data.names)
    stronger, nearer = colours(), colours("bicubic")
    stronger.network.scale.data.mul_(2)
    keys = {key_of(given, 16, extractor) for given in (data, swapped, brighter, data.select([0, 1, 2]))}
    keys |= {key_of(data, 8, extractor), key_of(data, 16, stronger), key_of(data, 16, nearer)}
    assert len(keys) == 7 and key_of(source(6), 16, colours()) in keys


def test_a_file_that_changes_is_read_again(cache, extractor, tmp_path) -> None:
    for i, image in enumerate(source(4).images):
        save_png(tmp_path / "a" / f"{i}.png", image)
    ask = Counted(cache, extractor)
    before = ask(read_folder(tmp_path / "a"))
    ask(read_folder(tmp_path / "a"))
    assert ask.times == 1
    save_png(tmp_path / "a" / "2.png", source(4, seed=5).images[0])
    os.utime(tmp_path / "a" / "2.png", ns=(1, 1))
    after = ask(read_folder(tmp_path / "a"))
    assert ask.times == 2 and torch.equal(before.pooled, after.pooled) is False


@pytest.mark.parametrize("fault", ["cut", "foreign", "other key", "lacking", "misshapen"])
def test_what_is_no_such_file_is_replaced_with_a_warning(cache, extractor, caplog, fault) -> None:
    ask, data = Counted(cache, extractor), source(6)
    before = ask(data)
    (path,) = cache.folder.iterdir()
    metadata = {"format": "imgtok features 1", "key": key_of(data, 16, extractor)}
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif fault == "foreign":
        save_file({"weight": torch.zeros(3)}, path)
    elif fault == "other key":
        ask(source(7))
        (other,) = set(cache.folder.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
    elif fault == "lacking":
        save_file({"count": torch.tensor(6)}, path, metadata=metadata)
    else:
        parts = {"count": torch.tensor(6), "moments.mean": torch.zeros(3), "moments.scatter": torch.zeros(3, 3)}
        save_file(parts | {"pooled": torch.zeros(5, 3)}, path, metadata=metadata)
    times = ask.times
    assert_same(ask(data), before)
    assert ask.times == times + 1 and "computing them again" in caplog.text
    assert_same(ask(data), before)
    assert ask.times == times + 1


def test_a_cache_that_is_off_neither_reads_nor_writes(cache, extractor) -> None:
    off = Counted(FeatureCache(cache.folder, enabled=False), extractor)
    off(source(5))
    assert not cache.folder.exists()
    Counted(cache, extractor)(source(5))
    off(source(5))
    assert off.times == 2


def test_features_are_used_where_they_cannot_be_kept(extractor, tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    ask = Counted(FeatureCache(tmp_path / "file" / "cache"), extractor)
    assert ask(source(5)).count == 5 and "are not kept for the next time" in caplog.text


def test_sets_without_logits_and_places_are_kept_too(cache, extractor) -> None:
    plain = replace(collect(extractor, pictures(source(5), 16, 4)), logits=None, spatial=None)
    for cached in (False, True):
        found = cache.recall(source(5), 16, extractor, lambda: plain)
        assert found.cached is cached and found.features.logits is None and found.features.spatial is None


def test_beyond_a_size_the_files_that_were_used_longest_ago_go(cache, extractor, monkeypatch) -> None:
    ask, sources = Counted(cache, extractor), [source(5, seed) for seed in range(4)]
    for number, data in enumerate(sources[:3]):
        ask(data)
        os.utime(next(path for path in cache.folder.iterdir() if path.stat().st_mtime > 1e6), (number + 1, number + 1))
    ask(sources[0])  # used again: no longer the oldest
    size = next(cache.folder.iterdir()).stat().st_size
    monkeypatch.setattr(feature_cache, "MOST_BYTES", 3 * size)
    ask(sources[3])
    assert ask.times == 4
    for data in (sources[0], sources[2], sources[3]):
        ask(data)
    assert ask.times == 4
    ask(sources[1])
    assert ask.times == 5
