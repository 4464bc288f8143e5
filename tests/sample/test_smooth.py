"""Mixtures of codes: what they are, what they become at their limits, and that pictures come from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.sign import SignConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample.engine import Drawn
from imgtok.sample.images import SamplerConfig, generate, generate_tokens
from imgtok.sample.kept import Kept
from imgtok.sample.law import Law
from imgtok.sample.next_scale import sample_stages
from imgtok.sample.noise import gumbel
from imgtok.sample.smooth import Smooth
from imgtok.sample.staged_draft import SmallerTail, StagedDraft

from .test_next_scale import GUIDANCES, LABELS, LAWS, Pair, make_pair, seven_keys
from .test_staged_draft import SCALES, make_tokenizer
from .toys import Recorder

STAGE = VectorConfig(codebook_size=13, codebook_dim=5, l2_norm=False)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(SCALES)


def drawn(pair: Pair, rows: Any = slice(None), **options: Any) -> Drawn:
    return sample_stages(*pair, LABELS[rows], seven_keys()[rows], **options)


@torch.no_grad()
def test_latents_add_up_mixtures_as_published(pair):
    """VAR's formula stage by stage, with the floor of its temperature, and sums over codes written out."""
    (_, quantizer), layout = pair, pair[0].config.layout
    law, latents, start = Recorder(LAWS["truncated"]), quantizer.start(7, layout), 0
    smooth = drawn(pair, law=law, smooth=Smooth(), guidance=GUIDANCES["linear"])
    for stage, (size, guided) in enumerate(zip(layout.group_sizes, law.logits, strict=True)):
        share, places = stage / 3, torch.arange(start, start + size).expand(7, -1)
        filtered = law.law(guided)  # the same logits up to a constant for each token, which a softmax does not see
        tau = max(0.27 * (1 - 0.95 * share), 0.005)
        weights = ((filtered * (1 + share) + gumbel(seven_keys(), places, 13)) / tau).softmax(-1)
        codes = sum(
            weights[..., code, None] * quantizer.quantizer_of(stage).codes(torch.tensor(code)) for code in range(13)
        )
        latents = latents + quantizer.view.restore(codes.unflatten(1, layout.sizes[stage]), stage, layout)
        assert torch.equal(smooth.tokens[:, start : start + size], weights.argmax(-1))
        start += size
    torch.testing.assert_close(smooth.latents, latents, atol=1e-4, rtol=1e-4)
    assert not torch.equal(smooth.tokens, drawn(pair, law=LAWS["truncated"], guidance=GUIDANCES["linear"]).tokens)


@pytest.mark.parametrize("guidance", ["none", "linear"])
def test_towards_temperature_zero_it_is_ordinary_sampling(pair, guidance):
    plain = drawn(pair, guidance=GUIDANCES[guidance])
    cold = drawn(pair, guidance=GUIDANCES[guidance], smooth=Smooth(tau=1e-5, sharpen=0.0))
    assert torch.equal(cold.tokens, plain.tokens)
    torch.testing.assert_close(cold.latents, plain.latents, atol=1e-3, rtol=1e-3)


