import pytest
import torch
from safetensors.torch import load_file

import imgtok
from imgtok import generators
from imgtok.hub import fingerprint


def test_an_export_holds_the_two_models_in_half_precision_and_samples(run, models, tmp_path):
    result = run("export", "--model", models / "generator", "--out", tmp_path / "pair")
    assert (result.status, result.err) == (0, "")
    assert "float16" in result.out
    written = sorted(str(path.relative_to(tmp_path / "pair")) for path in (tmp_path / "pair").rglob("*.*"))
    inside = [f"tokenizer/{name}" for name in ("config.json", "model.safetensors")]
    assert written == ["config.json", "model.safetensors", *inside]
    for file in (tmp_path / "pair").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    assert run("generate", "--model", tmp_path / "pair", "--out", tmp_path / "samples").status == 0


def test_in_full_precision_it_is_the_same_models(run, models, tmp_path):
    run("export", "--model", models / "generator", "--dtype", "float32", "--out", tmp_path / "pair")
    assert fingerprint(generators.load(tmp_path / "pair")) == fingerprint(generators.load(models / "generator"))
    own = imgtok.load(models / "generator" / "tokenizer")
    assert fingerprint(imgtok.load(tmp_path / "pair" / "tokenizer")) == fingerprint(own)


@pytest.mark.parametrize("preset", ["llamagen-gpt-b-256"])
def test_a_preset_is_not_exported(refused, preset, tmp_path):
    refused("loads by its name", "export", "--model", preset, "--out", tmp_path / "pair")
