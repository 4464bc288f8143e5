"""Generators of prefixes: rows of different lengths in a batch, and what a generator is told of the length."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from imgtok.backbones.flow import FlowConfig
from imgtok.backbones.trunk import TrunkConfig
from imgtok.backbones.vae import PixelsConfig
from imgtok.generators.condition import Label, LabelConditionConfig, length_label
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate, generate_tokens
from imgtok.tokenizer import TokenizerConfig
from imgtok.tokens import SequenceLayout
from imgtok.train.data import TokenBatch
from imgtok.train.generator_config import TransformerSizes
from imgtok.train.generator_tasks import GeneratorTask, PrefixTask, prefix_cross_entropy

CLASSES = (Label(size=3),)
TOLD = LabelConditionConfig(labels=(*CLASSES, length_label(6, drop=0.1)))
CONFIG = GeneratorConfig(
    layout=SequenceLayout(6), codebook_size=8, condition=TOLD, width=16, depth=2, num_heads=2, dropout=0.0
)
TOKENS = torch.randint(8, (4, 6), generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([[0], [1], [2], [3]])
KEPT = torch.tensor([2, 6, 1, 4])
TRUNK = TrunkConfig(width=16, depth=1, head_dim=8)
TOKENIZER = TokenizerConfig(
    image_size=8,
    backbone=FlowConfig(vae=PixelsConfig(side=2), registers=6, patch_size=2, grid=(2, 2), encoder=TRUNK, decoder=TRUNK),
    quantizer=ScalarConfig(levels=(2, 2, 2)),
)
SIZES = TransformerSizes(width=16, depth=2, num_heads=2, prefix=NestedDropout(per="image"), tell_length=True)


def shaken(module: nn.Module) -> nn.Module:
    """With weights (the head's too) strong enough for laws that differ."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(1 * torch.randn(parameter.shape, generator=dice) / parameter.shape[-1] ** 0.25)
    return module.eval()


@pytest.fixture(scope="module")
def generator() -> Generator:
    return shaken(CONFIG.build())


@torch.no_grad()
def test_the_loss_of_each_row_is_that_of_the_row_alone(generator):
    labels = generator.condition.with_lengths(LABELS, KEPT)
    together = prefix_cross_entropy(generator(TOKENS, labels), TOKENS, KEPT)
    for row, kept in enumerate(KEPT.tolist()):
        alone = TOKENS[row : row + 1, :kept]
        logits = generator(alone, torch.tensor([[int(LABELS[row]), kept - 1]]))
        expected = nn.functional.cross_entropy(logits[0], alone[0], reduction="sum")
        torch.testing.assert_close(together[row], expected)


def test_what_comes_after_a_prefix_is_neither_learnt_nor_seen(generator):
    task, dice = PrefixTask(NestedDropout(per="image"), CONFIG), torch.Generator()
    shaken(task.model)

    def gradients(tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(3)
        task.zero_grad()
        loss = task(TokenBatch(tokens, LABELS), 0, dice.manual_seed(0)).losses["cross_entropy"]
        loss.backward()
        return loss, [parameter.grad.clone() for parameter in task.parameters()]

    torch.manual_seed(3)
    kept = task.prefix.draw(4, 6)
    assert kept.min() < 6
    changed = torch.where(torch.arange(6) < kept[:, None], TOKENS, (TOKENS + 1) % 8)
    assert not torch.equal(changed, TOKENS)
    (one, first), (other, second) = gradients(TOKENS), gradients(changed)
    torch.testing.assert_close(one, other)
    for before, after in zip(first, second, strict=True):
        torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-4)


def test_of_whole_rows_the_loss_is_the_usual_one():
    config = replace(CONFIG, condition=LabelConditionConfig(labels=CLASSES, drop=0.0))
    plain, prefix = GeneratorTask(config), PrefixTask(NestedDropout(least=6), config)
    prefix.load_state_dict(shaken(plain).state_dict())
    batch = TokenBatch(TOKENS, LABELS)
    losses = [
        task.eval()(batch, 0, torch.Generator().manual_seed(0)).losses["cross_entropy"] for task in (plain, prefix)
    ]
    torch.testing.assert_close(*losses)


def test_lengths_fill_in_what_is_not_given_and_nothing_else(generator):
    condition = generator.condition
    assert condition.with_lengths(LABELS, KEPT).tolist() == [[0, 1], [1, 5], [2, 0], [3, 3]]
    assert torch.equal(condition.with_lengths(LABELS[:, 0], KEPT), condition.with_lengths(LABELS, KEPT))
    given = torch.tensor([[0, 6], [1, 4]])  # null, and 5 tokens
    assert condition.with_lengths(given, torch.tensor([3, 3])).tolist() == [[0, 2], [1, 4]]
    plain = LabelConditionConfig(labels=CLASSES).build(16)
    assert plain.with_lengths(LABELS, KEPT) is LABELS
    assert TOLD.labels[-1].index("4") == 3


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 6])
def test_cached_sampling_is_told_the_length_that_the_full_pass_is(generator, count):
    """Drawn tokens, each the likeliest, are those of full passes with that length; with another they differ."""
    config = SamplerConfig(num_tokens=None if count == 6 else count, batch_size=3)
    config = replace(config, law=replace(config.law, temperature=0.0))
    drawn = torch.cat(list(generate_tokens(generator, LABELS[:3], config)))
    assert drawn.shape == (3, count)
    labels = torch.cat([LABELS[:3], torch.full((3, 1), count - 1)], dim=1)
    assert torch.equal(generator(drawn, labels).argmax(-1), drawn)
    others = [generator(drawn, torch.cat([LABELS[:3], torch.full((3, 1), other)], dim=1)) for other in (0, 2)]
    assert any(not torch.equal(logits.argmax(-1), drawn) for logits in others)


@torch.no_grad()
def test_guidance_compares_with_no_length_and_pictures_are_drawn(generator):
    tokenizer = TOKENIZER.build().eval()
    config = SamplerConfig(num_tokens=3, guidance=Guidance(scale=2.0))
    images = torch.cat(list(generate(generator, tokenizer, LABELS[:2], config)))
    assert images.shape == (2, 3, 8, 8)
    assert generator.condition.with_null(torch.tensor([[1, 2]])).tolist() == [[1, 2], [3, 6]]


@torch.no_grad()
def test_without_the_option_conditions_reach_the_generator_as_they_are():
    plain = shaken(replace(CONFIG, condition=LabelConditionConfig(labels=CLASSES)).build())
    assert not plain.condition.told_length
    cut = torch.cat(list(generate_tokens(plain, LABELS, SamplerConfig(num_tokens=2))))
    whole = torch.cat(list(generate_tokens(plain, LABELS)))
    assert torch.equal(cut, whole[:, :2])


def test_sizes_make_the_label_and_refuse_what_does_not_fit():
    made = SIZES.config(TOKENIZER, CLASSES)
    assert made.condition.labels == (*CLASSES, length_label(6))
    dropped = replace(SIZES, drop_length=0.3, drop_labels={"style": 0.1}).config(TOKENIZER, CLASSES)
    assert dropped.condition.labels[-1].drop == 0.3
    assert replace(SIZES, tell_length=False).config(TOKENIZER, CLASSES).condition.labels == CLASSES
    with pytest.raises(ValueError, match="tell_length tells how many tokens are learnt from: give a prefix"):
        replace(SIZES, prefix=None)
