"""Masked generators learn and resume, on a grid and on a sequence; and so does the next-token one on a sequence."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import imgtok
from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.generators import load as load_generator
from imgtok.generators.condition import Label
from imgtok.generators.presets import PRESETS
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.sample import generate
from imgtok.tokens import SequenceLayout
from imgtok.train import checkpoint
from imgtok.train.generator_config import MaskedSizes
from imgtok.train.generator_tasks import MaskedTask, masked_places
from imgtok.train.recipes import GENERATORS
from imgtok.train.run import train_generator, train_tokenizer

VIT = ViTConfig(width=32, depth=2, num_heads=2)
SEQUENCE = QueryConfig(latents=(12,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=VIT)
SIZES = MaskedSizes(width=16, depth=3, num_heads=2, mlp_ratio=2, dropout=0.1, attention_dropout=0.1)


def longer(config, **changes):
    return replace(config, loop=replace(config.loop, **changes))


def trained(tokenizer, training, folder):
    """Tokenizer and generator, the latter long enough to have learned something; its configuration."""
    train_tokenizer(longer(tokenizer, steps=40), folder / "tokenizer", device="cpu")
    config = longer(training, steps=120, batch_size=8, evaluate_every=0, checkpoint_every=80, ema_decay=0.9)
    config = replace(config, optimizer=replace(config.optimizer, lr=1e-2))
    outcome = train_generator(config, folder / "tokenizer", folder / "run", device="cpu")
    assert outcome.metrics["val_loss"] < 0.9 * math.log(32)
    generator, decoder = load_generator(folder / "run"), imgtok.load(folder / "run" / "tokenizer")
    (images,) = generate(generator, decoder, torch.tensor([[0], [1]]))
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()
    return config


def flat(value) -> list:
    if isinstance(value, torch.Tensor):
        return [value.numpy().tobytes()]
    if isinstance(value, dict):
        return [part for key in value for part in [key, *flat(value[key])]]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in flat(item)]
    return [value]


def test_a_masked_generator_learns_samples_and_resumes(tokenizer_training, generator_training, tmp_path):
    config = trained(tokenizer_training, replace(generator_training, model=replace(SIZES, skips=True)), tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    (tmp_path / "again" / "checkpoints" / "step-00000120.pt").unlink()
    train_generator(config, tmp_path / "tokenizer", tmp_path / "again", device="cpu", resume=True)
    one, two = (checkpoint.read(checkpoint.latest(tmp_path / run / "checkpoints")) for run in ("run", "again"))
    assert flat(one) == flat(two)


@pytest.mark.parametrize("kind", ["masked", "next-token"])
def test_generators_of_a_sequence_learn_and_sample(kind, tokenizer_training, generator_training, tmp_path):
    if kind == "masked":
        generator_training = replace(generator_training, model=replace(SIZES, norm="after"))
    backbone = replace(tokenizer_training.tokenizer, backbone=SEQUENCE)
    trained(replace(tokenizer_training, tokenizer=backbone), generator_training, tmp_path)
    assert load_generator(tmp_path / "run").config.layout == SequenceLayout(12)


def test_as_many_are_masked_as_the_schedule_says_and_none_is_favoured():
    """E[arccos(u)] / (pi / 2) = 2 / pi of u uniform; rounding of 64 tokens shifts it by less than 1 / 64."""
    dice, rows = torch.Generator().manual_seed(0), 20_000
    masked = masked_places(torch.rand(rows, generator=dice), 64, dice)
    shares = masked.float().mean(1)
    assert abs(float(shares.mean()) - 2 / math.pi) < 1 / 64
    assert float(shares.min()) >= 1 / 64
    of_places = masked.float().mean(0)
    bound = 5 * math.sqrt(float(shares.mean() * (1 - shares.mean())) / rows)
    assert ((of_places - shares.mean()).abs() < bound).all()
    given = masked_places(torch.tensor([0.0, 0.5, 0.999999]), 9, dice)
    assert given.sum(1).tolist() == [9, 6, 1]


def test_the_loss_is_the_weighted_mean_of_smoothed_cross_entropies(tokenizer_training):
    sizes = replace(SIZES, dropout=0.0, attention_dropout=0.0, label_smoothing=0.2, known_weight=0.3)
    task = MaskedTask(sizes.config(tokenizer_training.tokenizer, (Label(size=2),)), sizes)
    tokens = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[0], [1], [2]])
    loss = task.loss(tokens, labels, torch.Generator().manual_seed(2))
    dice = torch.Generator().manual_seed(2)
    masked = masked_places(torch.rand(3, generator=dice), 16, dice)
    log_law = F.log_softmax(task.model(torch.where(masked, 32, tokens), labels), dim=-1)
    target = 0.8 * F.one_hot(tokens, 32) + 0.2 / 32
    weights = masked + 0.3 * ~masked
    torch.testing.assert_close(loss, -((target * log_law).sum(-1) * weights).sum() / weights.sum())


def test_the_score_is_that_of_masked_tokens_and_the_same_each_time(tokenizer_training):
    task = MaskedTask(SIZES.config(tokenizer_training.tokenizer, (Label(size=2),)), SIZES)
    model, labels = task.model.eval(), torch.tensor([[0]] * 5)
    tokens = torch.randint(32, (5, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.head.logits.weight.zero_()
        model.head.logits.bias.zero_()
        assert float(task.score(model, tokens, labels)) == pytest.approx(math.log(32), rel=1e-5)
        model.head.logits.bias.copy_(torch.arange(32) / 8)
        first = task.score(model, tokens, labels)
        assert torch.equal(task.score(model, tokens, labels), first)


@pytest.mark.parametrize(("recipe", "name"), [("vit", "l32"), ("vit", "b64"), ("uvit", "s128")])
def test_the_recipe_fits_the_preset(recipe, name):
    model = GENERATORS[f"titok-maskgit-{recipe}"]().model.config(
        TOKENIZERS[f"titok-{name}"].config, (Label(size=1000),)
    )
    preset = PRESETS[f"titok-maskgit-{name}-256"].config
    assert replace(model, condition=preset.condition, norm_eps=preset.norm_eps) == preset


@pytest.mark.parametrize(("name", "value"), [("label_smoothing", 1.0), ("known_weight", -0.1)])
def test_sizes_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        replace(SIZES, **{name: value})
