import json

import pytest

import imgtok
from imgtok import config as configs
from imgtok import hub
from imgtok.train.config import LoopConfig, OptimizerConfig, TokenDataConfig
from imgtok.train.generator_config import GeneratorTraining, MaskedSizes, NextScaleSizes, TransformerSizes
from imgtok.train.posttrain import PictureDataConfig, PostTraining
from imgtok.train.recipes import POST_TRAININGS
from imgtok.train.run import train_generator

LOOP = LoopConfig(steps=2, batch_size=4, precision="no", log_every=1, ema_decay=0.0)
SIZES = {"width": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch, pictures):
    recipe = PostTraining(
        loop=LOOP, data=PictureDataConfig(source=str(pictures), val_share=0.3), optimizer=OptimizerConfig(lr=1e-3)
    )
    monkeypatch.setitem(POST_TRAININGS, "tiny", lambda: recipe)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, models, pictures):
    """A folder of generators that know the pictures' classes, by the kind that they are of."""
    root = tmp_path_factory.mktemp("trained")
    kinds = {
        "next-token": (TransformerSizes(**SIZES), models / "tokenizer"),
        "masked": (MaskedSizes(**SIZES), models / "tokenizer"),
        "next-scale": (NextScaleSizes(**SIZES), models / "next-scale" / "tokenizer"),
    }
    for name, (sizes, tokenizer) in kinds.items():
        training = GeneratorTraining(model=sizes, loop=LOOP, data=TokenDataConfig(source=str(pictures)))
        train_generator(training, tokenizer, root / name, device="cpu")
    return root


def pair(trained, kind="next-token"):
    return "--tokenizer", trained / kind / "tokenizer", "--generator", trained / kind


@pytest.mark.parametrize("kind", ["next-token", "masked", "next-scale"])
def test_from_a_pair_to_samples_with_the_new_decoder(run, trained, kind, tmp_path):
    out = tmp_path / "run"
    result = run("train", "posttrain", "tiny", *pair(trained, kind), "--out", out, "--device", "cpu")
    assert result.status == 0, result.err
    assert "val_loss" in result.out
    assert f"next: imgtok generate --model {trained / kind} --tokenizer {out} --out samples" in result.out
    samples = tmp_path / "samples"
    result = run("generate", "--model", trained / kind, "--tokenizer", out, "--num", 2, "--out", samples)
    assert result.status == 0, result.err
    assert (samples / "00001.png").is_file()
    assert imgtok.load(out).config == imgtok.load(trained / kind / "tokenizer").config


def test_values_of_the_recipe_are_changed_and_a_run_is_repeated_and_resumed(run, refused, trained, models, tmp_path):
    words = ("--preservation", 0.4, "--loop.steps", 3, "--no-reencode", "--clean-share", 0.5, "--loss.l1", 1)
    base = (*pair(trained), "--device", "cpu")
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("train", "posttrain", "tiny", *base, "--out", first, *words).status == 0
    config = configs.load(PostTraining, first / "train.json")
    assert (config.preservation, config.loop.steps, config.reencode, config.clean_share) == (0.4, 3, False, 0.5)
    assert run("train", "posttrain", "--config", first, *base, "--out", second).status == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert json.loads((first / "origins.json").read_text())["tokenizer"] == hub.fingerprint(
        imgtok.load(models / "tokenizer")
    )
    assert run("train", "posttrain", "--config", first, *base, "--out", first, "--resume").status == 0
    other = ("--tokenizer", models / "other-tokenizer", "--generator", trained / "next-token", "--device", "cpu")
    refused("is not the one that", "train", "posttrain", "--config", first, *other, "--out", first, "--resume")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("say which recipe first, robusttok-posttrain or ", []),
        ("did you mean 'quickstart-posttrain'?", ["quickstart-postrain"]),
        ("add --data", ["robusttok-posttrain"]),
        ("is neither a preset", ["tiny", "--generator", "missing"]),
        ("cannot be cut into 3 micro-batches", ["tiny", "--loop.accumulate", 3]),
    ],
)
def test_what_is_refused(refused, trained, tmp_path, part, words):
    given = pair(trained)[: 2 if "--generator" in words else 4]
    refused(part, "train", "posttrain", *words, *given, "--out", tmp_path / "run", "--device", "cpu")


def test_a_preservation_that_is_no_probability(run, trained, tmp_path):
    result = run("train", "posttrain", "tiny", *pair(trained), "--out", tmp_path / "run", "--preservation", 1.5)
    assert result.status == 2
    assert "preservation must be between 0" in result.out + result.err
    assert not (tmp_path / "run").exists()


def test_pairs_and_pictures_that_do_not_belong_together(refused, trained, models, pictures, tmp_path):
    rest = ("--out", tmp_path / "run", "--device", "cpu")
    maps = ("--tokenizer", models / "next-scale" / "tokenizer")
    refused(
        "they do not belong together", "train", "posttrain", "tiny", *maps, "--generator", trained / "masked", *rest
    )
    told = ("--tokenizer", models / "tokenizer", "--generator", models / "generator")
    refused("told 'category', but the pictures are labelled by class", "train", "posttrain", "tiny", *told, *rest)
    texts = ("--tokenizer", models / "tokenizer", "--generator", models / "text-generator")
    refused("is told texts", "train", "posttrain", "tiny", *texts, *rest)
    refused(
        "sort them into sub-folders",
        *("train", "posttrain", "tiny", *pair(trained), "--data", pictures / "cats", *rest),
    )


def test_help_names_recipes_and_values(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run("train", "posttrain", "--help")
    assert all(part in result.out for part in ("quickstart-posttrain", "--generator STR", "needs --data"))
    result = run("train", "posttrain", "quickstart-posttrain", "--help")
    assert all(part in result.out for part in ("--preservation FLOAT", "--guidance.scale FLOAT", "--loss.perceptual"))
