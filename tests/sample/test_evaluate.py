"""What is kept of sets of pictures, and their scores: with a small made-up extractor, since the numbers are tested in
tests/metrics."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from imgtok.data import to_float, to_uint8
from imgtok.metrics.features import FeatureExtractor
from imgtok.metrics.frechet import FeatureStatistics, frechet_distance, kernel_distance
from imgtok.metrics.image import psnr
from imgtok.metrics.manifold import neighbours
from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.gaussian import GaussianConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample.evaluate import Measures, Score, collect, compare, pictures, rounded, spread, with_floors
from imgtok.sample.evaluate_tokenizer import evaluate_tokenizer, perturbed_distances, perturbed_neighbours
from imgtok.tokenizer import Tokenizer, TokenizerConfig

from ..tiny import CNN
from .colours import colours, source

MEASURES = Measures(neighbours=2, splits=2)


@pytest.fixture
def extractor() -> FeatureExtractor:
    return colours()


def made(quantizer: object) -> Tokenizer:
    tokenizer, dice = TokenizerConfig(image_size=16, backbone=CNN, quantizer=quantizer).build(), torch.Generator()
    dice.manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice) * 0.4)
    return tokenizer.eval()


VECTOR = VectorConfig(codebook_size=32, codebook_dim=4)
FREE = replace(VECTOR, l2_norm=False)


# Sets and their scores


def test_a_set_is_the_same_however_its_pictures_come(extractor: FeatureExtractor) -> None:
    images = to_float(source(21).images)
    whole, parts = collect(extractor, [images]), collect(extractor, images.split(4))
    torch.testing.assert_close(whole.pooled, parts.pooled)
    torch.testing.assert_close(whole.moments.covariance, parts.moments.covariance)
    assert whole.count == parts.count == 21 and whole.logits.shape == (21, 3)


def test_scores_are_the_metrics_of_the_features_under_their_names(extractor: FeatureExtractor) -> None:
    a, b = (to_float(source(count, seed).images) for count, seed in ((20, 0), (15, 1)))
    scores = compare(collect(extractor, [a]), collect(extractor, [b]), extractor, MEASURES)
    assert list(scores) == ["FD-c", "sFD-c", "IS-c", "KD-c", "precision-c", "recall-c", "density-c", "coverage-c"]
    x, y = extractor(a), extractor(b)
    assert scores["FD-c"].value == pytest.approx(frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)))
    assert scores["KD-c"] == Score(*kernel_distance(x, y), "standard error")
    assert scores["coverage-c"].value == neighbours(x, y, 2).coverage
    assert scores["IS-c"].error_of == "deviation over 2 splits" and 1 < scores["IS-c"].value < 3


def test_a_file_of_statistics_allows_the_frechet_distance_alone(extractor: FeatureExtractor) -> None:
    samples = collect(extractor, [to_float(source(9).images)])
    known = replace(samples, pooled=None, logits=None, spatial=None)
    assert set(compare(samples, known, extractor, MEASURES)) == {"FD-c", "IS-c"}


def test_neighbours_need_more_pictures_than_k(extractor: FeatureExtractor) -> None:
    few, many = (collect(extractor, [to_float(source(count).images)]) for count in (2, 9))
    assert "recall-c" in compare(many, many, extractor, MEASURES)
    assert set(compare(few, many, extractor, MEASURES)) == {"FD-c", "sFD-c", "IS-c", "KD-c"}


def test_floors_stand_beside_their_scores() -> None:
    scores = with_floors({"a": Score(2.0, 0.5), "b": Score(3.0)}, {"a": Score(1.0)})
    assert scores == {"a": Score(2.0, 0.5, floor=1.0), "b": Score(3.0)}


def test_one_picture_is_no_set(extractor: FeatureExtractor) -> None:
    with pytest.raises(ValueError, match="at least 2 pictures are needed to compare sets, got 1"):
        collect(extractor, [torch.zeros(1, 3, 8, 8)])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("round", [0, 100, 101, 255, 255]),
        ("truncate", [0, 100, 100, 254, 255]),
        ("none", [0, 100.3, 100.6, 254.9, 255]),
    ],
)
def test_rounding_rules(rule, expected: list[float]) -> None:
    levels = torch.tensor([-3, 100.3, 100.6, 254.9, 300])
    torch.testing.assert_close(
        (rounded(levels / 127.5 - 1, rule) + 1) * 127.5, torch.tensor(expected).float(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("rule", ["round", "truncate", "none"])
def test_no_rounding_rule_changes_what_has_whole_levels(rule) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(rounded(to_float(levels), rule)), levels)
    with pytest.raises(ValueError, match="use one of round, truncate, none"):
        rounded(to_float(levels), "ceil")


def test_pictures_are_spread_evenly_and_cropped() -> None:
    chosen = spread(source(10), 4)
    assert chosen.names == ["0", "2", "5", "7"] and len(spread(source(3), 4)) == 3
    batches = list(pictures(source(5, size=16), 8, batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert batches[0].dtype == torch.float32 and batches[0].abs().max() <= 1


# Tokenizers


@pytest.mark.parametrize(
    ("quantizer", "codebooks", "groups"),
    [
        (VECTOR, 1, 0),
        (ProductConfig(branch=VECTOR), 2, 0),
        (ResidualConfig(stage=FREE, view=ScalesConfig(scales=(1, 2, 4), blends=2)), 1, 3),
    ],
)
def test_a_tokenizer_of_any_kind_is_scored(
    extractor: FeatureExtractor, quantizer: object, codebooks: int, groups: int
) -> None:
    tokenizer, data = made(quantizer), source(11)
    found, originals = evaluate_tokenizer(tokenizer, data, extractor, measures=MEASURES, batch_size=4)
    images = to_float(data.images)
    decoded = rounded(tokenizer.reconstruct(images), "round")
    assert found.count == originals.count == 11
    assert found.scores["PSNR"].value == pytest.approx(float(psnr(decoded, images).mean()), abs=1e-3)
    again = compare(collect(extractor, [decoded]), originals, extractor, MEASURES)
    assert found.scores["rFD-c"].value == pytest.approx(again["FD-c"].value, rel=1e-4)
    known = evaluate_tokenizer(tokenizer, data, extractor, measures=MEASURES, batch_size=4, originals=originals)
    assert known[0].scores == found.scores and known[1] is originals
    assert "FD-c" not in found.scores and {"SSIM", "SSIM-gaussian11", "KD-c", "sFD-c"} <= set(found.scores)
    assert len(found.codebooks) == codebooks and len(found.codebooks[0].get("groups", ())) == groups
    indices = tokenizer.encode(images)
    first = indices[..., 0] if codebooks > 1 else indices
    assert found.codebooks[0]["codes"] == len(first.unique())
    assert found.language["tokens"] == first.numel()
    shuffled = first[torch.randperm(11, generator=torch.Generator().manual_seed(0))]
    assert found.language["types_after_pictures"] == {n: len(shuffled[:n].unique()) for n in (1, 10)}
    assert int(found.growth.types[-1]) == len(first.unique())


def test_perfect_reconstructions_have_no_distance(extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, data = made(VECTOR), source(9)
    lossless = iter(to_float(data.images).split(4))
    monkeypatch.setattr(tokenizer, "decode", lambda *args, **kwargs: next(lossless))
    scores = evaluate_tokenizer(tokenizer, data, extractor, measures=MEASURES, batch_size=4)[0].scores
    assert scores["rFD-c"].value == pytest.approx(0, abs=1e-9) and scores["precision-c"].value == 1
    assert scores["SSIM"].value == pytest.approx(1) and scores["PSNR"].value > 100


def test_published_neighbours_of_pfid_and_their_proportion() -> None:
    assert perturbed_neighbours(16384) == (200, 280, 360)
    assert perturbed_neighbours(1024) == (10, 15, 20)
    assert perturbed_neighbours(32768) == (400, 560, 720)
    assert perturbed_neighbours(512) == (6, 9, 11)
    assert perturbed_neighbours(2) == (2, 2, 2)


def test_pfid_has_fifteen_cells_and_does_not_depend_on_batches(extractor: FeatureExtractor) -> None:
    tokenizer, data = made(replace(VECTOR, codebook_size=256)), source(9)
    originals = collect(extractor, [to_float(data.images)])
    runs = [perturbed_distances(tokenizer, data, extractor, originals, batch_size=size) for size in (4, 9)]
    assert [(cell["rate"], cell["neighbours"]) for cell in runs[0][:4]] == [(0.9, 3), (0.9, 4), (0.9, 6), (0.8, 3)]
    assert len(runs[0]) == 15
    for one, other in zip(*runs, strict=True):
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-3)
    other = perturbed_distances(tokenizer, data, extractor, originals, seed=1)
    assert other[0]["distance"] != pytest.approx(runs[0][0]["distance"], rel=1e-3)


def test_pfid_without_swaps_is_the_distance_of_reconstructions(
    extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, data = made(VECTOR), source(9)
    found, originals = evaluate_tokenizer(tokenizer, data, extractor, measures=MEASURES)
    monkeypatch.setattr("imgtok.sample.evaluate_tokenizer.PERTURBED_RATES", (0.0,))
    cells = perturbed_distances(tokenizer, data, extractor, originals)
    for cell in cells:
        assert cell["distance"] == pytest.approx(found.scores["rFD-c"].value, rel=1e-4)


def test_pfid_of_several_codes_for_a_vector_does_not_depend_on_batches_either(extractor: FeatureExtractor) -> None:
    data = source(9)
    originals = collect(extractor, [to_float(data.images)])
    tokenizer = made(ProductConfig(branch=replace(VECTOR, codebook_size=256)))
    one, other = (perturbed_distances(tokenizer, data, extractor, originals, batch_size=size) for size in (4, 9))
    assert [cell["distance"] for cell in one] == pytest.approx([cell["distance"] for cell in other], rel=1e-3)


def test_pfid_is_for_codes(extractor: FeatureExtractor) -> None:
    data, unused = source(3), collect(extractor, [torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))])
    with pytest.raises(ValueError, match="this tokenizer's tokens are continuous"):
        perturbed_distances(made(GaussianConfig(dim=4)), data, extractor, unused)


def test_progress_counts_pictures(extractor: FeatureExtractor) -> None:
    seen: list[int] = []
    count: Callable[[int], None] = seen.append
    evaluate_tokenizer(made(VECTOR), source(9), extractor, measures=MEASURES, batch_size=4, on_progress=count)
    assert seen == [4, 4, 1]
