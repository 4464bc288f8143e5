"""Saving and loading: equal models, strict errors, nothing executed, one sentence for what went wrong."""

import argparse
import os
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file

import imgtok
from imgtok import generators, hub
from imgtok.backbones.cnn import CNNConfig
from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.preset import Preset, Weights
from imgtok.presets import PRESETS
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.tokens import GridLayout

CNN = CNNConfig(
    encoder_widths=(8, 16), decoder_widths=(8, 8), encoder_blocks=(1, 2), decoder_blocks=(2, 1), norm_groups=4
)
CONFIG = TokenizerConfig(image_size=8, backbone=CNN, quantizer=VectorConfig(codebook_size=16, codebook_dim=4))


@pytest.fixture
def tokenizer() -> Tokenizer:
    return CONFIG.build().eval()


@pytest.fixture
def preset(monkeypatch) -> str:
    """A preset whose published names are ours."""
    row = Preset(
        config=CONFIG,
        convert=dict,
        paper="arXiv:1711.00937",
        code="nobody/nothing (MIT)",
        weights=Weights(repo="nobody/nothing", file="tiny.pt", licence="CC-BY-4.0"),
    )
    monkeypatch.setitem(PRESETS, "tiny", row)
    return "tiny"


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_comes_back_equal(tokenizer, tmp_path):
    imgtok.save(tokenizer, tmp_path / "model")
    back = imgtok.load(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert back.config == tokenizer.config == imgtok.load_config(tmp_path / "model")
    assert same_weights(back, tokenizer)
    assert not back.training
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(back.reconstruct(images), tokenizer.reconstruct(images))


@pytest.mark.parametrize(
    "condition",
    [
        LabelConditionConfig(labels=(Label(size=3, values=("a", "b", "c")), Label(name="style", size=2, drop=0.1))),
        TextConditionConfig(num_slots=3, feature_dim=5),
    ],
)
def test_a_saved_generator_comes_back_equal(condition, tmp_path):
    config = GeneratorConfig(
        layout=GridLayout(2, 3), codebook_size=7, condition=condition, width=16, depth=1, num_heads=2, num_kv_heads=1
    )
    generator = config.build().eval()
    imgtok.save(generator, tmp_path / "model")
    back = generators.load(tmp_path / "model")
    assert back.config == config == generators.load_config(tmp_path / "model")
    assert same_weights(back, generator)
    assert not back.training


def test_gradients_reach_a_loaded_model(tokenizer, tmp_path):
    imgtok.save(tokenizer, tmp_path)
    assert all(parameter.requires_grad for parameter in imgtok.load(tmp_path).parameters())


def test_a_model_loads_in_the_wanted_precision(tokenizer, tmp_path):
    imgtok.save(tokenizer, tmp_path)
    back = imgtok.load(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}


def test_an_interrupted_save_leaves_the_old_model(tokenizer, tmp_path, monkeypatch):
    imgtok.save(tokenizer, tmp_path / "model")
    write_model = hub.write_model

    def interrupted(model, folder):
        write_model(model, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "write_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        imgtok.save(CONFIG.build(), tmp_path / "model")
    assert same_weights(imgtok.load(tmp_path / "model"), tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(ValueError, match=r"'llamagen-vq-f61' is neither .* llamagen-vq-f16, "):
        imgtok.load("llamagen-vq-f61")


def test_a_folder_without_weights_is_told(tokenizer, tmp_path):
    imgtok.save(tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights file at .*model\.safetensors"):
        imgtok.load(tmp_path)


# -- strictness -------------------------------------------------------------------------------------------------------


def test_all_misfits_are_listed_together(tokenizer, tmp_path):
    imgtok.save(tokenizer, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["to_codes.bias"], state["quantizer.embedding.weight"]
    state["stray.weight"] = torch.zeros(1)
    state["from_codes.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        imgtok.load(tmp_path)
    message = str(caught.value)
    assert "missing: quantizer.embedding.weight, to_codes.bias" in message
    assert "unexpected: stray.weight" in message
    assert "misshapen: from_codes.bias (3,) instead of (256,)" in message
    assert "Tokenizer" in message and str(tmp_path) in message


def test_a_long_list_of_misfits_is_cut(tmp_path, preset):
    torch.save({"stray": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"missing: .* and \d+ more; unexpected: stray"):
        imgtok.load(preset, weights=tmp_path / "w.pt")


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_one_error(tokenizer, tmp_path, preset, suffix, kept):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tokenizer.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"weights{suffix} (cannot be read as weights|holds no state dict)") as caught:
        imgtok.load(preset, weights=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_truncated_file_in_the_old_format_is_one_error(tokenizer, tmp_path, preset, kept):
    path = tmp_path / "weights.pth"
    torch.save(tokenizer.state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"weights\.pth cannot be read as weights"):
        imgtok.load(preset, weights=path)


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_of_something_else_is_one_error(tmp_path, preset, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        imgtok.load(preset, weights=path)


def test_a_missing_file_is_one_error(tmp_path, preset):
    with pytest.raises(ValueError, match="no weights file at"):
        imgtok.load(preset, weights=tmp_path / "nowhere.pt")


@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_malicious_file_is_refused_and_not_executed(tokenizer, tmp_path, preset, place, form):
    evil, state = Evil(tmp_path / "executed"), tokenizer.state_dict()
    content = {"alone": evil, "beside": {"model": state, "args": evil}, "inside": {**state, "evil": evil}}[place]
    path = tmp_path / "weights.pt"
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="cannot be read as weights"):
        imgtok.load(preset, weights=path)
    assert not evil.marker.exists()
    if form == "pickle" and place == "alone":  # the trap itself works
        pickle.loads(path.read_bytes())
        assert evil.marker.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_published_file_loads_by_its_preset(tokenizer, tmp_path, preset, suffix):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tokenizer.state_dict(), path)
    assert same_weights(imgtok.load(preset, weights=path), tokenizer)
    assert same_weights(imgtok.load(preset, weights=str(path)), tokenizer)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", "ema"])
def test_a_wrapped_state_dict_is_found(tokenizer, tmp_path, preset, wrapper):
    content = {
        wrapper: tokenizer.state_dict(),
        "steps": 7,
        "args": argparse.Namespace(lr=1e-4),
        "optimizer": {"state": {}},
    }
    torch.save(content, tmp_path / "w.pt")
    assert same_weights(imgtok.load(preset, weights=tmp_path / "w.pt"), tokenizer)


def test_a_doubly_wrapped_state_dict_is_found(tokenizer, tmp_path, preset):
    torch.save({"model": {"module": tokenizer.state_dict()}}, tmp_path / "w.pt")
    assert same_weights(imgtok.load(preset, weights=tmp_path / "w.pt"), tokenizer)


def test_averaged_weights_are_preferred_where_there_are_any(tokenizer, tmp_path, preset):
    torch.save({"model": CONFIG.build().state_dict(), "ema": tokenizer.state_dict()}, tmp_path / "w.pt")
    assert same_weights(imgtok.load(preset, weights=tmp_path / "w.pt"), tokenizer)
    torch.save({"model": tokenizer.state_dict(), "ema": {}}, tmp_path / "w.pt")
    assert same_weights(imgtok.load(preset, weights=tmp_path / "w.pt"), tokenizer)


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": 3}, {"steps": 7}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_told(tmp_path, preset, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state dict, neither bare nor under one of ema, model"):
        imgtok.load(preset, weights=tmp_path / "w.pt")


# -- what is told, and the hub ----------------------------------------------------------------------------------------


def test_the_licence_of_published_weights_is_told(tokenizer, tmp_path, preset, capsys):
    torch.save(tokenizer.state_dict(), tmp_path / "w.pt")
    imgtok.load(preset, weights=tmp_path / "w.pt")
    told = capsys.readouterr()
    assert told.err == "tiny: weights CC-BY-4.0; code nobody/nothing (MIT); arXiv:1711.00937\n"
    assert told.out == ""


def test_nothing_is_told_for_ones_own_model(tokenizer, tmp_path, capsys):
    imgtok.save(tokenizer, tmp_path)
    imgtok.load(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_sizes_without_weights_say_so():
    with pytest.raises(ValueError, match="no weights were published for llamagen-gpt-xl-256; pass weights=FILE"):
        generators.load("llamagen-gpt-xl-256")


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no connection\nand no cached file"),
        OfflineModeIsEnabled("HF_HUB_OFFLINE=1\nis set"),
        ConnectionError("[Errno -2] Name or service not known"),
        TimeoutError("read timed out"),
        Exception("[SSL] peer closed\nthe connection"),  # httpx: no OSError
    ],
)
def test_a_hub_out_of_reach_is_one_sentence(monkeypatch, preset, error):
    def offline(repo, file, revision):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ValueError) as caught:
        imgtok.load(preset)
    assert str(caught.value) == (
        "tiny.pt of nobody/nothing could not be fetched from the hub and is not in its cache "
        f"({type(error).__name__}); download it elsewhere and pass its path as weights"
    )


def test_the_hubs_file_is_loaded(monkeypatch, preset, tokenizer, tmp_path):
    torch.save({"model": tokenizer.state_dict()}, tmp_path / "tiny.pt")

    def cached(repo, file, revision):
        assert (repo, revision) == ("nobody/nothing", "main")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert same_weights(imgtok.load(preset), tokenizer)


def test_a_half_converted_file_names_the_missing_parameter(monkeypatch, tokenizer, tmp_path, preset):
    def convert(state):
        return {"to_codes.bias": state["quant_conv.bias"]}

    from dataclasses import replace

    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], convert=convert))
    torch.save(tokenizer.state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"w\.pt is no published file of tiny: it lacks the parameter 'quant_conv\.bias'"
    ):
        imgtok.load(preset, weights=tmp_path / "w.pt")
