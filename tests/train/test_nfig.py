"""NFIG's recipes: those of VAR over frequency bands; and a toy of both parts that learns."""

import math
from dataclasses import replace

import pytest
import torch

import imgtok
from imgtok.generators import load as load_generator
from imgtok.generators.condition import Label
from imgtok.generators.presets import PRESETS as GENERATOR_PRESETS
from imgtok.hub import build_empty
from imgtok.presets import PRESETS as TOKENIZER_PRESETS
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.views import BandsConfig, ScalesConfig
from imgtok.sample import generate
from imgtok.train.config import TokenizerLossConfig
from imgtok.train.generator_config import NextScaleSizes
from imgtok.train.log import read
from imgtok.train.recipes import GENERATORS, TOKENIZERS
from imgtok.train.run import train_generator, train_tokenizer


def shapes(config) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in build_empty(config).named_parameters()}


def with_view(training, view):
    """The same training for another view."""
    quantizer = replace(training.tokenizer.quantizer, view=view)
    return replace(training, tokenizer=replace(training.tokenizer, quantizer=quantizer))


def test_the_small_recipe_differs_from_vars_in_its_view_only():
    theirs, ours = TOKENIZERS["quickstart-var"](), TOKENIZERS["quickstart-nfig"]()
    assert isinstance(ours.tokenizer.quantizer.view, BandsConfig)
    assert ours.tokenizer.quantizer.view.scales == theirs.tokenizer.quantizer.view
    assert with_view(ours, theirs.tokenizer.quantizer.view) == theirs
    assert GENERATORS["quickstart-nfig"]() == GENERATORS["quickstart-var"]()


def test_a_tokenizer_by_the_recipe_fits_the_preset():
    recipe, preset = TOKENIZERS["nfig-vq-f16"]().tokenizer, TOKENIZER_PRESETS["nfig-vq-f16"].config
    assert shapes(recipe) == shapes(preset)
    assert recipe.quantizer.view == preset.quantizer.view  # which decides how the same weights are read
    assert recipe.layout == preset.layout


@pytest.mark.parametrize("name", ["nfig-d16", "nfig-d20"])
def test_a_generator_by_the_recipe_fits_the_preset(name):
    tokenizer = TOKENIZERS["nfig-vq-f16"]().tokenizer
    model = GENERATORS[name]().model.config(tokenizer, (Label(size=1000),))
    assert shapes(model) == shapes(GENERATOR_PRESETS[f"{name}-256"].config)
    assert model.layout == GENERATOR_PRESETS[f"{name}-256"].config.layout


def test_both_parts_learn_at_toy_size(tokenizer_training, generator_training, tmp_path):
    stage = replace(tokenizer_training.tokenizer.quantizer, l2_norm=False, begin="latents")
    quantizer = ResidualConfig(stage=stage, view=BandsConfig(scales=ScalesConfig(scales=(1, 2, 4), blends=2)))
    loop = replace(
        tokenizer_training.loop, steps=120, batch_size=8, evaluate_every=0, checkpoint_every=120, ema_decay=0.9
    )
    training = replace(
        tokenizer_training,
        tokenizer=replace(tokenizer_training.tokenizer, quantizer=quantizer),
        loop=loop,
        loss=TokenizerLossConfig(l1=1.0, l2=1.0, codebook=0.0, blend=1.0),
    )
    outcome = train_tokenizer(training, tmp_path / "tokenizer", device="cpu")
    losses = [row["loss"] for row in read(tmp_path / "tokenizer" / "log.jsonl") if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert outcome.metrics["val_psnr"] > 10
    model = NextScaleSizes(width=16, depth=2, num_heads=2, mlp_ratio=2, gate_init=0.3)
    config = replace(generator_training, model=model, loop=loop)
    outcome = train_generator(config, tmp_path / "tokenizer", tmp_path / "run", device="cpu")
    assert outcome.metrics["val_loss"] < 0.9 * math.log(32)
    pair = load_generator(tmp_path / "run"), imgtok.load(tmp_path / "run" / "tokenizer")
    (images,) = generate(*pair, torch.tensor([[0], [1]]))
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()
