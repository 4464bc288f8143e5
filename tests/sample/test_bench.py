"""Benchmarks: what they report, of models small enough for a second."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from imgtok.backbones.cnn import CNNConfig
from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.preset import Preset
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.quantizers.vector import VectorConfig
from imgtok.sample import bench as bench_module
from imgtok.sample import measure
from imgtok.sample.bench import SamplingBench, bench_sampling, usable
from imgtok.sample.bench_tokenizer import TokenizerBench, bench_tokenizer
from imgtok.sample.cli import main
from imgtok.sample.strategies import ENTRIES
from imgtok.tokenizer import TokenizerConfig

CPU = torch.device("cpu")
TOKENIZER = TokenizerConfig(
    image_size=8,
    backbone=CNNConfig(
        encoder_widths=(8, 8, 8),
        decoder_widths=(8, 8, 8),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(2, 2, 2),
        latent_channels=8,
        norm_groups=4,
    ),
    quantizer=VectorConfig(codebook_size=32, codebook_dim=4),
)
GENERATOR = GeneratorConfig(
    layout=TOKENIZER.layout,
    codebook_size=32,
    condition=LabelConditionConfig(labels=(Label(size=3),)),
    width=16,
    depth=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=24,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    """Presets tiny (2 x 2 tokens of 8 x 8 pixels), tiny-text, tiny-patches (no VQModel is like it); no compiler."""
    monkeypatch.setattr(bench_module, "can_compile", lambda device: False)
    row = {"convert": dict, "paper": "none", "code": "none"}
    text = replace(GENERATOR, condition=TextConditionConfig(num_slots=3, feature_dim=6))
    patches = replace(TOKENIZER.backbone, encoder_patch=2, decoder_patch=2)
    monkeypatch.setitem(TOKENIZERS, "tiny", Preset(config=TOKENIZER, **row))
    monkeypatch.setitem(TOKENIZERS, "tiny-patches", Preset(config=replace(TOKENIZER, backbone=patches), **row))
    monkeypatch.setitem(GENERATORS, "tiny", Preset(config=GENERATOR, tokenizer="tiny", **row))
    monkeypatch.setitem(GENERATORS, "tiny-text", Preset(config=text, **row))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_sampling_is_reported_beside_transformers(dtype, guidance):
    bench = SamplingBench(
        model="tiny", strategies=("plain",), batch=2, dtype=dtype, guidance=guidance, repeats=2, threads=1
    )
    report = bench_sampling(bench, CPU)
    plain, peer = report.rows
    assert (plain["name"], plain["guarantee"], plain["ratio_to_plain"]) == ("plain", "pathwise", 1)
    assert (plain["same_images"], plain["token_tv"], peer["same_images"]) == (1, 0, None)
    assert (peer["name"], peer["guarantee"], peer["ratio_to_transformers"]) == ("transformers", None, 1)
    assert plain["ratio_to_transformers"] == pytest.approx(plain["tokens_per_second"] / peer["tokens_per_second"])
    for row in report.rows:
        assert (row["dtype"], row["batch"], row["calls_per_image"]) == (dtype, 2, 4)
        assert row["images_per_second"] == pytest.approx(row["tokens_per_second"] / 4)
        batch = 2 / row["images_per_second"]
        assert row["seconds_to_first_image"] == pytest.approx(batch + report.settings["decode_seconds"])
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
    assert report.machine["threads"] == 1
    assert report.machine["torch"] == torch.__version__
    assert report.settings["weights"] == "random"


def test_part_of_an_image_is_scaled_to_a_whole():
    bench = SamplingBench(model="tiny-text", strategies=("plain",), tokens=2, repeats=1, peer=False)
    (row,) = bench_sampling(bench, CPU).rows
    assert row["calls_per_image"] == 4
    assert row["images_per_second"] == pytest.approx(row["tokens_per_second"] / 4)
    assert (row["seconds_to_first_image"], row["ratio_to_transformers"]) == (None, None)


@pytest.mark.slow
def test_compiled_rounds_are_measured():
    bench = SamplingBench(model="tiny", strategies=("plain",), tokens=2, repeats=1, compile="on", peer=False)
    report = bench_sampling(bench, CPU)
    assert report.settings["compile"] is True
    assert report.rows[0]["tokens_per_second"] > 0


def test_every_strategy_is_measured_and_keeps_its_word():
    bench = SamplingBench(model="tiny", draft="tiny", batch=3, repeats=2, threads=1, peer=False)
    rows = {row["name"]: row for row in bench_sampling(bench, CPU).rows}
    assert list(rows) == list(ENTRIES)
    for name, row in rows.items():
        assert row["guarantee"] == ENTRIES[name].guarantee
        assert 1 <= row["calls_per_image"] <= 4
        assert 0 <= row["token_tv"] <= 1
        if row["guarantee"] == "pathwise":
            assert (row["same_images"], row["token_tv"]) == (1, 0)


def test_strategies_that_need_a_draft_model_wait_for_one():
    assert not [name for name in usable(32, draft=False) if ENTRIES[name].needs_draft]
    assert "recalling" not in usable(16384, draft=True)
    assert usable(32, draft=True) == list(ENTRIES)


def test_the_peers_are_as_large_as_our_models():
    plain, peer = bench_sampling(SamplingBench(model="tiny", strategies=("plain",), tokens=1, repeats=1), CPU).rows
    assert plain["parameters"] - peer["parameters"] == 4 * 16  # the labels
    rows = bench_tokenizer(TokenizerBench(model="tiny", repeats=1), CPU).rows
    assert len({row["parameters"] for row in rows}) == 1


def test_coding_is_reported_beside_diffusers():
    report = bench_tokenizer(TokenizerBench(model="tiny", batch=2, size=16, repeats=2, threads=1), CPU)
    names = ["float32", "bfloat16 channels_last", "diffusers"]
    assert [(row["operation"], row["name"]) for row in report.rows] == [
        (operation, name) for operation in ("encode", "decode") for name in names
    ]
    for operation in ("encode", "decode"):
        *ours, peer = [row for row in report.rows if row["operation"] == operation]
        assert (peer["ratio_to_diffusers"], peer["dtype"]) == (1, "float32")
        for row in ours:
            assert row["ratio_to_diffusers"] == pytest.approx(row["images_per_second"] / peer["images_per_second"])
    assert (report.settings["size"], report.settings["batch"]) == (16, 2)


def test_our_setting_is_measured_once_if_it_is_the_one_after_loading():
    bench = TokenizerBench(model="tiny-patches", dtype="float32", channels_last=False, repeats=1, peer=False)
    assert [row["name"] for row in bench_tokenizer(bench, CPU).rows] == ["float32", "float32"]


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "new" / "sampling.json"
    words = "bench sample --preset tiny --strategy jacobi --window 2 --tokens 4 --guidance 2 --repeats 1 --device cpu"
    assert main([*words.split(), "--json", str(path)]) == 0
    about, circumstances, head, *rows, note = capsys.readouterr().out.splitlines()
    assert about == "tiny: 4 tokens an image, batch 1, guidance 2, temperature 1, top-k 0, float32"
    assert circumstances.startswith("random weights, medians of 1, ")
    assert "x transformers" in head
    assert [row.split()[0] for row in rows] == ["plain", "jacobi", "transformers"]
    assert "weights are random" in note
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "settings", "rows"}
    assert [row["name"] for row in report["rows"]] == ["plain", "jacobi", "transformers"]
    assert report["settings"]["window"] == 2
    assert [path.name for path in path.parent.iterdir()] == ["sampling.json"]


def test_the_tokenizer_command_prints_a_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "coding.json"
    words = "bench tokenizer --preset tiny --repeats 1 --no-channels-last --device cpu --json"
    assert main([*words.split(), str(path)]) == 0
    about, _, _, *rows = capsys.readouterr().out.splitlines()
    assert about == "tiny: 8 x 8 pixels, batch 1"
    assert [row.split()[:2] for row in rows] == [
        [operation, name] for operation in ("encode", "decode") for name in ("float32", "bfloat16", "diffusers")
    ]
    assert len(json.loads(path.read_text())["rows"]) == 6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sample --preset tinny", "'tinny' is neither a preset nor a folder"),
        ("sample --preset tiny --model .", "exclude each other"),
        ("sample --preset tiny --tokens 0", "tokens must be at least 1, got 0"),
        ("sample --preset tiny --tokens 5", "tokens must be at most 4"),
        ("sample --preset tiny --batch 0", "batch must be at least 1, got 0"),
        ("sample --preset tiny --threads 0", "threads must be at least 1, got 0"),
        ("sample --preset tiny --repeats 0", "repeats must be at least 1, got 0"),
        ("sample --preset tiny --guidance nan", "guidance scale must be a finite number"),
        ("sample --preset tiny --strategy jakobi", "strategy 'jakobi' is unknown; choose from plain, jacobi"),
        ("sample --preset tiny --strategy draft", "needs a draft model"),
        ("sample --preset tiny --strategy jacobi --window 0", "window must be at least 1, got 0"),
        ("tokenizer --preset tinny", "'tinny' is neither a preset nor a folder"),
        ("tokenizer --preset tiny --size 10", "size must be a multiple of 4"),
        ("tokenizer --preset tiny --batch 0", "batch must be at least 1, got 0"),
        ("tokenizer --preset tiny --threads 0", "threads must be at least 1, got 0"),
        ("tokenizer --preset tiny-patches", "no VQModel of this tokenizer's sizes"),
    ],
)
def test_bad_input_is_told_in_a_line_and_nothing_is_written(capsys, tmp_path, words, told):
    assert main(["bench", *words.split(), "--json", str(tmp_path / "new" / "report.json")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_file_can_be_is_told_before_measuring(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path, told in ((tmp_path, "is a folder; give the path of a file"), (file / "report.json", "cannot be written")):
        assert main(["bench", "sample", "--preset", "tiny", "--json", str(path)]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(("command", "package"), [("sample", "transformers"), ("tokenizer", "diffusers")])
def test_a_missing_peer_is_told_and_can_be_left_out(capsys, monkeypatch, tmp_path, command, package):
    monkeypatch.setitem(sys.modules, package, None)
    words = ["bench", command, "--preset", "tiny", "--repeats", "1", "--device", "cpu"]
    words += ["--strategy", "plain"] if command == "sample" else []
    assert main([*words, "--json", str(tmp_path / "report.json")]) == 1
    assert f"{package} is not installed" in (error := capsys.readouterr().err)
    assert "pip install 'imgtok[bench]'" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--no-peer"]) == 0


def test_works_take_turns_and_medians_are_told(monkeypatch):
    order: list[str] = []
    seconds = iter([1.0, 10.0, 3.0, 30.0, 2.0, 99.0])
    monkeypatch.setattr(measure, "timed", lambda work, device: (work(), next(seconds))[1])
    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert measure.alternate(works, 3, CPU) == {"a": 2.0, "b": 30.0}
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_memory_is_what_the_work_needed():
    """In a process of its own: one that has run other tests may have memory to use again."""
    held = 16 * 2**20 * 4
    words = "import torch\nfrom imgtok.sample import measure\nwork = lambda: torch.ones(16 * 2**20)\n"
    words += "print(measure.with_peak(work, torch.device('cpu'))[1])"
    told = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout.strip()
    assert told == "None" or 0.9 * held < int(told) < 2 * held


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), measure.cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_no_two_rows_of_a_filled_matrix_are_equal():
    with torch.device("meta"):
        layer = torch.nn.Linear(64, 20000)
    layer = measure.materialize(layer, CPU)
    assert len(layer.weight.unique(dim=0)) == 20000
    assert layer.weight.std() == pytest.approx(0.02, rel=0.01)
    assert not layer.bias.any()
