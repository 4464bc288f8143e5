"""Masked generators: every token sees all others, the settings do what they say, a folder holds one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from imgtok import hub
from imgtok.generators import load
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.masked import MaskedConfig, MaskedGenerator
from imgtok.tokens import GridLayout, SequenceLayout

CONFIG = MaskedConfig(
    layout=SequenceLayout(6),
    codebook_size=11,
    condition=LabelConditionConfig(labels=(Label(size=4), Label(name="style", size=2))),
    width=16,
    depth=3,
    num_heads=4,
)
KINDS = {
    "before": CONFIG,
    "after": replace(CONFIG, norm="after", norm_eps=1e-12),
    "skips": replace(CONFIG, skips=True, depth=5, layout=GridLayout(2, 3)),
}
TOKENS = torch.randint(12, (3, 6), generator=torch.Generator().manual_seed(5))  # 11 is the mask
LABELS = torch.tensor([[0, 1], [3, 0], [4, 2]])


def random_masked(config: MaskedConfig) -> MaskedGenerator:
    """In evaluation mode, with weights strong enough for laws that differ."""
    generator, dice = config.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            noise = torch.randn(parameter.shape, generator=dice)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else 1.5 * noise / math.sqrt(parameter.shape[-1]))
    return generator


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_law_depends_on_every_token_on_the_labels_and_on_nothing_else(kind):
    generator = random_masked(KINDS[kind])
    logits = generator(TOKENS, LABELS)
    assert logits.shape == (3, 6, 11)
    for place in range(6):
        others = TOKENS.clone()
        others[:, place] = (others[:, place] + 1) % 12
        assert ((generator(others, LABELS) - logits).abs().amax(-1) > 1e-4).all()
    for label in range(2):
        told = LABELS.clone()
        told[:, label] = 1 - told[:, label].clamp_max(1)
        assert ((generator(TOKENS, told) - logits).abs().amax(-1) > 1e-4).all()
    torch.testing.assert_close(generator(TOKENS[1:2], LABELS[1:2]), logits[1:2])


@torch.no_grad()
def test_equal_tokens_at_different_places_have_different_laws():
    generator = random_masked(CONFIG)
    logits = generator(torch.full((1, 6), generator.mask_token), LABELS[:1])[0]
    assert (torch.cdist(logits, logits) + torch.eye(6) > 1e-3).all()


@pytest.mark.parametrize("depth", [4, 5])
@torch.no_grad()
def test_skips_join_the_last_block_with_the_first(depth):
    """With skips that pass on what came from the first half alone, the middle has no part in the outcome."""
    generator = random_masked(replace(CONFIG, skips=True, depth=depth))
    for skip in generator.skips:
        skip.weight.copy_(torch.cat([torch.zeros(16, 16), torch.eye(16)], dim=1))
        skip.bias.zero_()
    logits = generator(TOKENS, LABELS)
    for i, block in enumerate(generator.blocks):
        weight = block.mlp.fc2.weight.clone()
        block.mlp.fc2.weight.mul_(2)
        changed = not torch.allclose(generator(TOKENS, LABELS), logits, atol=1e-4)
        assert changed == (i in (0, depth - 1)), i
        block.mlp.fc2.weight.copy_(weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_all_of_it(kind, tmp_path):
    generator = random_masked(KINDS[kind])
    hub.save(generator, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, MaskedGenerator)
    assert loaded.config == generator.config
    assert torch.equal(loaded(TOKENS, LABELS), generator(TOKENS, LABELS))
