"""The three ways to ask a generator agree, and nothing leaks from places that must not be seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.generators import cache as cache_module
from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig, TextFeatures
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.generators.pack import packed
from imgtok.tokens import GridLayout, SequenceLayout

CLASSES = LabelConditionConfig(labels=(Label(size=4), Label(name="style", size=2)))
TEXT = TextConditionConfig(num_slots=5, feature_dim=6)
CONFIG = GeneratorConfig(
    layout=GridLayout(2, 4),
    codebook_size=13,
    condition=CLASSES,
    width=16,
    depth=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=24,
)
TOKENS = torch.randint(13, (3, 8), generator=torch.Generator().manual_seed(5))
VISIBLE = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])


def random_generator(config: GeneratorConfig) -> Generator:
    """In evaluation mode, with weights (the head's too) strong enough for laws that differ."""
    generator, dice = config.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            noise = torch.randn(parameter.shape, generator=dice)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 1.5 * noise / math.sqrt(parameter.shape[-1]))
    return generator


def condition_of(config: GeneratorConfig) -> Tensor | TextFeatures:
    """Of three rows."""
    if config.condition is CLASSES:
        return torch.tensor([[0, 1], [3, 0], [4, 2]])
    features = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    return TextFeatures(features * VISIBLE[:, :, None], VISIBLE)


kinds = pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, prefix_rotation="zero", num_kv_heads=None, rope_base=100.0),
        replace(CONFIG, condition=TEXT),
        replace(CONFIG, condition=TEXT, prefix_rotation="zero"),
        replace(CONFIG, layout=SequenceLayout(8)),
    ],
    ids=["labels", "labels-zero", "text", "text-zero", "sequence"],
)


@kinds
@torch.no_grad()
def test_cached_steps_equal_one_pass(config):
    generator, condition = random_generator(config), condition_of(config)
    whole = generator(TOKENS, condition)
    cache = generator.new_cache(3, 1)
    generator.prefill(condition, cache)
    steps = []
    for i in range(-1, 7):  # at place -1, the token does not matter
        start = torch.full((3,), i)
        length = generator.num_slots + i + 1 + (i % 2)  # a column more than needed shows nothing
        steps.append(generator.score(TOKENS[:, i : i + 1] if i >= 0 else TOKENS[:, 5:6], start, cache, length)[:, 0])
    assert whole.shape == (3, 8, 13)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole)
    assert whole.std() > 0.3


@kinds
@torch.no_grad()
def test_several_tokens_at_places_that_differ_by_row_equal_one_pass(config):
    generator, condition = random_generator(config), condition_of(config)
    other = (TOKENS + 1) % 13
    cache = generator.new_cache(3, 1)
    generator.prefill(condition, cache)
    generator.score(F.pad(other[:, :6], (1, 0)), torch.full((3,), -1), cache, cache.length)
    start = torch.tensor([1, 4, 0])  # rows 0 and 2 go back on what they had read
    window = torch.stack([TOKENS[row, at : at + 3] for row, at in enumerate(start)])
    logits = generator.score(window, start, cache, cache.length)
    for row, at in enumerate(start.tolist()):
        history = torch.cat([other[row, :at], TOKENS[row, at:]])[None]
        alone = (
            condition[row : row + 1]
            if isinstance(condition, Tensor)
            else generator.condition.select(condition, slice(row, row + 1))
        )
        torch.testing.assert_close(logits[row], generator(history, alone)[0, at + 1 : at + 4])


@kinds
@torch.no_grad()
def test_scoring_at_an_old_place_rolls_back(config):
    generator, condition = random_generator(config), condition_of(config)
    at = torch.full((3,), 2)
    fresh, used = generator.new_cache(3, 1), generator.new_cache(3, 1)
    for cache in (fresh, used):
        generator.prefill(condition, cache)
        generator.score(F.pad(TOKENS[:, :2], (1, 0)), torch.full((3,), -1), cache, cache.length)
    generator.score((TOKENS[:, 2:7] + 3) % 13, at, used, used.length)  # a draft of five tokens, all rejected
    expected = generator.score(TOKENS[:, 2:4], at, fresh, fresh.length)
    torch.testing.assert_close(generator.score(TOKENS[:, 2:4], at, used, used.length), expected)


@kinds
@torch.no_grad()
def test_a_row_does_not_see_the_others(config):
    generator, condition = random_generator(config), condition_of(config)
    whole = generator(TOKENS, condition)
    for row in range(3):
        rows = slice(row, row + 1)
        torch.testing.assert_close(generator(TOKENS[rows], generator.condition.select(condition, rows)), whole[rows])


