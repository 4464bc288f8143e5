"""FlexTok's converter, and the tokenizer as a whole: ordered tokens, pictures drawn from any number of them."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import imgtok
from imgtok import config as configs
from imgtok import hub
from imgtok.backbones.cnn import CNNConfig
from imgtok.backbones.vae import KLConfig
from imgtok.convert import State
from imgtok.hub import build_from_state
from imgtok.nn.flow import FlowSolver
from imgtok.nn.position import waves_2d
from imgtok.presets import PRESETS, flextok
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.tokens import SequenceLayout

PUBLISHED = {
    "enc_dim": 16,
    "dec_dim": 32,
    "enc_depth": 1,
    "dec_depth": 2,
    "head_dim": 8,
    "latent_size": 8,
    "latent_channels": 4,
    "num_registers": 6,
    "fsq_levels": [8, 8, 5],
    "patch_size": 2,
    "mlp_ratio": 4.0,
}
VAE = KLConfig(widths=(8, 8), blocks=1, latent_channels=4, norm_groups=4, scale=0.5)
CONFIG = flextok.tokenizer_config(PUBLISHED, VAE)
ENCODER, DECODER = "encoder.module_dict.enc_", "decoder.module_dict.dec_"


def linear(name: str, out: int, width: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width)} | ({f"{name}.bias": (out,)} if bias else {})


def block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    hidden, shapes = int(2 / 3 * 4 * width), {}
    for layer in ("attn.wq", "attn.wk", "attn.wv", "attn.proj"):
        shapes |= linear(f"{name}.{layer}", width, width, bias=False)
    for layer, out, into in (("fc1", hidden, width), ("fc2", width, hidden), ("fc3", hidden, width)):
        shapes |= linear(f"{name}.mlp.{layer}", out, into, bias=False)
    return shapes


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as published, of one block in the encoder and two in the decoder."""
    shapes = linear(f"{ENCODER}patch_emb.patch_proj", 16, 16) | {f"{ENCODER}register_module.registers": (6, 16)}
    shapes |= block(f"{ENCODER}transformer.blocks.0", 16) | linear(f"{ENCODER}to_latents.proj", 3, 16)
    shapes |= linear(f"{DECODER}from_latents.proj", 32, 3)
    shapes |= {
        f"{DECODER}registers_posemb_module.posembs": (1, 1, 32, 6),
        f"{DECODER}nested_dropout.dropout_mask_token": (32,),
        f"{DECODER}latent_dropout.nullcond": (32,),
    }
    shapes |= linear(f"{DECODER}noise_patch_emb.patch_proj", 32, 16)
    shapes |= linear(f"{DECODER}time_embedder.mlp.0", 32, 256) | linear(f"{DECODER}time_embedder.mlp.2", 32, 32)
    for i in range(2):
        name = f"{DECODER}transformer.blocks.{i}"
        shapes |= block(name, 32) | linear(f"{name}.adaLN_modulation.1", 2 * 6 * 32, 32)
    shapes |= linear(f"{DECODER}to_patches.adaLN_modulation.1", 64, 32) | linear(f"{DECODER}to_patches.proj", 16, 32)
    return shapes


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published_state() -> State:
    dice = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=dice) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3)
        for name, shape in published_shapes().items()
    }
    torch.manual_seed(0)
    return state | {f"vae.vae.{name}": tensor for name, tensor in VAE.build().model.state_dict().items()}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_from_state(CONFIG, flextok.convert_tokenizer(published_state()), "published").eval()


def test_every_published_parameter_finds_its_place(tokenizer):
    """Loading is strict, so each was used; and as a whole, of the shapes the model has by itself."""
    ours = CONFIG.build().state_dict()
    assert {name: tensor.shape for name, tensor in tokenizer.state_dict().items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }


def test_stored_tables_are_compared_and_left_out(tokenizer):
    tables = {
        name: waves_2d(4, 4, width).permute(2, 0, 1)[None] for name, width in zip(flextok.TABLES, (16, 32), strict=True)
    }
    converted = flextok.convert_tokenizer(published_state() | tables)
    assert converted.keys() == flextok.convert_tokenizer(published_state()).keys()
    wrong = {flextok.TABLES[1]: tables[flextok.TABLES[1]].transpose(2, 3)}
    with pytest.raises(ValueError, match=r"dec_patches_posemb_module.posembs holds other positions"):
        flextok.convert_tokenizer(published_state() | wrong)


