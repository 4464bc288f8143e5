import json
import logging
from dataclasses import replace

import pytest
import torch

import imgtok
from imgtok import config as configs
from imgtok import generators, hub
from imgtok.sample.commands import train as command
from imgtok.train.config import ImageDataConfig, LoopConfig, TokenDataConfig, TokenizerTraining
from imgtok.train.generator_config import GeneratorTraining
from imgtok.train.generator_config import TransformerSizes as Sizes
from imgtok.train.loop import Diverged, Stopped
from imgtok.train.recipes import GENERATORS, TOKENIZERS

LOOP = LoopConfig(steps=2, batch_size=4, precision="no", log_every=1)
# The quickstart recipe, cut down on the command line.
SMALL = (
    *("--tokenizer.image-size", 16, "--tokenizer.quantizer.codebook-size", 32),
    *("--tokenizer.backbone.encoder-widths", 8, "--tokenizer.backbone.encoder-blocks", 1),
    *("--tokenizer.backbone.decoder-widths", 8, 8, "--tokenizer.backbone.decoder-blocks", 1, 1),
    *("--tokenizer.backbone.latent-channels", 8, "--tokenizer.backbone.norm-groups", 4),
    *("--loop.steps", 3, "--loop.batch-size", 4, "--device", "cpu"),
)


@pytest.fixture(autouse=True)
def tiny_recipes(monkeypatch, tokenizer_config, pictures):
    tokenizer = TokenizerTraining(tokenizer=tokenizer_config, loop=LOOP, data=ImageDataConfig(source=str(pictures)))
    model = Sizes(width=16, depth=1, num_heads=2, mlp_hidden=16)
    generator = GeneratorTraining(model=model, loop=LOOP, data=TokenDataConfig(source=str(pictures)))
    monkeypatch.setitem(TOKENIZERS, "tiny", lambda: tokenizer)
    monkeypatch.setitem(TOKENIZERS, "no-data", lambda: replace(tokenizer, data=ImageDataConfig(source=".")))
    monkeypatch.setitem(GENERATORS, "tiny", lambda: generator)


@pytest.fixture
def train(run):
    """Trains on the CPU and returns the result."""

    def train(kind, *words):
        result = run("train", kind, *words, "--device", "cpu")
        assert result.status == 0, result.err
        return result

    return train


def settings(folder):
    return json.loads((folder / "train.json").read_text())


def test_from_a_folder_of_pictures_to_samples(run, train, pictures, tmp_path):
    tokenizer, generator, samples = (tmp_path / name for name in ("tokenizer", "generator", "samples"))
    result = train("tokenizer", "quickstart", "--data", pictures, "--out", tokenizer, *SMALL, "--threads", 1)
    assert "trained in" in result.out
    assert f"next: imgtok reconstruct photos --model {tokenizer}" in result.out
    assert f"or: imgtok train generator quickstart --tokenizer {tokenizer} --data {pictures}" in result.out
    assert imgtok.load_config(tokenizer).quantizer.codebook_size == 32

    words = ("--model.width", 16, "--model.depth", 1, "--model.num-heads", 2, "--loop.steps", 2, "--loop.batch-size", 4)
    result = train("generator", "quickstart", "--tokenizer", tokenizer, "--data", pictures, "--out", generator, *words)
    assert f"next: imgtok generate --model {generator} --out samples" in result.out
    assert generators.load_config(generator).condition.labels[0].values == ("cats", "dogs & more")

    assert run("generate", "--model", generator, "--label", "class=cats", "--num", 2, "--out", samples).status == 0
    assert {"00000.png", "00001.png", "grid.png"} < {path.name for path in samples.iterdir()}


def test_the_image_size_can_be_changed(train, pictures, tmp_path):
    train("tokenizer", "tiny", "--out", tmp_path / "run", "--tokenizer.image-size", 8)
    assert imgtok.load(tmp_path / "run").config.layout.num_tokens == 4


def test_overrides_of_every_kind_reach_the_run(train, tmp_path):
    words = ("--optimizer.lr", 3e-3, "--optimizer.betas", 0.8, 0.9, "--data.no-flip", "--loop.seed", 7)
    train("tokenizer", "tiny", "--out", tmp_path / "run", *words, "--loss.l1", 1, "--loop.precision", "bf16")
    config = configs.load(TokenizerTraining, tmp_path / "run" / "train.json")
    assert (config.optimizer.lr, config.optimizer.betas) == (3e-3, (0.8, 0.9))
    assert (config.data.flip, config.loop.seed, config.loss.l1, config.loop.precision) == (False, 7, 1.0, "bf16")


