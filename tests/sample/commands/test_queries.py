"""Commands with tokenizers of other kinds: a sequence of tokens, several codes for each, vectors instead of codes."""

from dataclasses import replace

import pytest
import torch

from imgtok import hub
from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.data import center_crop, read_picture, to_float, to_uint8
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.gaussian import GaussianConfig
from imgtok.tokencache import TokenCache
from imgtok.tokens import SequenceLayout

VIT = ViTConfig(width=16, depth=1, num_heads=2)
SEQUENCE = QueryConfig(latents=(6,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=VIT)


@pytest.fixture
def saved(tokenizer_config, tmp_path):
    """Tokenizers by name, in folders."""
    quantizer = tokenizer_config.quantizer
    kinds = {
        "sequence": replace(tokenizer_config, backbone=SEQUENCE),
        "ordered": replace(tokenizer_config, backbone=replace(SEQUENCE, nested=NestedDropout())),
        "pairs": replace(
            tokenizer_config,
            backbone=replace(SEQUENCE, latents=(3, 3), branches=2),
            quantizer=ProductConfig(branch=quantizer),
        ),
        "vectors": replace(tokenizer_config, backbone=SEQUENCE, quantizer=GaussianConfig(dim=3)),
    }
    for name, config in kinds.items():
        torch.manual_seed(0)
        hub.save(config.build(), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("kind", ["sequence", "pairs", "vectors"])
def test_a_picture_of_any_size_is_reconstructed(run, saved, pictures, kind, tmp_path):
    picture = pictures / "dogs & more" / "1.png"
    assert run("reconstruct", picture, "--model", saved / kind, "--out", tmp_path / "out").status == 0
    middle = to_float(read_picture(picture)[:, 1:21, 1:17])[None]
    expected = to_uint8(hub.load(saved / kind).reconstruct(middle))[0]
    assert torch.equal(read_picture(tmp_path / "out" / "1.png"), expected)


def test_the_first_tokens_alone_are_enough_where_they_matter_most(run, refused, saved, pictures, tmp_path):
    picture = pictures / "dogs & more" / "1.png"
    words = ("reconstruct", picture, "--size", 16, "--out", tmp_path / "out")
    assert run(*words, "--model", saved / "ordered", "--num-tokens", 2).status == 0
    tokenizer = hub.load(saved / "ordered")
    tokens = tokenizer.encode(to_float(center_crop(read_picture(picture), 16))[None])
    expected = to_uint8(tokenizer.decode(tokens[:, :2]))[0]
    assert torch.equal(read_picture(tmp_path / "out" / "1.png"), expected)
    for count in (0, 7):
        more = ("--overwrite", "--num-tokens", count)
        refused("num_tokens must be 1 to 6", *words, "--model", saved / "ordered", *more)
    refused("needs all 6 tokens", *words, "--model", saved / "sequence", "--overwrite", "--num-tokens", 2)


@pytest.mark.parametrize(("kind", "shape", "told"), [("sequence", (6,), "6 tokens"), ("pairs", (9, 2), "3 x 3 tokens")])
def test_pictures_become_tokens_and_pictures_again(run, saved, pictures, kind, shape, told, tmp_path):
    result = run("encode", "--model", saved / kind, "--data", pictures, "--out", tmp_path / "tokens")
    assert result.status == 0
    assert f"8 images of {told}" in result.out
    cache = TokenCache(tmp_path / "tokens")
    assert cache.tokens.shape == (8, *shape)
    assert isinstance(cache.description.layout, SequenceLayout) == (kind == "sequence")
    assert run("decode", tmp_path / "tokens", "--model", saved / kind, "--out", tmp_path / "out").status == 0
    expected = to_uint8(hub.load(saved / kind).decode(cache.rows(torch.tensor([0]))[0]))[0]
    assert torch.equal(read_picture(sorted((tmp_path / "out").rglob("*.png"))[0]), expected)


def test_vectors_are_not_written_as_tokens(refused, saved, pictures, tmp_path):
    words = ("encode", "--model", saved / "vectors", "--data", pictures, "--out", tmp_path / "tokens")
    refused("the tokenizer's tokens are vectors, but only indices of codes can be written", *words)


def test_a_generator_that_cannot_draw_such_tokens_says_so(run, saved, pictures, tmp_path):
    kind, problem = "pairs", "this generator draws one index for each token"
    assert run("encode", "--model", saved / kind, "--data", pictures, "--out", tmp_path / "tokens").status == 0
    words = ("--tokenizer", saved / kind, "--data.source", tmp_path / "tokens", "--out", tmp_path / "run")
    result = run("train", "generator", "quickstart", *words, "--device", "cpu")
    assert result.status == 2
    assert problem in result.err
