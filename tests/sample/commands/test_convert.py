"""Files like the published ones, of tiny models under the names in the papers' code, are registered as presets."""

from dataclasses import replace

import pytest
import torch

import imgtok
from imgtok import generators
from imgtok.convert import State
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.generators.presets.llamagen import converter, generator_config
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.presets.llamagen import tokenizer_config

WIDTHS, BLOCKS, LATENT, CODES, DIM = (8, 16), 1, 8, 32, 4


def vq_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published VQModel of `WIDTHS`, `BLOCKS`, `LATENT`, `CODES`, `DIM`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name, c_in, c_out):
        layer(f"{name}.norm1", c_in)
        layer(f"{name}.conv1", c_out, c_in, 3, 3)
        layer(f"{name}.norm2", c_out)
        layer(f"{name}.conv2", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.nin_shortcut", c_out, c_in, 1, 1)

    def attention(name, c):
        layer(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", c, c, 1, 1)

    def half(side, widths, blocks, c_in, c_out, resample):
        layer(f"{side}.conv_in", widths[0], c_in, 3, 3)
        c, lowest = widths[0], len(widths) - 1 if side == "encoder" else 0
        for i, width in enumerate(widths):
            for j in range(blocks):
                residual(f"{side}.conv_blocks.{i}.res.{j}", c, width)
                c = width
                if i == lowest:
                    attention(f"{side}.conv_blocks.{i}.attn.{j}", c)
            if i < len(widths) - 1:
                layer(f"{side}.conv_blocks.{i}.{resample}.conv", c, c, 3, 3)
        middle = widths[lowest]
        residual(f"{side}.mid.0", middle, middle)
        attention(f"{side}.mid.1", middle)
        residual(f"{side}.mid.2", middle, middle)
        layer(f"{side}.norm_out", c)
        layer(f"{side}.conv_out", c_out, c, 3, 3)

    half("encoder", WIDTHS, BLOCKS, 3, LATENT, "downsample")
    half("decoder", WIDTHS[::-1], BLOCKS + 1, LATENT, 3, "upsample")
    layer("quant_conv", DIM, LATENT, 1, 1)
    layer("post_quant_conv", LATENT, DIM, 1, 1)
    return shapes | {"quantize.embedding.weight": (CODES, DIM), "quantize.codebook_used": (64,)}


GPT = {
    "model_type": "c2i", "dim": 16, "n_layer": 2, "n_head": 2, "vocab_size": CODES, "block_size": 16, "num_classes": 3,
    "multiple_of": 16,
}  # fmt: skip


def gpt_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published Transformer of `GPT`."""
    shapes = {"cls_embedding.embedding_table.weight": (4, 16), "tok_embeddings.weight": (CODES, 16)}
    for i in range(2):
        block = {
            "attention.wqkv.weight": (48, 16),
            "attention.wo.weight": (16, 16),
            "feed_forward.w1.weight": (48, 16),
            "feed_forward.w3.weight": (48, 16),
            "feed_forward.w2.weight": (16, 48),
            "attention_norm.weight": (16,),
            "ffn_norm.weight": (16,),
        }
        shapes |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (16,), "output.weight": (CODES, 16)}


def state_of(shapes: dict[str, tuple[int, ...]]) -> State:
    dice = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=dice) for name, shape in shapes.items()}


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    published = {
        "ch": 8,
        "encoder_ch_mult": [1, 2],
        "decoder_ch_mult": [1, 2],
        "num_res_blocks": BLOCKS,
        "z_channels": LATENT,
        "codebook_size": CODES,
        "codebook_embed_dim": DIM,
        "norm_groups": 4,
    }
    vq = replace(TOKENIZERS["llamagen-vq-f16"], config=tokenizer_config(published, image_size=8), weights=None)
    config = generator_config(GPT)
    gpt = replace(
        GENERATORS["llamagen-gpt-b-256"], config=config, convert=converter(config), weights=None, tokenizer="tiny-vq"
    )
    monkeypatch.setitem(TOKENIZERS, "tiny-vq", vq)
    monkeypatch.setitem(GENERATORS, "tiny-gpt", gpt)


@pytest.fixture
def files(tmp_path):
    torch.save({"model": state_of(vq_shapes()), "steps": 3}, tmp_path / "vq.pt")
    torch.save(state_of(gpt_shapes()), tmp_path / "gpt.pt")
    return tmp_path


def test_a_tokenizer_is_converted(run, files):
    result = run("convert", files / "vq.pt", "--preset", "tiny-vq", "--out", files / "vq")
    assert result.status == 0
    assert "no published weights, yours are used" in result.err
    assert sorted(path.name for path in (files / "vq").iterdir()) == ["config.json", "model.safetensors"]
    converted, loaded = imgtok.load(files / "vq"), imgtok.load("tiny-vq", weights=files / "vq.pt")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(converted.reconstruct(images), loaded.reconstruct(images))


def test_a_generator_is_converted_and_draws_what_the_preset_draws(run, files):
    run("convert", files / "vq.pt", "--preset", "tiny-vq", "--out", files / "vq")
    assert run("convert", files / "gpt.pt", "--preset", "tiny-gpt", "--out", files / "gpt").status == 0
    assert generators.load_config(files / "gpt").condition.labels[0].size == 3
    words = ("--num", 3, "--seed", 1)
    assert (
        run("generate", "--model", files / "gpt", "--tokenizer", files / "vq", *words, "--out", files / "a").status == 0
    )
    weights = ("--weights", files / "gpt.pt", "--tokenizer-weights", files / "vq.pt")
    assert run("generate", "--model", "tiny-gpt", *weights, *words, "--out", files / "b").status == 0
    for name in ("00000.png", "00001.png", "00002.png"):
        assert (files / "a" / name).read_bytes() == (files / "b" / name).read_bytes()


def test_a_preset_reconstructs_by_a_local_file(run, files):
    words = ("photos", "--size", 8, "--model", "tiny-vq", "--weights", files / "vq.pt", "--out", files / "out")
    assert run("reconstruct", *words).status == 0


def test_what_convert_refuses(run, refused, files):
    out = ("--out", files / "out")
    refused("did you mean 'tiny-vq'?", "convert", files / "vq.pt", "--preset", "tiny-vk", *out)
    refused("there is no preset 'zzz'", "convert", files / "vq.pt", "--preset", "zzz", *out)
    refused("there is no file", "convert", files / "missing.pt", "--preset", "tiny-vq", *out)
    refused("there is no file", "convert", files, "--preset", "tiny-vq", *out)
    (files / "run").mkdir()
    (files / "run" / "train.json").write_text("{}")
    (files / "run" / "config.json").write_text("{}")
    words = ("convert", files / "vq.pt", "--preset", "tiny-vq", "--out")
    refused("holds 'train.json', which would be lost", *words, files / "run", "--overwrite")
    assert run(*words, files / "vq").status == 0
    refused("add --overwrite", *words, files / "vq")
    assert run(*words, files / "vq", "--overwrite").status == 0


def failure(run, *words):
    """The last line on the error stream of a command that fails after it told the licence."""
    result = run(*words)
    assert (result.status, result.out) == (2, "")
    licence, error = result.err.splitlines()
    assert "code FoundationVision/LlamaGen (MIT)" in licence
    return error


def test_parameters_must_all_be_there_and_fit(run, files):
    state = state_of(vq_shapes())
    state["extra"] = state.pop("encoder.conv_in.bias")
    state["post_quant_conv.bias"] = torch.zeros(9)
    torch.save(state, files / "wrong.pt")
    error = failure(run, "convert", files / "wrong.pt", "--preset", "tiny-vq", "--out", files / "out")
    assert "missing: backbone.encoder.conv_in.bias" in error
    assert "unexpected: extra" in error
    assert "misshapen: from_codes.bias (9,) instead of (8,)" in error
    assert not (files / "out").exists()


def test_the_file_of_another_model_or_no_weights_at_all(run, files):
    out = ("--out", files / "out")
    assert "does not fit" in failure(run, "convert", files / "gpt.pt", "--preset", "tiny-vq", *out)
    assert "does not fit" in failure(run, "convert", files / "vq.pt", "--preset", "tiny-gpt", *out)
    (files / "noise.safetensors").write_bytes(b"\x00" * 100)
    (files / "noise.pt").write_bytes(b"PK no archive")
    for name in ("noise.safetensors", "noise.pt"):
        assert "cannot be read as weights" in failure(run, "convert", files / name, "--preset", "tiny-vq", *out)
    assert not (files / "out").exists()