@pytest.mark.parametrize("form", [(), ("train.json",)])
def test_a_run_is_repeated_from_its_configuration(train, tmp_path, form):
    train("tokenizer", "tiny", "--out", tmp_path / "first", "--loop.seed", 3)
    train("tokenizer", f"--config={tmp_path.joinpath('first', *form)}", "--out", tmp_path / "second")
    assert settings(tmp_path / "first") == settings(tmp_path / "second")
    first, second = (imgtok.load(tmp_path / name).state_dict() for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_repeated_run_may_differ_in_a_value(train, models, tmp_path):
    pair = ("--tokenizer", models / "tokenizer")
    train("generator", "tiny", *pair, "--out", tmp_path / "first")
    train("generator", "--config", tmp_path / "first", *pair, "--out", tmp_path / "second", "--model.depth", 2)
    assert settings(tmp_path / "second") == {
        **settings(tmp_path / "first"), "model": {**settings(tmp_path / "first")["model"], "depth": 2}
    }  # fmt: skip


def test_data_in_either_form(train, pictures, tmp_path):
    train("tokenizer", "no-data", "--data", pictures / "cats", "--out", tmp_path / "a")
    train("tokenizer", "no-data", "--data.source", pictures / "cats", "--out", tmp_path / "b")
    assert settings(tmp_path / "a") == settings(tmp_path / "b")


def test_a_finished_run_may_be_resumed_and_only_by_asking(train, refused, tmp_path):
    out = ("--out", tmp_path / "run")
    refused("there is no run to resume", "train", "tokenizer", "tiny", *out, "--resume")
    train("tokenizer", "tiny", *out)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    refused("already holds a run; add --resume", "train", "tokenizer", "tiny", *out)
    refused("with other settings than these", "train", "tokenizer", "tiny", *out, "--resume", "--loop.steps", 5)
    train("tokenizer", "tiny", *out, "--resume")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_resumed_generator_keeps_its_tokenizer(train, refused, models, tmp_path):
    words = ("tiny", "--out", tmp_path / "run")
    train("generator", *words, "--tokenizer", models / "tokenizer")
    assert hub.fingerprint(imgtok.load(tmp_path / "run" / "tokenizer")) == hub.fingerprint(
        imgtok.load(models / "tokenizer")
    )
    other = ("--tokenizer", models / "other-tokenizer")
    refused("is not the one that", "train", "generator", *words, *other, "--resume")
    train("generator", *words, "--tokenizer", models / "tokenizer", "--resume")


def test_a_stopped_run_says_how_to_go_on(run, monkeypatch, tmp_path):
    def stop(*_, **__):
        raise Stopped("tokenizer stopped after step 7; the same command with --resume goes on")

    monkeypatch.setattr(command, "train_tokenizer", stop)
    result = run("train", "tokenizer", "tiny", "--out", tmp_path / "run")
    assert (result.status, result.out) == (130, "")
    assert (
        result.err == "imgtok train tokenizer: tokenizer stopped after step 7; the same command with --resume goes on\n"
    )


def test_a_diverged_run_is_one_line(refused, monkeypatch, tmp_path):
    def diverge(*_, **__):
        raise Diverged("generator: the loss became infinite or not a number before step 7")

    monkeypatch.setattr(command, "train_tokenizer", diverge)
    refused("became infinite", "train", "tokenizer", "tiny", "--out", tmp_path / "run")


def test_of_several_processes_only_the_first_speaks(run, monkeypatch, tmp_path):
    outcome = command.Outcome(None, {}, 1.0, 1.0)
    monkeypatch.setattr(command, "train_tokenizer", lambda *_, **__: outcome)
    assert "trained" in run("train", "tokenizer", "tiny", "--out", tmp_path / "run").out
    monkeypatch.setenv("RANK", "1")
    try:
        assert run("train", "tokenizer", "tiny", "--out", tmp_path / "run") == (0, "", "")
    finally:
        logging.getLogger("imgtok").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("say which recipe first, quickstart or ", []),
        ("say which recipe first", ["--loop.steps", 3]),
        ("say which recipe first", ["--config"]),
        ("did you mean 'quickstart'?", ["quikstart"]),
        ("there is no tokenizer recipe 'zzz'; there are quickstart, ", ["zzz"]),
        ("add --data", ["no-data"]),
        ("add --data", ["llamagen-vq-f16"]),
        (
            "--data emoji64 and --data.source photos contradict",
            ["tiny", "--data", "emoji64", "--data.source", "photos"],
        ),
        ("neither an embedded set nor an existing folder", ["tiny", "--data", "missing"]),
        ("--threads must be at least 1", ["tiny", "--threads", 0]),
        ("exclude each other", ["tiny", "--config", "earlier"]),
        ("there is no such file", ["--config", "missing.json"]),
        ("cannot be cut into 3 micro-batches", ["tiny", "--loop.accumulate", 3]),
    ],
)
def test_what_train_tokenizer_refuses(refused, tmp_path, part, words):
    refused(part, "train", "tokenizer", *words, "--out", tmp_path / "run")


