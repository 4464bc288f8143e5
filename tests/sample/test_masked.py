"""Iterative unmasking: against the plainest loop, against enumeration, and for what it promises of every image."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.backbones.query import PixelHeadConfig, QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.masked import MaskedConfig, MaskedGenerator
from imgtok.quantizers.vector import VectorConfig
from imgtok.sample.engine import Clock
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, Statistics, generate, generate_tokens
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.kept import Kept
from imgtok.sample.law import Law
from imgtok.sample.masked import Unmasking, choose, sample_masked
from imgtok.sample.noise import gumbel, image_keys
from imgtok.tokenizer import TokenizerConfig
from imgtok.tokens import SequenceLayout

from .frequencies import check_frequencies

LENGTH, CODES = 9, 13
LABELS = torch.tensor([[i % 5] for i in range(7)])  # 4 is null
WAYS = {
    "plain": Unmasking(),
    "annealed": Unmasking(steps=5, noise=4.0, anneal=True),
    "certain": Unmasking(steps=4, noise=0.0),
    "one": Unmasking(steps=1, noise=2.0),
    "many": Unmasking(steps=12),
}
GUIDANCES = {
    "none": Guidance(),
    "constant": Guidance(scale=3.0),
    "first-only": Guidance(scale=3.0, steps=1),
    "linear": Guidance(scale=2.5, schedule="linear"),
    "cosine": Guidance(scale=5.0, schedule="cosine", power=2.0),
}


@pytest.fixture(scope="module")
def generator() -> MaskedGenerator:
    """With weights strong enough for laws that differ."""
    config = MaskedConfig(
        layout=SequenceLayout(LENGTH),
        codebook_size=CODES,
        condition=LabelConditionConfig(labels=(Label(size=4),)),
        width=16,
        depth=2,
        num_heads=4,
    )
    built, dice = config.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.copy_(2 / math.sqrt(parameter.shape[-1]) * torch.randn(parameter.shape, generator=dice))
    return built


def keys(rows: int = 7, seed: int = 0) -> Tensor:
    return image_keys(seed, range(rows))


@torch.no_grad()
def plainly(generator: MaskedGenerator, label: Tensor, key: Tensor, way: Unmasking, guidance: Guidance) -> list[int]:
    """One image, as the published loop goes: token by token, in Python, guidance always with both passes."""
    mask, steps, tokens = generator.mask_token, way.steps, [generator.mask_token] * LENGTH
    places = torch.arange(LENGTH)[None]
    for step, scale in enumerate(guidance.scales(steps)):
        given = torch.tensor([tokens])
        conditional, null = (generator(given, told)[0] for told in (label[None], torch.tensor([[4]])))
        ratio = (step + 1) / steps
        logits = (null + scale * (conditional - null)) / (0.5 + 0.8 * (1 - ratio) if way.anneal else 1)
        temperature = way.noise * (1 - ratio)
        choice = gumbel(key[None], places, CODES, torch.tensor([[2 * step]]))[0]
        ranking = gumbel(key[None], places, 1, torch.tensor([[2 * step + 1]]))[0, :, 0]
        unknown = [i for i in range(LENGTH) if tokens[i] == mask]
        sure = {}
        for i in unknown:
            tokens[i] = int((logits[i] + temperature * choice[i]).argmax())
            sure[i] = float(logits[i, tokens[i]] + temperature * ranking[i])
        if step < steps - 1:
            share = math.acos(ratio) / (math.pi / 2)
            again = max(1, min(len(unknown) - 1, math.floor(LENGTH * share)))
            for i in sorted(unknown, key=sure.__getitem__)[:again]:
                tokens[i] = mask
    return tokens


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_sampling_equals_the_plain_loop(generator, guidance, way):
    drawn = sample_masked(generator, LABELS, keys(), guidance=GUIDANCES[guidance], unmasking=WAYS[way])
    expected = [
        plainly(generator, label, key, WAYS[way], GUIDANCES[guidance])
        for label, key in zip(LABELS, keys(), strict=True)
    ]
    assert drawn.tokens.tolist() == expected
    assert drawn.tokens.unique().numel() > 3
    assert drawn.calls.tolist() == [WAYS[way].steps] * 7
    assert int((drawn.accepted * torch.arange(len(drawn.accepted))).sum()) == drawn.tokens.numel()
    assert int(drawn.accepted.sum()) == 7 * WAYS[way].steps


# -- how many, and which -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 8, 64])
def test_fewer_and_fewer_are_left_and_none_in_the_end(steps):
    for unknown in range(130):
        left = Unmasking(steps=steps).left(unknown)
        assert len(left) == steps and left[-1] == 0
        for before, after in zip([unknown, *left], left[:-1], strict=False):
            assert after < before or after == before == min(1, unknown)


def test_the_published_schedule_of_eight_steps_and_32_tokens():
    """floor(32 arccos(s / 8) / (pi / 2)), worked out by hand for s = 1 … 7."""
    assert Unmasking(steps=8).left(32) == [29, 26, 24, 21, 18, 14, 10, 0]


def test_known_tokens_stay_and_the_surest_become_known_first(generator):
    seen = [torch.full((7, LENGTH), CODES)]
    sample_masked(
        generator, LABELS, keys(), unmasking=Unmasking(steps=4, noise=0.0), on_step=lambda t, guesses: seen.append(t)
    )
    for before, after in pairwise(seen):
        known = before != CODES
        assert torch.equal(after[known], before[known])
        assert ((after != CODES).sum(1) > known.sum(1)).all()
    with torch.no_grad():
        best = generator(seen[0], LABELS).amax(-1)
    kept = seen[1] != CODES
    assert (best.masked_fill(~kept, torch.inf).amin(1) >= best.masked_fill(kept, -torch.inf).amax(1)).all()


# -- laws --------------------------------------------------------------------------------------------------------------


class Fixed:
    """The same logits whatever is known, but for places that are masked alone: two places, five codes."""

    num_tokens, mask_token, device = 2, 5, torch.device("cpu")
    logits = torch.tensor([[0.3, -1.0, 0.8, 0.0, -0.4], [1.0, 0.2, -0.7, 0.5, 0.1]])
    condition = SimpleNamespace(with_null=lambda condition: torch.cat([condition, condition]))

    def __call__(self, tokens: Tensor, condition: Tensor) -> Tensor:
        return self.logits.expand(len(tokens), -1, -1)


LAWS = {"all": Law(), "truncated": Law(temperature=1.5, top_k=4), "greedy": Law(temperature=0)}
MANY = 60_000


@pytest.mark.parametrize("law", ["all", "truncated"])
@pytest.mark.parametrize("step", [0, 3])
def test_the_tokens_of_a_step_have_their_law(law, step):
    places = torch.arange(2).expand(MANY, -1)
    chosen = choose(LAWS[law], Fixed.logits.expand(MANY, -1, -1), keys(MANY), places, step, temperature=0.7)
    laws = LAWS[law](Fixed.logits.double() / 0.7).exp()
    joint = laws[0, :, None] * laws[1]
    check_frequencies(torch.bincount(chosen[:, 0] * 5 + chosen[:, 1], minlength=25), joint.flatten())


@pytest.mark.parametrize("law", ["all", "truncated"])
def test_what_stays_after_the_first_step_has_its_law(law):
    """Of two tokens one stays: the chance is the logistic of how much surer it is, in units of the temperature."""
    seen, t = list[Tensor](), 0.75
    unmasking = Unmasking(steps=2, noise=2 * t)
    toy: Any = Fixed()
    sample_masked(
        toy,
        torch.zeros(MANY, 1, dtype=torch.int64),
        keys(MANY),
        law=LAWS[law],
        unmasking=unmasking,
        on_step=lambda tokens, guesses: seen.append(tokens),
    )
    logits = Fixed.logits.double()
    laws = LAWS[law](logits / t).exp()
    joint = laws[0, :, None] * laws[1]
    first_stays = torch.sigmoid((logits[0, :, None] - logits[1]) / t)
    expected = torch.cat([(joint * first_stays).sum(1), (joint * (1 - first_stays)).sum(0)])
    tokens = seen[0]
    assert ((tokens == 5).sum(1) == 1).all()
    outcome = torch.where(tokens[:, 0] != 5, tokens[:, 0], 5 + tokens[:, 1])
    check_frequencies(torch.bincount(outcome, minlength=10), expected)


def test_a_law_of_temperature_zero_takes_the_likeliest_tokens(generator):
    with torch.no_grad():
        likeliest = generator(torch.full((7, LENGTH), CODES), LABELS).argmax(-1)
    seen = list[Tensor]()
    sample_masked(generator, LABELS, keys(), law=LAWS["greedy"], on_step=lambda tokens, guesses: seen.append(guesses))
    assert torch.equal(seen[0], likeliest)


# -- batches, kept tokens, previews, errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=3.0, schedule="linear")])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_an_image_is_the_same_in_any_batch(generator, batch_size, guidance):
    def tokens(size: int, first: int = 0) -> Tensor:
        config = SamplerConfig(guidance=guidance, unmasking=WAYS["annealed"], batch_size=size)
        return torch.cat(list(generate_tokens(generator, LABELS[first:], config, seed=3, first=first)))

    whole = tokens(7)
    assert torch.equal(tokens(batch_size), whole)
    assert torch.equal(tokens(batch_size, first=2), whole[2:])
    assert not torch.equal(whole[0], whole[5])


def test_kept_tokens_stay_and_each_image_draws_as_many_as_it_lacks(generator):
    tokens = torch.arange(7 * LENGTH).reshape(7, LENGTH) % CODES
    free = torch.arange(LENGTH) < torch.tensor([0, 1, 2, 4, 6, 8, 9])[:, None]
    kept, seen = Kept(tokens.masked_fill(free, -1), torch.empty(7, 0)), list[Tensor]()
    drawn = sample_masked(
        generator, LABELS, keys(), kept=kept, unmasking=Unmasking(steps=3), on_step=lambda t, g: seen.append(t)
    )
    assert torch.equal(drawn.tokens[~free], tokens[~free])
    assert (drawn.tokens < CODES).all()
    left = [Unmasking(steps=3).left(n) for n in (0, 1, 2, 4, 6, 8, 9)]
    assert [(t == CODES).sum(1).tolist() for t in seen] == [list(row) for row in zip(*left, strict=True)]
    whole = sample_masked(generator, LABELS, keys(), unmasking=Unmasking(steps=3)).tokens
    assert torch.equal(drawn.tokens[6], whole[6])


def test_pictures_of_a_sequence_of_tokens_are_drawn_watched_and_counted(generator):
    vit = ViTConfig(width=16, depth=1, num_heads=2)
    backbone = QueryConfig(
        latents=(LENGTH,), patch_size=4, grid=(2, 2), encoder=vit, decoder=vit, head=PixelHeadConfig(kernel=3)
    )
    quantizer = VectorConfig(codebook_size=CODES, codebook_dim=4)
    tokenizer = TokenizerConfig(image_size=8, backbone=backbone, quantizer=quantizer).build().eval()
    previews, statistics, config = list[Tensor](), Statistics(), SamplerConfig(batch_size=4)
    batches = generate(
        generator,
        tokenizer,
        LABELS,
        config,
        statistics=statistics,
        on_preview=lambda first, pictures: previews.append(pictures),
        preview_every=3,
    )
    images = torch.cat(list(batches))
    assert images.shape == (7, 3, 8, 8)
    assert [len(pictures) for pictures in previews] == [4, 4, 3, 3]  # after 3 and 6 of 8 steps
    assert (statistics.images, statistics.tokens, statistics.calls) == (7, 7 * LENGTH, 7 * 8)
    assert statistics.seconds.keys() == {"model", "law", "couple"}


def test_a_clock_changes_nothing(generator):
    clock = Clock(torch.device("cpu"))
    timed = sample_masked(generator, LABELS, keys(), clock=clock).tokens
    assert torch.equal(timed, sample_masked(generator, LABELS, keys()).tokens)


@pytest.mark.parametrize("config", [SamplerConfig(strategy=Jacobi(window=2)), SamplerConfig(compile=True)])
def test_what_only_next_token_generators_know_is_refused(generator, config):
    with pytest.raises(ValueError, match="strategies and compiled rounds are for next-token generators"):
        list(generate_tokens(generator, LABELS, config))


def test_logits_that_are_no_numbers_are_told(generator):
    toy: Any = Fixed()
    toy.logits = torch.full((2, 5), torch.nan)
    with pytest.raises(ValueError, match="not finite numbers for 3 of 3 images"):
        sample_masked(toy, torch.zeros(3, 1, dtype=torch.int64), keys(3))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"noise": -0.5}, "noise must be a finite number of at least 0, got -0.5"),
        ({"noise": math.nan}, "noise must be a finite number of at least 0, got nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        Unmasking(**settings)