def test_images_become_tokens_and_pictures(tokenizer):
    images = noise(2, 3, 16, 16).clamp(-1, 1)
    indices = tokenizer.encode(images)
    assert indices.shape == (2, 6) and indices.unique().numel() > 2
    decoded = tokenizer.decode(indices)
    assert torch.equal(tokenizer.reconstruct(images), decoded)
    assert decoded.shape == images.shape and decoded.std() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(tokenizer(images).images.clamp(-1, 1), decoded)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_any_number_of_first_tokens_is_decoded(tokenizer, count):
    indices = tokenizer.encode(noise(2, 3, 16, 16).clamp(-1, 1))
    decoded = tokenizer.decode(indices[:, :count], SequenceLayout(count))
    assert decoded.shape == (2, 3, 16, 16)
    assert (count == 6) == torch.equal(decoded, tokenizer.decode(indices))


def test_noise_is_an_argument(tokenizer):
    indices, start = tokenizer.encode(noise(1, 3, 16, 16).clamp(-1, 1)), noise(1, 4, 8, 8, seed=3)
    drawn = tokenizer.decode(indices, noise=start)
    assert torch.equal(tokenizer.decode(indices, noise=start), drawn)
    assert not torch.allclose(tokenizer.decode(indices), drawn, atol=1e-3)


def test_noise_for_a_decoder_without_is_refused():
    cnn = CNNConfig(encoder_widths=(8,), decoder_widths=(8,), encoder_blocks=(1,), decoder_blocks=(1,), norm_groups=4)
    plain = TokenizerConfig(image_size=4, backbone=cnn, quantizer=ScalarConfig(levels=(4, 4))).build().eval()
    with pytest.raises(ValueError, match="noise was given, but CNN decodes without"):
        plain.decode(torch.zeros(1, 16, dtype=torch.int64), noise=noise(1, 4, 8, 8))


def test_solver_and_guidance_may_be_changed(tokenizer):
    indices = tokenizer.encode(noise(1, 3, 16, 16).clamp(-1, 1))
    backbone, before = tokenizer.backbone, tokenizer.decode(indices)
    assert (backbone.solver, backbone.guidance) == (flextok.SOLVER, flextok.GUIDANCE)
    backbone.solver = FlowSolver(num_steps=4, method="heun")
    quick = tokenizer.decode(indices)
    backbone.solver = flextok.SOLVER
    assert not torch.equal(quick, before)
    assert torch.equal(tokenizer.decode(indices), before)


def test_it_is_loaded_by_name_and_saved(tokenizer, tmp_path, monkeypatch, capsys):
    row = replace(flextok.PRESETS["flextok-d12-d12"], config=CONFIG)
    monkeypatch.setitem(PRESETS, "tiny", row)
    save_file(published_state(), tmp_path / "model.safetensors")
    loaded = imgtok.load("tiny", weights=tmp_path / "model.safetensors")
    assert "non-commercial research only" in capsys.readouterr().err
    hub.save(loaded, tmp_path / "saved")
    indices = tokenizer.encode(noise(1, 3, 16, 16).clamp(-1, 1))
    for model in (loaded, imgtok.load(tmp_path / "saved")):
        torch.testing.assert_close(model.decode(indices), tokenizer.decode(indices), atol=1e-5, rtol=0)


def test_half_precision(tokenizer):
    half = build_from_state(CONFIG, flextok.convert_tokenizer(published_state()), "published").eval().bfloat16()
    indices = tokenizer.encode(noise(2, 3, 16, 16).clamp(-1, 1))
    decoded = half.decode(indices)
    assert decoded.dtype == torch.float32
    assert (decoded - tokenizer.decode(indices)).abs().mean() < 0.1


def test_configurations_survive_json():
    text = json.dumps(configs.to_dict(CONFIG), allow_nan=False)
    assert configs.from_dict(TokenizerConfig, json.loads(text)) == CONFIG
