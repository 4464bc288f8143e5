import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from imgtok import hub
from imgtok.data import read_picture

CLASSES = ["Food & Drink", "Flags", "Objects"]


def images(folder):
    return [read_picture(path).int() for path in sorted(folder.glob("[0-9]*.png"))]


def same(one, other):
    """Up to one grey level: convolutions over batches of other sizes round otherwise."""
    return len(one) == len(other) and all((a - b).abs().max() <= 1 for a, b in zip(one, other, strict=True))


def conditions(folder):
    return [image["condition"] for image in json.loads((folder / "samples.json").read_text())["images"]]


def test_without_labels_every_class_of_the_first_label_set_is_drawn_once(run, models, tmp_path):
    result = run("generate", "--model", models / "generator", "--out", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    assert "3 images" in result.out
    for told in (
        "images/s",
        "tokens/s",
        "network calls an image",
        "tokens gained a call: ",
        "model",
        "couple",
        "memory",
    ):
        assert told in result.out
    names = ["00000.png", "00001.png", "00002.png", "grid.png", "samples.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert conditions(tmp_path / "out") == [{"category": name} for name in CLASSES]
    assert all(image.shape == (3, 16, 16) for image in images(tmp_path / "out"))


def test_classes_start_again_where_more_images_are_asked_for(run, models, tmp_path):
    run("generate", "--model", models / "generator", "--num", 5, "--out", tmp_path)
    assert [row["category"] for row in conditions(tmp_path)] == [*CLASSES, *CLASSES[:2]]


def test_an_image_does_not_depend_on_batch_size_and_number(run, models, tmp_path):
    for name, batch_size, num in (("a", 1, 7), ("b", 3, 7), ("c", 16, 5)):
        words = ("--num", num, "--batch-size", batch_size, "--seed", -3, "--out", tmp_path / name)
        assert run("generate", "--model", models / "generator", *words).status == 0
    assert same(images(tmp_path / "a"), images(tmp_path / "b"))
    assert same(images(tmp_path / "a")[:5], images(tmp_path / "c"))
    assert not same(images(tmp_path / "a")[:1], images(tmp_path / "a")[3:4])


@pytest.mark.parametrize(
    "words",
    [
        ("--strategy", "plain"),
        ("--strategy", "jacobi", "--window", 3),
        ("--strategy", "branched"),
        ("--strategy", "recalling", "--batch-size", 2),
    ],
)
def test_a_faster_way_gives_the_same_images(run, models, tmp_path, words):
    common = ("generate", "--model", models / "generator", "--num", 5, "--top-k", 9, "--out")
    assert run(*common, tmp_path / "auto").status == 0
    assert run(*common, tmp_path / "other", *words).status == 0
    assert same(images(tmp_path / "auto"), images(tmp_path / "other"))


def test_a_draft_model_saves_calls(run, models, tmp_path):
    words = ("--strategy", "draft", "--draft-model", models / "generator", "--out", tmp_path)
    result = run("generate", "--model", models / "generator", *words)  # its own drafts are all right
    assert (result.status, result.err) == (0, "")
    calls = float(result.out.split("\n")[1].split(" network calls")[0])
    assert calls < 8


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("--strategy jakobi is unknown; choose from auto, plain, jacobi", ["--strategy", "jakobi"]),
        ("--window must be at least 1, got 0", ["--strategy", "jacobi", "--window", 0]),
        ("--window is chosen by --strategy auto", ["--window", 4]),
        ("strategy 'plain' has no window to choose", ["--strategy", "plain", "--window", 4]),
        ("--epsilon must be between 0 and 1, got 1.5", ["--epsilon", 1.5]),
        ("--strategy draft needs --draft-model", ["--strategy", "draft"]),
        ("is of no use to --strategy auto", ["--draft-model", "x"]),
        ("depth must be at least 1 and less than", ["--strategy", "early-exit", "--exit-depth", 99]),
        ("min_p must be", ["--min-p", 2]),
    ],
)
def test_a_way_that_there_is_not_is_refused_and_nothing_written(refused, models, tmp_path, part, words):
    refused(part, "generate", "--model", models / "generator", "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_next_scale_generator_draws_stage_by_stage(run, refused, models, tmp_path):
    words = ("generate", "--model", models / "next-scale", "--num", 5, "--guidance-schedule", "linear")
    for name, batch_size in (("one", 1), ("all", 5)):
        result = run(*words, "--batch-size", batch_size, "--out", tmp_path / name)
        assert (result.status, result.err) == (0, "")
        assert "3.0 network calls an image" in result.out
    assert same(images(tmp_path / "one"), images(tmp_path / "all"))
    for word, option in (("--strategy jacobi", ("--strategy", "jacobi")), ("--compile", ("--compile",))):
        refused(f"{word} is for next-token generators", *words, *option, "--out", tmp_path / "refused")
    refused("draws 3 maps of tokens an image but the tokenizer has 1", *words, "--tokenizer", models / "tokenizer")


def test_a_masked_generator_draws_in_as_many_steps_as_asked_for(run, refused, models, tmp_path):
    words = ("generate", "--model", models / "masked", "--num", 5, "--guidance-schedule", "linear")
    words += ("--unmasking-steps", 6, "--unmasking-noise", 2.5, "--unmasking-anneal")
    for name, batch_size in (("one", 1), ("all", 5)):
        result = run(*words, "--batch-size", batch_size, "--out", tmp_path / name)
        assert (result.status, result.err) == (0, "")
        assert "6.0 network calls an image" in result.out
    assert same(images(tmp_path / "one"), images(tmp_path / "all"))
    settings = json.loads((tmp_path / "all" / "samples.json").read_text())
    assert settings["unmasking"] == {"type": "Unmasking", "steps": 6, "noise": 2.5, "anneal": True}
    refused("next-token generators of a sequence can stop early", *words, "--num-tokens", 2, "--out", tmp_path / "x")
    refused("--strategy jacobi is for", *words, "--strategy", "jacobi", "--out", tmp_path / "refused")
    refused("unmasking steps must be at least 1, got 0", *words, "--unmasking-steps", 0, "--out", tmp_path / "no")


def test_a_next_scale_generator_is_no_draft_model(refused, models, tmp_path):
    words = ("--strategy", "draft", "--draft-model", models / "next-scale", "--out", tmp_path / "out")
    refused("needs one that draws token by token", "generate", "--model", models / "generator", *words)


def test_another_seed_gives_other_images(run, models, tmp_path):
    for seed in (0, 10**30):
        run("generate", "--model", models / "generator", "--seed", seed, "--out", tmp_path / str(seed))
    assert not same(images(tmp_path / "0"), images(tmp_path / str(10**30)))


def test_labels_are_named_or_numbered_and_the_others_are_null(run, models, tmp_path):
    for name, label in (("named", "category=Food & Drink"), ("numbered", "category=0")):
        run("generate", "--model", models / "generator", "--label", label, "--out", tmp_path / name)
    assert conditions(tmp_path / "named") == conditions(tmp_path / "numbered") == [{"category": "Food & Drink"}] * 8
    assert same(images(tmp_path / "named"), images(tmp_path / "numbered"))


def test_several_labels_together(run, models, tmp_path):
    labels = ("--label", "category=Flags", "--label", "style=noto")
    assert run("generate", "--model", models / "generator", *labels, "--num", 2, "--out", tmp_path).status == 0
    assert conditions(tmp_path) == [{"category": "Flags", "style": "noto"}] * 2


def test_the_settings_are_written_beside_the_images(run, models, tmp_path):
    words = ("--guidance", 1.5, "--guidance-schedule", "cosine", "--guidance-steps", 4, "--top-k", 9, "--top-p", 0.9)
    run("generate", "--model", models / "generator", *words, "--temperature", 0.8, "--seed", 5, "--out", tmp_path)
    settings = json.loads((tmp_path / "samples.json").read_text())
    assert settings["seed"] == 5
    assert settings["guidance"] == {
        "type": "Guidance", "scale": 1.5, "schedule": "cosine", "power": 1.0, "steps": 4
    }  # fmt: skip
    assert settings["law"] == {"type": "Law", "temperature": 0.8, "top_k": 9, "top_p": 0.9} | {
        "min_p": 0.0,
        "typical": 1.0,
        "top_h": 0.0,
    }
    assert (settings["strategy"], settings["window"], settings["draft_model"]) == ("auto", None, None)
    assert settings["tokenizer"] == str(models / "generator" / "tokenizer")
    assert settings["images"][1] == {"file": "00001.png", "condition": {"category": "Flags"}}


def test_overwriting_leaves_no_image_of_the_earlier_run(run, refused, models, tmp_path):
    words = ("generate", "--model", models / "generator", "--out", tmp_path)
    run(*words, "--num", 4)
    refused("--overwrite", *words, "--num", 2)
    (tmp_path / "notes.txt").write_text("mine")
    assert run(*words, "--num", 2, "--no-grid", "--overwrite").status == 0
    names = ["00000.png", "00001.png", "notes.txt", "samples.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_reduced_precision_works(run, models, tmp_path):
    words = ("generate", "--model", models / "generator", "--dtype", "bfloat16", "--out", tmp_path)
    assert run(*words, "--device", "cpu").status == 0
    assert len(images(tmp_path)) == 3


def write_features(path, rows=2, slots=3, width=6):
    dice = torch.Generator().manual_seed(0)
    visible = torch.arange(slots).expand(rows, -1) >= 1
    features = torch.randn(rows, slots, width, generator=dice) * visible[..., None]
    save_file({"features": features, "visible": visible}, path)
    return path


def test_texts_come_as_features(run, models, tmp_path):
    features = write_features(tmp_path / "features.safetensors")
    pair = ("--model", models / "text-generator", "--tokenizer", models / "tokenizer")
    assert run("generate", *pair, "--features", features, "--num", 3, "--out", tmp_path / "out").status == 0
    assert conditions(tmp_path / "out") == [{"caption": 0}, {"caption": 1}, {"caption": 0}]
    assert run("generate", *pair, "--features", features, "--out", tmp_path / "default").status == 0
    assert same(images(tmp_path / "default"), images(tmp_path / "out")[:2])


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("--num must be at least 1, got 0", ["--num", 0]),
        ("--batch-size must be at least 1", ["--batch-size", 0]),
        ("--threads must be at least 1", ["--threads", 0]),
        ("top_p must be above 0 and at most 1, got 0.0", ["--top-p", 0]),
        ("top_k must be 0 (all) or more, got -1", ["--top-k", -1]),
        ("temperature must be 0 or more", ["--temperature", -0.5]),
        ("temperature must be 0 or more", ["--temperature", "nan"]),
        ("guidance scale must be a finite number", ["--guidance", "nan"]),
        ("guidance steps must be 0 or more", ["--guidance-steps", -1]),
        ("guidance power must be above 0", ["--guidance-power", 0]),
        ("knows category (3 classes), style (2 classes)", ["--label", "colour=red"]),
        ("must be NAME=VALUE", ["--label", "Flags"]),
        ("category 'Food' is unknown; choose from Food & Drink, Flags, Objects", ["--label", "category=Food"]),
        ("category '3' is unknown", ["--label", "category=3"]),
        ("category was given twice", ["--label", "category=1", "--label", "category=2"]),
        ("told labels, not texts", ["--features", "captions.safetensors"]),
        ("--weights some.pt is for a preset", ["--weights", "some.pt"]),
        ("--tokenizer-weights some.pt is for a preset", ["--tokenizer-weights", "some.pt"]),
        ("neither a preset nor a folder", ["--tokenizer", "nowhere"]),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(refused, models, tmp_path, part, words):
    refused(part, "generate", "--model", models / "generator", "--out", tmp_path / "out", *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(refused, models, tmp_path):
    refused("use cpu or auto", "generate", "--model", models / "generator", "--out", tmp_path, "--device", "cuda")


def test_models_that_cannot_be_used(refused, models, tmp_path, tokenizer_config):
    out = ("--out", tmp_path / "out")
    refused("neither a preset nor a folder", "generate", "--model", "llamagen-gpt-q", *out)
    refused("'TokenizerConfig' is none of GeneratorConfig", "generate", "--model", models / "tokenizer", *out)
    refused("give --features FILE", "generate", "--model", models / "text-generator", *out)
    refused("told texts", "generate", "--model", models / "text-generator", "--label", "a=b", *out)
    refused("told texts", "generate", "--model", "llamagen-gpt-xl-t2i-256", *out)
    refused("no weights were published", "generate", "--model", "llamagen-gpt-xl-256", "--num", 1, *out)


def test_a_generator_without_tokenizer_and_one_with_other_codes(refused, run, models, tmp_path, tokenizer_config):
    features = write_features(tmp_path / "features.safetensors")
    text = ("generate", "--model", models / "text-generator", "--features", features, "--out", tmp_path / "out")
    refused("comes without its tokenizer", *text)
    small = replace(tokenizer_config, quantizer=replace(tokenizer_config.quantizer, codebook_size=8))
    hub.save(small.build(), tmp_path / "small")
    refused("do not belong together", *text, "--tokenizer", tmp_path / "small")


def test_features_of_another_shape_or_name(refused, models, tmp_path):
    pair = ("--model", models / "text-generator", "--tokenizer", models / "tokenizer", "--out", tmp_path / "out")
    narrow = write_features(tmp_path / "narrow.safetensors", width=5)
    refused("it holds shapes (2, 3, 5) and (2, 3)", "generate", *pair, "--features", narrow)
    save_file({"embeddings": torch.ones(1)}, tmp_path / "other.safetensors")
    refused("it holds embeddings", "generate", *pair, "--features", tmp_path / "other.safetensors")
    refused("no weights file", "generate", *pair, "--features", tmp_path / "missing.safetensors")


def test_damaged_weights(refused, models, tmp_path):
    folder = tmp_path / "generator"
    folder.mkdir()
    (folder / "config.json").write_bytes((models / "generator" / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((models / "generator" / "model.safetensors").read_bytes()[:-100])
    words = ("generate", "--model", folder, "--tokenizer", models / "tokenizer", "--out", tmp_path / "out")
    refused("cannot be read as weights", *words)
    (folder / "config.json").write_text('{"type": "GeneratorConfig", "widht": 3}')
    refused("did you mean 'width'?", *words)


def test_an_output_that_is_a_file(refused, models, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused("is a file", "generate", "--model", models / "generator", "--out", tmp_path / "out")
    refused("no folder that you may write to", "generate", "--model", models / "generator", "--out", tmp_path / "out/x")


def test_a_mistyped_option_is_answered_with_the_nearest(run, models):
    result = run("generate", "--model", models / "generator", "--guidence", 2)
    assert result.status == 2
    assert "--guidance" in result.out + result.err


def test_the_help_names_every_default(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = run("generate", "--help")
    assert result.status == 0
    for part in ("--label", "repeatable", "(default: samples)", "(default: emoji64-gpt)", "--no-grid"):
        assert part in result.out
