"""imgtok generate with next-scale generators: a second model, and mixtures of codes."""

from __future__ import annotations

import json

import pytest

from imgtok import hub
from imgtok.generators.next_scale import NextScaleConfig

from .conftest import filled
from .test_generate import images, same


@pytest.fixture(scope="module")
def small(models, tmp_path_factory):
    """A draft model that is often wrong."""
    config = hub.find_config(models / "next-scale", (NextScaleConfig,), {})
    folder = tmp_path_factory.mktemp("small")
    hub.save(filled(config, 7), folder)
    return folder


def test_drafted_stages_give_the_same_images_in_fewer_calls(run, models, small, tmp_path):
    words = ("generate", "--model", models / "next-scale", "--num", 3, "--guidance-schedule", "linear")
    assert run(*words, "--out", tmp_path / "plain").status == 0
    for name, draft, calls in (("own", models / "next-scale", 1), ("small", small, 3)):
        result = run(*words, "--strategy", "staged-draft", "--draft-model", draft, "--out", tmp_path / name)
        assert (result.status, result.err) == (0, "")
        assert f"{calls}.0 network calls an image" in result.out
        assert "draft" in result.out
        assert same(images(tmp_path / name), images(tmp_path / "plain"))
    settings = json.loads((tmp_path / "own" / "samples.json").read_text())
    assert (settings["strategy"], settings["draft_stages"], settings["smooth"]) == ("staged-draft", None, False)


def test_a_smaller_model_draws_the_last_stages(run, models, small, tmp_path):
    words = ("generate", "--model", models / "next-scale", "--num", 3)
    tail = ("--strategy", "smaller-tail", "--draft-model", small, "--draft-stages")
    assert run(*words, "--out", tmp_path / "plain").status == 0
    for stages in (1, 2):
        assert run(*words, *tail, stages, "--out", tmp_path / str(stages)).status == 0
        assert not same(images(tmp_path / str(stages)), images(tmp_path / "plain"))
    assert not same(images(tmp_path / "1"), images(tmp_path / "2"))


def test_mixtures_give_other_images(run, models, tmp_path):
    words = ("generate", "--model", models / "next-scale", "--num", 3)
    for name, option in (("plain", ()), ("smooth", ("--smooth",))):
        assert run(*words, *option, "--out", tmp_path / name).status == 0
    assert not same(images(tmp_path / "plain"), images(tmp_path / "smooth"))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("--strategy staged-draft needs --draft-model", ["--strategy", "staged-draft"]),
        ("--strategy draft is for next-token generators", ["--strategy", "draft", "--draft-model", "SMALL"]),
        ("--window is for next-token generators", ["--strategy", "plain", "--window", 4]),
        ("--draft-stages 2 is of no use to --strategy auto", ["--draft-stages", 2]),
        ("at least 1 and less than all 3, got 3", [*"--strategy staged-draft --draft-stages 3".split(), "SMALL"]),
        ("compares tokens", ["--strategy", "staged-draft", "--smooth", "SMALL"]),
        ("is no next-scale generator", ["--strategy", "smaller-tail", "--draft-model", "NEXT-TOKEN"]),
    ],
)
def test_what_does_not_go_together_is_refused(refused, models, small, tmp_path, part, words):
    known = {"SMALL": [small] if "--draft-model" in words else ["--draft-model", small]}
    known["NEXT-TOKEN"] = [models / "generator"]
    filled_in = [each for word in words for each in known.get(word, [word])]
    refused(part, "generate", "--model", models / "next-scale", "--out", tmp_path / "out", *filled_in)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("--smooth is for next-scale generators", ["--smooth"]),
        ("--draft-stages is for next-scale generators", ["--draft-stages", 2]),
        ("--strategy smaller-tail is for next-scale generators", ["--strategy", "smaller-tail", "--draft-model", "x"]),
    ],
)
def test_a_next_token_generator_has_no_stages(refused, models, tmp_path, part, words):
    refused(part, "generate", "--model", models / "generator", "--out", tmp_path / "out", *words)


def test_both_kinds_are_listed(run):
    result = run("strategies")
    assert result.status == 0
    next_token, next_scale = result.out.split("next-scale generators:")
    assert next_token.startswith("next-token generators:")
    assert "jacobi" in next_token
    assert "staged-draft  pathwise   --draft-model" in next_scale
    assert "smaller-tail  relaxed    --draft-model" in next_scale
