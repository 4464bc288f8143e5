"""Tokenizers with queries learn, are saved, and encode a data set: in a sequence, and in two codes for a token."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import imgtok
from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.data import load as load_images
from imgtok.hub import fingerprint
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.factorized import ProductConfig
from imgtok.tokencache import TokenCache, encode_source
from imgtok.train.log import read
from imgtok.train.run import train_tokenizer

VIT = ViTConfig(width=32, depth=2, num_heads=2)
SEQUENCE = QueryConfig(latents=(12,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=VIT, nested=NestedDropout())
BY_POWERS = NestedDropout(law="powers", per="image", share=0.5)
GRID = replace(SEQUENCE, latents=(3, 3), branches=2, nested=None, code_class=True)


def with_queries(training, backbone: QueryConfig, branches: int = 1, steps: int = 150):
    """The toy training with another backbone, at a pace that suits it."""
    quantizer = training.tokenizer.quantizer
    if branches > 1:
        quantizer = ProductConfig(branch=quantizer, count=branches)
    return replace(
        training,
        tokenizer=replace(training.tokenizer, backbone=backbone, quantizer=quantizer),
        loop=replace(training.loop, steps=steps, batch_size=8, evaluate_every=0, checkpoint_every=steps, ema_decay=0.9),
    )


@pytest.mark.parametrize(
    ("backbone", "branches"),
    [(replace(SEQUENCE, encoder=replace(VIT, drop_path=0.1)), 1), (GRID, 2)],
    ids=["sequence", "grid"],
)
def test_a_tokenizer_with_queries_learns_and_encodes_a_data_set(
    tokenizer_training, pictures, backbone, branches, tmp_path
):
    outcome = train_tokenizer(with_queries(tokenizer_training, backbone, branches), tmp_path / "run", device="cpu")
    rows = [row for row in read(tmp_path / "run" / "log.jsonl") if "loss" in row]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert {"commitment", "perplexity", "reseeded"} <= rows[0].keys()
    assert outcome.metrics["val_psnr"] > 9
    loaded = imgtok.load(tmp_path / "run")
    source = load_images(str(pictures))
    cache = encode_source(loaded, fingerprint(loaded), source, tmp_path / "tokens", flip=True)
    expected = (2 * len(source), loaded.config.layout.num_tokens, *loaded.config.quantizer.index_shape)
    assert cache.tokens.shape == expected
    tokens = TokenCache(tmp_path / "tokens").rows(torch.arange(2))[0]
    assert loaded.decode(tokens).shape == (2, 3, 16, 16)


@pytest.mark.slow
def test_trained_with_nested_dropout_the_first_token_tells_more_than_the_mean_colour_and_all_tell_most(
    tokenizer_training, pictures, tmp_path
):
    """Errors of one token, and of all twelve, were 0.42 and 0.19 of that of the mean colours."""
    training = with_queries(tokenizer_training, replace(SEQUENCE, nested=BY_POWERS), steps=400)
    training = replace(
        training,
        data=replace(training.data, shift=0),
        optimizer=replace(training.optimizer, schedule="cosine"),
    )
    outcome = train_tokenizer(training, tmp_path / "run", device="cpu")
    model, source = outcome.model.eval(), load_images(str(pictures))
    images = torch.stack([source.image(i) for i in range(len(source))]) / 127.5 - 1
    indices = model.encode(images)
    first, whole = (error(model.decode(indices[:, :n]), images) for n in (1, 12))
    assert whole < 0.75 * first
    assert first < 0.9 * error(images.mean((2, 3), keepdim=True), images)


def error(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().mean())