def test_configurations_that_are_none(refused, tmp_path):
    path, out = tmp_path / "train.json", ("--out", tmp_path / "run")
    path.write_text('{"type": "TokenizerTraining"}')
    refused("needs the field 'tokenizer'", "train", "tokenizer", "--config", path, *out)
    path.write_text('{"type": "GeneratorTraining"}')
    refused("is none of TokenizerTraining", "train", "tokenizer", "--config", path, *out)
    path.write_text("steps: 3")
    refused("is not valid JSON", "train", "tokenizer", "--config", path, *out)


def test_folders_that_hold_something_else(refused, pictures, models, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("has no images", "train", "tokenizer", "tiny", "--data", tmp_path / "empty", "--out", tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    refused("is a file", "train", "tokenizer", "tiny", "--out", tmp_path / "file")
    (tmp_path / "photo.txt").write_text("mine")
    refused("is not empty and holds no run", "train", "tokenizer", "tiny", "--out", tmp_path)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("neither a preset nor a folder", ["--tokenizer", "missing"]),
        ("each must divide the former", ["--model.num-heads", 3]),
        ("divisible by 4, got 2", ["--model.num-heads", 8]),
        ("cannot be cut into 3 micro-batches", ["--loop.accumulate", 3]),
    ],
)
def test_what_train_generator_refuses(refused, models, tmp_path, part, words):
    if "--tokenizer" not in words:
        words = ["--tokenizer", models / "tokenizer", *words]
    refused(part, "train", "generator", "tiny", "--out", tmp_path / "run", *words)


def test_a_damaged_tokenizer_is_found_before_anything_is_written(refused, models, tmp_path):
    broken = tmp_path / "tokenizer"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        (broken / name).write_bytes((models / "tokenizer" / name).read_bytes())
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:99])
    refused("cannot be read as weights", "train", "generator", "tiny", "--tokenizer", broken, "--out", tmp_path / "run")


def test_a_mistyped_option_is_answered_with_the_nearest(run, tmp_path):
    result = run("train", "tokenizer", "tiny", "--out", tmp_path / "run", "--optimiser.lr", 1)
    assert result.status == 2
    assert "--optimizer.lr FLOAT" in result.out + result.err
    assert run("train", "tokenizer", "tiny", "--out", tmp_path / "run", "--loop.steps", 0).status == 2
    assert run("train", "tokenizer", "tiny", "--out", tmp_path / "run", "--loop.steps", "many").status == 2
    assert not (tmp_path / "run").exists()


def test_help_at_every_level(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    parts = {
        ("train", "tokenizer"): ("quickstart", "2 steps of 4, ", "needs --data", "--resume", "--config"),
        ("train", "generator"): ("llamagen-gpt-xl", "--tokenizer STR", "--resume"),
        ("train", "tokenizer", "quickstart"): (
            "--optimizer.lr FLOAT",
            "Highest learning rate of AdamW. (default: 0.002)",
            "--out",
        ),
        ("train", "generator", "tiny"): ("--model.width INT", "(default: 16)", "--tokenizer STR"),
    }
    for words, expected in parts.items():
        result = run(*words, "--help")
        assert result.status == 0
        assert all(part in result.out for part in expected), result.out
