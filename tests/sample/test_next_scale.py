"""Sampling stage by stage, against the plainest loop, against enumeration, and for what must not happen inside it."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.next_scale import NextScaleConfig, NextScaleGenerator
from imgtok.generators.pack import packed
from imgtok.nn.packed import PackedLinear
from imgtok.quantizers.residual import ResidualConfig, ResidualQuantizer
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample import next_scale
from imgtok.sample.eager_stages import draw_eagerly
from imgtok.sample.engine import Clock
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.next_scale import new_cache
from imgtok.sample.noise import gumbel, image_keys

from .frequencies import check_frequencies
from .no_sync import NoSync
from .toys import Recorder

LABELS = torch.tensor([[i % 5] for i in range(7)])  # 4 is null
GUIDANCES = {
    "none": Guidance(),
    "constant": Guidance(scale=3.0),
    "first-only": Guidance(scale=3.0, steps=1),
    "linear": Guidance(scale=2.5, schedule="linear"),
    "cosine": Guidance(scale=5.0, schedule="cosine", power=2.0),
    "below-one": Guidance(scale=0.0),
}
LAWS = {"all": Law(), "truncated": Law(temperature=0.8, top_k=7, top_p=0.9), "greedy": Law(temperature=0)}
Pair = tuple[NextScaleGenerator, ResidualQuantizer]


def make_pair(
    scales: tuple[Any, ...] = (1, 2, 3),
    *,
    codebook_size: int = 13,
    shared: bool = False,
    blends: int = 2,
    stage: Any = None,
) -> Pair:
    """A random generator, with weights strong enough for laws that differ, and a random quantizer for it."""
    stage = stage or VectorConfig(codebook_size=codebook_size, codebook_dim=5, l2_norm=False)
    quantizer = ResidualConfig(stage=stage, view=ScalesConfig(scales=scales, blends=blends)).build().eval()
    last = scales[-1] if isinstance(scales[-1], tuple) else (scales[-1], scales[-1])
    generator = NextScaleConfig(
        layout=quantizer.layout_of(*last),
        codebook_size=stage.codebook_size,
        codebook_dim=stage.codebook_dim,
        condition=LabelConditionConfig(labels=(Label(size=4),)),
        width=16,
        depth=2,
        num_heads=4,
        shared_modulation=shared,
    )
    built, dice = generator.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*built.parameters(), *quantizer.parameters()):
            scale = 0.5 if parameter.ndim == 1 else 1.5 / math.sqrt(parameter.shape[-1])
            parameter.copy_(scale * torch.randn(parameter.shape, generator=dice))
    return built, quantizer


@pytest.fixture(scope="module", params=["square", "wide-shared"])
def pair(request) -> Pair:
    return make_pair() if request.param == "square" else make_pair((1, (1, 2), (2, 4)), shared=True)


def sample_tokens(pair: Pair, *args: Any, **kwargs: Any) -> Tensor:
    return next_scale.sample_stages(*pair, *args, **kwargs).tokens


def seven_keys(seed: int = 0) -> Tensor:
    return image_keys(seed, range(7))


@torch.no_grad()
def plainly(pair: Pair, labels: Tensor, keys: Tensor, law: Law, guidance: Guidance) -> tuple[Tensor, Tensor]:
    """Tokens b n and guided logits b n v: each stage reads everything again, conditional and null rows to the end."""
    (generator, quantizer), layout = pair, pair[0].config.layout
    tokens, parts = torch.zeros(len(keys), layout.num_tokens, dtype=torch.int64), list[Tensor]()
    both, stop = generator.condition.with_null(labels), 0
    for size, scale in zip(layout.group_sizes, guidance.scales(len(layout.sizes)), strict=True):
        start, stop = stop, stop + size
        seen = quantizer.inputs(tokens, layout).repeat(2, 1, 1)
        conditional, null = generator(seen, both)[:, start:stop].chunk(2)
        parts.append(null + scale * (conditional - null))
        places = torch.arange(start, stop).expand(len(keys), -1)
        tokens[:, start:stop] = (law(parts[-1]) + gumbel(keys, places, conditional.shape[-1])).argmax(-1)
    return tokens, torch.cat(parts, dim=1)


# -- the cache, guidance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_sampling_equals_the_plain_loop(pair, guidance, law):
    recorder = Recorder(LAWS[law])
    tokens = sample_tokens(pair, LABELS, seven_keys(), law=recorder, guidance=GUIDANCES[guidance])
    expected, logits = plainly(pair, LABELS, seven_keys(), LAWS[law], GUIDANCES[guidance])
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(torch.cat(recorder.logits, dim=1), logits, atol=1e-4, rtol=1e-4)
    assert tokens.unique().numel() > 3


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_sampling_equals_the_published_way(pair, guidance):
    """With the noise of ours in its place; the logits agree as far as rounding lets them."""
    (generator, quantizer), keys, seen = pair, seven_keys(), list[Tensor]()

    def choose(logits: Tensor, start: int) -> Tensor:
        seen.append(logits)
        places = torch.arange(start, start + logits.shape[1]).expand(7, -1)
        return (LAWS["truncated"](logits) + gumbel(keys, places, logits.shape[-1])).argmax(-1)

    scales, recorder = GUIDANCES[guidance].scales(generator.num_stages), Recorder(LAWS["truncated"])
    expected = draw_eagerly(generator, quantizer, LABELS, scales, choose)
    assert torch.equal(sample_tokens(pair, LABELS, keys, law=recorder, guidance=GUIDANCES[guidance]), expected)
    torch.testing.assert_close(torch.cat(recorder.logits, dim=1), torch.cat(seen, dim=1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("guidance", ["none", "linear"])
def test_a_packed_generator_draws_the_same(pair, guidance):
    generator, quantizer = pair
    copy = packed(generator)
    assert copy is not generator
    assert sum(isinstance(part, PackedLinear) for part in copy.modules()) == 2 * 4 + 1
    recorders = Recorder(Law()), Recorder(Law())
    tokens = [
        sample_tokens((model, quantizer), LABELS, seven_keys(), law=recorder, guidance=GUIDANCES[guidance])
        for model, recorder in zip((generator, copy), recorders, strict=True)
    ]
    assert torch.equal(*tokens)
    logits, expected = (torch.cat(recorder.logits, dim=1) for recorder in recorders)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_scale_one_is_no_guidance(pair):
    plain = sample_tokens(pair, LABELS, seven_keys())
    for guidance in (Guidance(scale=1.0), Guidance(scale=4.0, steps=0), Guidance(schedule="linear")):
        assert torch.equal(sample_tokens(pair, LABELS, seven_keys(), guidance=guidance), plain)
    assert not torch.equal(sample_tokens(pair, LABELS, seven_keys(), guidance=Guidance(scale=4.0)), plain)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, [7, 7, 7]), (3.0, [8, 14, 14])])
def test_null_rows_are_computed_for_guidance_only_and_once_while_they_are_equal(pair, scale, rows):
    generator, seen = pair[0], list[int]()
    hook = generator.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        sample_tokens(pair, LABELS, seven_keys(), guidance=Guidance(scale=scale))
    finally:
        hook.remove()
    assert seen == rows
    assert new_cache(generator, 7, Guidance(scale=scale)).rows == rows[-1]


def test_linear_guidance_begins_with_the_condition_alone(pair):
    whole, recorder = list[Tensor](), Recorder(Law())
    hook = pair[0].head.register_forward_hook(lambda _, __, logits: whole.append(logits))
    try:
        sample_tokens(pair, LABELS, seven_keys(), law=recorder, guidance=GUIDANCES["linear"])
    finally:
        hook.remove()
    assert torch.equal(recorder.logits[0], whole[0][:7])
    for stage, scale in ((1, 1.75), (2, 2.5)):
        conditional, null = whole[stage].chunk(2)
        torch.testing.assert_close(recorder.logits[stage], null + scale * (conditional - null))


def test_a_cache_may_be_used_again(pair):
    cache = pair[0].new_cache(14)
    guidances = [GUIDANCES[name] for name in ("linear", "none", "constant", "none", "linear")]
    for seed, guidance in enumerate(guidances):
        again = sample_tokens(pair, LABELS, seven_keys(seed), guidance=guidance, cache=cache)
        assert torch.equal(again, sample_tokens(pair, LABELS, seven_keys(seed), guidance=guidance))


def test_one_cache_is_made_where_none_is_given(pair, monkeypatch):
    made, make = [], pair[0].new_cache

    def counting(rows: int) -> Any:
        made.append(rows)
        return make(rows)

    monkeypatch.setattr(pair[0], "new_cache", counting)
    sample_tokens(pair, LABELS, seven_keys())
    sample_tokens(pair, LABELS, seven_keys(), guidance=Guidance(scale=2.0))
    sample_tokens(pair, LABELS, seven_keys(), cache=make(7))
    assert made == [7, 14]


# -- what is told -----------------------------------------------------------------------------------------------------


def test_stages_are_told_with_the_latents_after_them(pair):
    (_, quantizer), layout, seen = pair, pair[0].config.layout, list[tuple[int, Tensor]]()
    tokens = sample_tokens(pair, LABELS, seven_keys(), on_stage=lambda *args: seen.append(args))
    maps = layout.unflatten(tokens)
    assert [stage for stage, _ in seen] == [0, 1, 2]
    for stage, latents in seen:
        torch.testing.assert_close(latents, quantizer.codes(maps, stages=stage + 1))
    assert torch.equal(seen[-1][1], quantizer.codes(maps))


def test_calls_and_their_tokens_are_counted(pair):
    drawn = next_scale.sample_stages(*pair, LABELS, seven_keys())
    sizes = pair[0].config.layout.group_sizes
    assert drawn.calls.tolist() == [3] * 7
    assert {count: int(calls) for count, calls in enumerate(drawn.accepted) if calls} == dict.fromkeys(sizes, 7)
    assert drawn.tokens.shape == (7, sum(sizes))


def test_the_clock_knows_the_parts_of_a_stage(pair):
    clock = Clock(torch.device("cpu"))
    tokens = sample_tokens(pair, LABELS, seven_keys(), clock=clock)
    assert clock.seconds.keys() == {"latents", "model", "law"}
    assert min(clock.seconds.values()) > 0
    assert torch.equal(tokens, sample_tokens(pair, LABELS, seven_keys()))


@torch.no_grad()
def test_logits_that_are_no_numbers_are_refused():
    pair = make_pair()
    pair[0].condition.embeddings[0].weight[2] = torch.nan  # which one of seven images names
    with pytest.raises(ValueError, match="the generator's logits are not finite numbers for 1 of 7 images; use float3"):
        sample_tokens(pair, LABELS, seven_keys())
    others = [0, 1, 3, 4, 5, 6]
    sample_tokens(pair, LABELS[others], seven_keys()[others])
    pair[0].condition.embeddings[0].weight[4] = torch.inf
    with pytest.raises(ValueError, match="6 of 6 images"):
        sample_tokens(pair, LABELS[others], seven_keys()[others], guidance=Guidance(scale=2.0))


# -- one image, whatever its neighbours -------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", ["none", "linear"])
@pytest.mark.parametrize("rows", [[0], [6], [2, 4], [5, 0, 3], [1, 2, 3, 4, 6], [6, 5, 4, 3, 2, 1, 0]])
def test_an_image_is_the_same_in_any_company(pair, guidance, rows):
    whole = sample_tokens(pair, LABELS, seven_keys(), guidance=GUIDANCES[guidance])
    alone = sample_tokens(pair, LABELS[rows], seven_keys()[rows], guidance=GUIDANCES[guidance])
    assert torch.equal(alone, whole[rows])


def test_seeds_and_images_differ(pair):
    drawn = {
        tuple(sample_tokens(pair, LABELS[:1], image_keys(seed, [image])).flatten().tolist())
        for seed in (0, 1, -1, 2**64, 2**64 + 1, 2**200)
        for image in (0, 1, 2)
    }
    assert len(drawn) == 18


# -- the law of tokens ------------------------------------------------------------------------------------------------


def test_one_token_kept_is_the_most_likely_one(pair):
    greedy = sample_tokens(pair, LABELS, seven_keys(), law=Law(temperature=0))
    for law in (Law(top_k=1), Law(top_k=1, temperature=3.0), Law(temperature=1e-4)):
        assert torch.equal(sample_tokens(pair, LABELS, seven_keys(1), law=law), greedy)


@torch.no_grad()
def enumerate_law(pair: Pair, labels: Tensor, law: Law, guidance: Guidance) -> Tensor:
    """Of every image, in lexicographic order; given the stages before, tokens of a stage are independent."""
    (generator, quantizer), layout = pair, pair[0].config.layout
    tokens = torch.tensor(list(product(range(generator.config.codebook_size), repeat=layout.num_tokens)))
    seen, both = quantizer.inputs(tokens, layout), generator.condition.with_null(labels.expand(len(tokens), -1))
    conditional, null = generator(seen.repeat(2, 1, 1), both).chunk(2)
    scales = torch.tensor(guidance.scales(len(layout.sizes))).repeat_interleave(torch.tensor(layout.group_sizes))
    log_probs = law(null + scales[:, None] * (conditional - null))
    return log_probs.gather(-1, tokens[..., None])[..., 0].sum(-1).double().exp()


@pytest.mark.parametrize(
    ("scales", "law", "guidance"),
    [
        ((1, (1, 2)), Law(), Guidance()),
        ((1, (2, 1)), Law(temperature=1.3), Guidance(scale=2.0, schedule="linear")),
        (((1, 2), (1, 2)), Law(temperature=2.5, top_k=3, top_p=0.97), Guidance(scale=1.5, steps=1)),
    ],
)
def test_images_are_drawn_as_often_as_the_model_says(scales, law, guidance):
    """Chi-square over all images from 100,000 draws; a right sampler exceeds the bound once in a million tries."""
    pair, draws, labels = make_pair(scales, codebook_size=4), 100_000, torch.tensor([[2]])
    probs = enumerate_law(pair, labels, law, guidance)
    counts = torch.zeros(len(probs), dtype=torch.int64)
    for start in range(0, draws, 20_000):
        keys = image_keys(11, range(start, start + 20_000))
        tokens = sample_tokens(pair, labels.expand(20_000, -1), keys, law=law, guidance=guidance)
        number = (tokens * 4 ** torch.arange(tokens.shape[1]).flip(0)).sum(1)
        counts += torch.bincount(number, minlength=len(probs))
    check_frequencies(counts, probs)


# -- what must not happen in the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("guidance", ["none", "linear"])
def test_the_loop_reads_no_values(guidance, device):
    """The meta device, which has none, stands for any that is not the CPU; blends need an autocast that it lacks."""
    generator, quantizer = (part.to(device) for part in make_pair(blends=0 if device == "meta" else 2))
    labels, keys = LABELS.to(device), seven_keys().to(device)
    with NoSync(rounds=3) as watch:
        next_scale.sample_stages(
            generator,
            quantizer,
            labels,
            keys,
            law=LAWS["truncated"],
            guidance=GUIDANCES[guidance],
            on_stage=lambda stage, latents: watch.round(),
        )
    assert watch.rounds == 0
    assert watch.calls > 100


@pytest.mark.parametrize("guidance", ["none", "linear"])
def test_the_loop_allocates_no_cache(guidance, monkeypatch):
    pair = make_pair((1, 2, 3))
    cache, places = pair[0].new_cache(400), set()  # larger than any activation
    tensors = [*cache.keys, *cache.values]
    monkeypatch.setattr(pair[0], "new_cache", lambda *args, **kwargs: pytest.fail("a second cache"))
    with NoSync(cache=tensors, rounds=3) as watch:

        def look(stage: int, latents: Tensor) -> None:
            places.add(tuple(tensor.data_ptr() for tensor in (*cache.keys, *cache.values)))
            watch.round()

        sample_tokens(pair, LABELS, seven_keys(), guidance=GUIDANCES[guidance], cache=cache, on_stage=look)
    assert watch.rounds == 0
    assert len(places) == 1


def test_no_gradients_are_kept(pair):
    recorder, kept = Recorder(Law()), list[Tensor]()
    sample_tokens(pair, LABELS, seven_keys(), law=recorder, on_stage=lambda stage, latents: kept.append(latents))
    assert not any(value.requires_grad for value in (*recorder.logits, *kept))