def test_codes_without_a_table_are_mixed_too():
    pair = make_pair(SCALES, stage=SignConfig(bits=4, l2_norm=False))
    plain, cold = drawn(pair), drawn(pair, smooth=Smooth(tau=1e-5, sharpen=0.0))
    assert torch.equal(cold.tokens, plain.tokens)
    torch.testing.assert_close(cold.latents, plain.latents, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(drawn(pair, smooth=Smooth()).latents, plain.latents, atol=0.1)


@torch.no_grad()
def test_sharpening_lowers_the_laws_temperature():
    """Where mixtures are single codes, s = 2 at the last stage acts as half the temperature; at first s = 1."""
    generator, quantizer = pair = make_pair(((1, 2), (2, 4)))
    tokens = drawn(pair, smooth=Smooth(tau=1e-5, sharpen=1.0)).tokens
    logits = generator(quantizer.inputs(tokens, generator.config.layout), LABELS)
    temperatures = torch.tensor([1.0, 0.5]).repeat_interleave(torch.tensor([2, 8]))[:, None]
    noise = gumbel(seven_keys(), torch.arange(10).expand(7, -1), 13)
    assert torch.equal(tokens, (Law()(logits / temperatures) + noise).argmax(-1))
    assert not torch.equal(tokens, (Law()(logits) + noise).argmax(-1))


def test_where_one_token_is_left_its_mixture_is_its_code(pair):
    plain, smooth = (drawn(pair, law=Law(top_k=1), smooth=way) for way in (None, Smooth(tau=5.0)))
    assert torch.equal(smooth.tokens, plain.tokens)
    torch.testing.assert_close(smooth.latents, plain.latents, atol=1e-5, rtol=1e-5)
    zero = drawn(pair, law=Law(temperature=0), smooth=Smooth())
    assert torch.equal(zero.tokens, drawn(pair, law=Law(temperature=0)).tokens)


@pytest.mark.parametrize("rows", [[0], [5, 0, 3], [6, 5, 4, 3, 2, 1, 0]])
def test_an_image_is_the_same_in_any_company(pair, rows):
    options = {"smooth": Smooth(), "guidance": GUIDANCES["linear"]}
    whole, alone = drawn(pair, **options), drawn(pair, rows, **options)
    assert torch.equal(alone.tokens, whole.tokens[rows])
    torch.testing.assert_close(alone.latents, whole.latents[rows], atol=2e-3, rtol=2e-3)


def test_a_smaller_tail_goes_on_from_the_mixtures(pair):
    smooth = drawn(pair, smooth=Smooth())
    tail = drawn(pair, smooth=Smooth(), strategy=SmallerTail(pair[0]))
    assert torch.equal(tail.tokens, smooth.tokens)
    torch.testing.assert_close(tail.latents, smooth.latents, atol=2e-3, rtol=2e-3)


def test_what_needs_tokens_is_refused(pair):
    with pytest.raises(ValueError, match=r"StagedDraft compares tokens, .* leave smooth off or draw stage by stage"):
        SamplerConfig(strategy=StagedDraft(pair[0]), smooth=Smooth())
    with pytest.raises(ValueError, match="StagedDraft compares tokens"):
        drawn(pair, strategy=StagedDraft(pair[0]), smooth=Smooth())
    kept = Kept(torch.full((7, 30), -1), torch.zeros(7, 4, 4, 5))
    with pytest.raises(ValueError, match=r"an edit is decoded from its tokens, .* leave smooth off"):
        drawn(pair, kept=kept, smooth=Smooth())


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("tau must be a number above 0, got 0", {"tau": 0.0}),
        ("tau must be a number above 0, got nan", {"tau": float("nan")}),
        ("sharpen must be a number of at least 0, got -1", {"sharpen": -1.0}),
    ],
)
def test_bad_values_are_refused(part, values):
    with pytest.raises(ValueError, match=part):
        Smooth(**values)


def decoded(pair: Pair, smooth: Smooth | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures; those of the tokens; those of the latents that previews have seen last."""
    generator, quantizer = pair
    tokenizer = make_tokenizer(ResidualConfig(stage=STAGE, view=ScalesConfig(scales=SCALES, blends=2)))
    tokenizer.quantizer.load_state_dict(quantizer.state_dict())
    seen, config = list[Tensor](), SamplerConfig(smooth=smooth)
    (pictures,) = generate(generator, tokenizer, LABELS, config, on_preview=lambda number, batch: seen.append(batch))
    (tokens,) = generate_tokens(generator, LABELS, config, quantizer=quantizer)
    return pictures, tokenizer.decode(tokens, generator.config.layout), seen[-1]


def test_pictures_come_from_the_mixtures(pair):
    pictures, of_tokens, last = decoded(pair, Smooth())
    assert torch.equal(pictures, last)
    assert (pictures - of_tokens).abs().max() > 1e-3
    pictures, of_tokens, last = decoded(pair, None)
    assert torch.equal(pictures, of_tokens)
    assert torch.equal(pictures, last)