@kinds
@torch.no_grad()
def test_a_token_changes_later_laws_only(config):
    generator, condition = random_generator(config), condition_of(config)
    changed = TOKENS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 13
    before, after = generator(TOKENS, condition), generator(changed, condition)
    assert torch.equal(before[:, :4], after[:, :4])
    assert all((before[:, i] != after[:, i]).any() for i in range(4, 8))


@kinds
@torch.no_grad()
def test_the_condition_reaches_every_law(config):
    generator, condition = random_generator(config), condition_of(config)
    null = generator.condition.select(generator.condition.with_null(condition), slice(3, 6))
    difference = (generator(TOKENS, condition) - generator(TOKENS, null))[:2].abs().amax(-1)  # row 2 is null already
    assert difference.min() > 1e-3


@torch.no_grad()
def test_a_shorter_sequence_has_the_same_laws():
    generator, condition = random_generator(CONFIG), condition_of(CONFIG)
    torch.testing.assert_close(generator(TOKENS[:, :5], condition), generator(TOKENS, condition)[:, :5])


@torch.no_grad()
def test_rows_and_columns_are_told_apart():
    generator, condition = random_generator(CONFIG), condition_of(CONFIG)
    turned = replace(CONFIG, layout=GridLayout(4, 2)).build().eval()
    turned.load_state_dict(generator.state_dict())
    assert not torch.allclose(generator(TOKENS, condition), turned(TOKENS, condition), atol=1e-3)


@kinds
def test_a_new_generator_draws_uniformly(config):
    logits = config.build().eval()(TOKENS, condition_of(config))
    torch.testing.assert_close(logits.log_softmax(-1), torch.full((3, 8, 13), -math.log(13)))


@kinds
def test_training_reaches_every_parameter(config):
    generator = random_generator(config).train()
    generator(TOKENS, condition_of(config)).square().sum().backward()
    assert [name for name, parameter in generator.named_parameters() if parameter.grad is None] == []


def test_training_goes_on_after_sampling():
    generator, condition = random_generator(CONFIG), condition_of(CONFIG)
    with torch.inference_mode():
        expected = generator(TOKENS, condition)
    logits = generator(TOKENS, condition)
    logits.sum().backward()
    torch.testing.assert_close(logits.detach(), expected.clone())


def test_dropout_is_for_training_only():
    generator, condition = random_generator(CONFIG), condition_of(CONFIG)
    assert torch.equal(generator(TOKENS, condition), generator(TOKENS, condition))
    generator.train()
    assert not torch.equal(generator(TOKENS, condition), generator(TOKENS, condition))


@pytest.mark.parametrize("form", ["forward", "cached"])
@torch.no_grad()
def test_text_padding_is_invisible(form):
    config = replace(CONFIG, condition=TEXT)
    generator, clean = random_generator(config), condition_of(config)
    hidden = ~VISIBLE.bool()[:, :, None]
    dirty = TextFeatures(clean.features + 100 * hidden, clean.visible)

    def laws(condition: TextFeatures) -> Tensor:
        if form == "forward":
            return generator(TOKENS, condition)
        cache = generator.new_cache(3, 1)
        generator.prefill(condition, cache)
        return generator.score(F.pad(TOKENS, (1, 0)), torch.full((3,), -1), cache, cache.length)

    torch.testing.assert_close(laws(dirty), laws(clean))
    assert not torch.allclose(laws(clean._replace(visible=torch.ones_like(VISIBLE))), laws(clean), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("units", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize("pack", [True, False])
def test_a_generator_in_half_precision_keeps_its_cache_in_it_but_on_a_cpu_without_units_for_it(
    units, dtype, pack, monkeypatch
):
    monkeypatch.setattr(cache_module, "has_matrix_units", lambda: units)
    generator = random_generator(CONFIG).bfloat16()
    assert generator.to("meta").new_cache(3, 1).keys[0].dtype == torch.bfloat16
    assert random_generator(CONFIG).half().new_cache(3, 1).keys[0].dtype == torch.float32
    generator = random_generator(CONFIG).bfloat16()
    generator = packed(generator) if pack else generator
    cache = generator.new_cache(3, 1)
    assert cache.keys[0].dtype == dtype
    generator.prefill(condition_of(CONFIG), cache)
    assert generator.score(TOKENS[:, :1], torch.full((3,), -1), cache, cache.length).dtype == torch.bfloat16


def test_a_cache_has_room_for_all_tokens_and_what_was_asked_for():
    cache = CONFIG.build().new_cache(6, extra=3)
    assert cache.length == 1 + 8 + 3
    assert [memory.shape for memory in (*cache.keys, *cache.values)] == [
        (6, 2, 12, 4)
    ] * 4  # rows, heads, columns, width
