"""The benchmark of next-scale sampling: what it reports, of a pair small enough for a second."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from imgtok.backbones.cnn import CNNConfig
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.preset import Preset
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample.bench import SamplingBench
from imgtok.sample.bench_stages import PUBLISHED, bench_stages, contenders, load_pair
from imgtok.sample.cli import main
from imgtok.tokenizer import TokenizerConfig

CPU = torch.device("cpu")
TOKENIZER = TokenizerConfig(
    image_size=8,
    backbone=CNNConfig(
        encoder_widths=(8, 8, 8),
        decoder_widths=(8, 8, 8),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1, 1),
        latent_channels=8,
        norm_groups=4,
    ),
    quantizer=ResidualConfig(
        stage=VectorConfig(codebook_size=16, codebook_dim=4, l2_norm=False), view=ScalesConfig(scales=(1, 2), blends=1)
    ),
)
LAYOUT = TOKENIZER.quantizer.layout_of(2, 2)
GENERATOR = NextScaleConfig(
    layout=LAYOUT,
    codebook_size=16,
    codebook_dim=4,
    condition=LabelConditionConfig(labels=(Label(size=3),)),
    width=16,
    depth=2,
    num_heads=4,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    row = {"convert": dict, "paper": "none", "code": "none"}
    monkeypatch.setitem(TOKENIZERS, "tiny-scales", Preset(config=TOKENIZER, **row))
    monkeypatch.setitem(GENERATORS, "tiny-var", Preset(config=GENERATOR, tokenizer="tiny-scales", **row))
    monkeypatch.setitem(GENERATORS, "tiny-alone", Preset(config=GENERATOR, **row))


BENCH = SamplingBench(model="tiny-var", batch=2, repeats=1, guidance=2.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_way_is_reported_beside_the_published_one(dtype):
    report = bench_stages(replace(BENCH, dtype=dtype), GENERATOR, CPU)
    named = {row["name"]: row for row in report.rows}
    names = [f"imgtok, {dtype}", PUBLISHED, f"published way, {dtype}"]
    assert list(named) == list(dict.fromkeys(names))
    assert named[PUBLISHED]["ratio_to_published"] == 1
    for row in report.rows:
        assert 0 < row["seconds_of_decoding"] < row["seconds_per_image"]
        assert row["ratio_to_published"] == pytest.approx(
            named[PUBLISHED]["seconds_per_image"] / row["seconds_per_image"]
        )


def test_both_ways_draw_whole_pictures_with_the_same_weights():
    pair = load_pair(BENCH, CPU)
    ours, published = contenders(BENCH, pair, CPU).values()
    for one in (ours, published):
        one.draw()
        first = one.tokens
        one.draw()
        assert one.tokens.shape == (2, LAYOUT.num_tokens)
        assert not torch.equal(one.tokens, first)  # each batch has pictures of its own
    tokens = ours.tokens
    torch.testing.assert_close(ours.tokenizer.decode(tokens), published.tokenizer.decode(tokens), atol=1e-5, rtol=1e-5)


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "bench.json"
    words = ["bench", "sample", "--preset", "tiny-var", "--repeats", "1", "--json", str(path), "--no-peer"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny-var: 5 tokens an image in 2 calls, batch 1, guidance 4")
    assert lines[2].split() == ["s/image", "of", "it", "decoding", "images/s", "x", "published", "peak", "memory"]
    assert lines[3].startswith("imgtok, float32")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ratio_to_published"] is None


@pytest.mark.parametrize(
    ("preset", "words", "told"),
    [
        ("tiny-var", ["--strategy", "jacobi"], "there are no strategies; it is drawn stage by stage"),
        ("tiny-var", ["--tokens", "3"], "there are no unfinished images"),
        ("tiny-var", ["--compile", "on"], "there are no compiled rounds"),
        ("tiny-alone", [], "tiny-alone names no tokenizer, which a next-scale generator needs"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(capsys, preset, words, told):
    assert main(["bench", "sample", "--preset", preset, *words]) == 2
    assert told in capsys.readouterr().err
