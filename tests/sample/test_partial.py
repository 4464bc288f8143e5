"""An interrupted evaluation goes on from what it kept, and ends with the same features, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from imgtok.data import to_float
from imgtok.metrics.features import FeatureExtractor
from imgtok.sample.evaluate import FeatureSet
from imgtok.sample.partial import Partial, collect_drawn

from .colours import colours, source

IMAGES = to_float(source(50).images)


class Drawing:
    """Draws images in batches of three, and stops like Ctrl-C before image `until`."""

    def __init__(self, until: int = 10**9) -> None:
        self.until, self.asked = until, list[int]()

    def __call__(self, numbers: range) -> Iterator[Tensor]:
        self.asked.append(numbers.start)
        for start in range(numbers.start, numbers.stop, 3):
            if start >= self.until:
                raise KeyboardInterrupt
            yield IMAGES[start : min(start + 3, numbers.stop)]


@pytest.fixture
def extractor() -> FeatureExtractor:
    return colours()


def assert_same(a: FeatureSet, b: FeatureSet) -> None:
    assert a.count == b.count and torch.equal(a.pooled, b.pooled) and torch.equal(a.logits, b.logits)
    for one, other in ((a.moments, b.moments), (a.spatial, b.spatial)):
        assert torch.equal(one.mean, other.mean) and torch.equal(one.covariance, other.covariance)


@pytest.mark.parametrize("share", [range(50), range(20, 50)])
def test_a_resumed_set_is_the_uninterrupted_one(extractor, tmp_path, share) -> None:
    whole = collect_drawn(extractor, Drawing(), share, None).collected()
    partial = Partial(tmp_path / "partial", {"seed": 0})
    partial.start(resume=True)  # nothing there yet: from the beginning
    for until in (share.start + 15, share.start + 24):
        with pytest.raises(KeyboardInterrupt):
            collect_drawn(extractor, Drawing(until), share, partial)
    again = Partial(tmp_path / "partial", {"seed": 0})
    again.start(resume=True)
    drawing = Drawing()
    assert_same(collect_drawn(extractor, drawing, share, again).collected(), whole)
    assert drawing.asked == [share.start + 24]
    finished = Drawing()
    assert_same(collect_drawn(extractor, finished, share, again).collected(), whole)
    assert finished.asked == []
    again.remove()
    assert not (tmp_path / "partial").exists()


def test_shares_of_another_number_of_processes_use_what_is_there(extractor, tmp_path) -> None:
    partial, whole = Partial(tmp_path / "partial", {}), collect_drawn(extractor, Drawing(), range(50), None).collected()
    partial.start(resume=False)
    with pytest.raises(KeyboardInterrupt):
        collect_drawn(extractor, Drawing(24), range(50), partial)
    first, second = Drawing(), Drawing()
    parts = [collect_drawn(extractor, *each, partial) for each in ((first, range(22)), (second, range(22, 50)))]
    assert first.asked == [] and second.asked == [22]
    assert torch.equal(torch.cat([rows for part in parts for rows in part.pooled]), whole.pooled)


def test_a_kill_loses_no_more_than_a_few_batches(extractor, tmp_path, monkeypatch) -> None:
    partial = Partial(tmp_path / "partial", {})
    partial.start(resume=False)
    seen = []

    def draw(numbers: range) -> Iterator[Tensor]:
        for batch in Drawing()(numbers):
            seen.append(sorted(path.name for path in partial.folder.glob("*.safetensors")))
            yield batch

    collect_drawn(extractor, draw, range(50), partial)
    assert seen[3] == [] and seen[4] == ["000000000.safetensors"] and seen[8][-1] == "000000012.safetensors"


def test_another_recipe_is_refused_and_left_as_it_is(extractor, tmp_path) -> None:
    partial = Partial(tmp_path / "partial", {"seed": 0, "law": {"top_k": 5}})
    partial.start(resume=False)
    collect_drawn(extractor, Drawing(), range(9), partial)
    before = sorted(partial.folder.iterdir())
    other = Partial(partial.folder, {"seed": 1, "law": {"top_k": 5}})
    with pytest.raises(ValueError, match=r"begun with another recipe \(seed was 0, now 1\)"):
        other.start(resume=True)
    assert sorted(partial.folder.iterdir()) == before
    assert other.read(0) is None and partial.read(0) is not None
    other.start(resume=False)
    assert [path.name for path in partial.folder.iterdir()] == ["recipe.json"]


def test_a_damaged_file_is_drawn_again(extractor, tmp_path, caplog) -> None:
    partial = Partial(tmp_path / "partial", {})
    partial.start(resume=False)
    whole = collect_drawn(extractor, Drawing(), range(50), partial).collected()
    path: Path = partial.path(12)
    path.write_bytes(path.read_bytes()[:-5])
    drawing = Drawing()
    assert_same(collect_drawn(extractor, drawing, range(50), partial).collected(), whole)
    assert drawing.asked == [12] and "drawing its images again" in caplog.text
