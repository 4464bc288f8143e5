"""Two next-scale generators of one tokenizer: the same images in fewer calls, or the last stages by the smaller one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.generators.pack import packed
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample.engine import Drawn
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, Statistics, generate, generate_tokens
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.kept import Kept
from imgtok.sample.law import Law
from imgtok.sample.next_scale import StageByStage, sample_stages
from imgtok.sample.noise import gumbel, image_keys
from imgtok.sample.smooth import Smooth
from imgtok.sample.staged_draft import SmallerTail, StagedDraft
from imgtok.sample.strategies import STAGE_ENTRIES, StageParts, build_stage_strategy
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.tokens import GridLayout

from ..tiny import CNN
from .test_next_scale import GUIDANCES, LABELS, LAWS, Pair, make_pair, seven_keys

SCALES = (1, 2, 3, 4)
SIZES = (1, 4, 9, 16)
KINDS = ["none", "linear", "constant"]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(SCALES)


@torch.no_grad()
def disturbed(generator: NextScaleGenerator, amount: float, seed: int = 1) -> NextScaleGenerator:
    """Another generator for the same tokens, whose laws differ the more the larger the amount is."""
    other, dice = deepcopy(generator), torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.add_(amount * parameter.std() * torch.randn(parameter.shape, generator=dice))
    return other


def drawn(pair: Pair, rows: Any = slice(None), **options: Any) -> Drawn:
    return sample_stages(*pair, LABELS[rows], seven_keys()[rows], **options)


def calls_of(model: NextScaleGenerator) -> tuple[list[int], Any]:
    """A list that grows by the number of places at each call, until the hook is removed."""
    seen = list[int]()
    return seen, model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))


# -- several stages in one call ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_first_stages_in_one_call_are_those_one_by_one(pair, stages):
    generator, quantizer = pair
    tokens = drawn(pair).tokens
    seen = quantizer.inputs(tokens, generator.config.layout)
    told, caches = generator.tell(LABELS), [generator.new_cache(7) for _ in range(2)]
    parts = [None, *seen.split(SIZES[1:], dim=1)][:stages]
    one_by_one = [generator.score(told, stage, part, caches[0]) for stage, part in enumerate(parts)]
    at_once = generator.score_first(told, seen[:, : sum(SIZES[1:stages])], caches[1])
    torch.testing.assert_close(at_once, torch.cat(one_by_one, dim=1), atol=1e-4, rtol=1e-4)
    end = sum(SIZES[:stages])
    for one, other in zip(caches[0].keys + caches[0].values, caches[1].keys + caches[1].values, strict=True):
        torch.testing.assert_close(other[:, :, :end], one[:, :, :end], atol=1e-4, rtol=1e-4)
        assert not other[:, :, end:].any()


# -- drafts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("guidance", KINDS)
@pytest.mark.parametrize("amount", [0.0, 0.03, 1.0])
def test_drafted_images_are_those_of_plain_sampling(pair, amount, guidance, stages, law):
    options = {"guidance": GUIDANCES[guidance], "law": LAWS[law]}
    plain = drawn(pair, **options)
    fast = drawn(pair, **options, strategy=StagedDraft(disturbed(pair[0], amount), stages))
    assert torch.equal(fast.tokens, plain.tokens)
    assert torch.equal(fast.latents, plain.latents)
    assert 4 - stages <= int(fast.calls[0]) <= 4
    if amount == 0:
        assert fast.calls.tolist() == [4 - stages] * 7


def test_the_first_call_commits_all_stages_up_to_the_first_wrong_draft(pair):
    """And the one after the drafts, if none is wrong; calls and their tokens are counted accordingly."""
    right = drawn(pair, strategy=StagedDraft(pair[0], 2))
    assert {count: int(calls) for count, calls in enumerate(right.accepted) if calls} == {1 + 4 + 9: 7, 16: 7}
    wrong = drawn(pair, strategy=StagedDraft(disturbed(pair[0], 1.0), 2))
    assert {count: int(calls) for count, calls in enumerate(wrong.accepted) if calls} == dict.fromkeys(SIZES, 7)
    for each in (right, wrong):
        assert int(each.accepted.sum()) == int(each.calls.sum())
        assert int((each.accepted * torch.arange(len(each.accepted))).sum()) == each.tokens.numel()


def test_networks_are_called_as_often_as_it_is_told(pair):
    small = disturbed(pair[0], 1.0)
    (large_calls, large), (small_calls, little) = calls_of(pair[0]), calls_of(small)
    try:
        fast = drawn(pair, strategy=StagedDraft(small, 3))
    finally:
        large.remove()
        little.remove()
    assert small_calls == [1, 4, 9]
    assert large_calls == [30, 4, 9, 16]  # nothing was right but what was chosen without a draft
    assert fast.calls.tolist() == [4] * 7


def test_a_batch_goes_on_from_the_earliest_wrong_draft(pair):
    """Images alone take between 1 and 4 calls; together as many as the one that takes most, and none changes."""
    way = StagedDraft(disturbed(pair[0], 0.2), 3)
    alone = [drawn(pair, [row], strategy=way) for row in range(7)]
    calls = [int(each.calls) for each in alone]
    assert len(set(calls)) > 1
    for rows in ([0, 1], [2, 3, 4], list(range(7))):
        together = drawn(pair, rows, strategy=way)
        assert together.calls.tolist() == [max(calls[row] for row in rows)] * len(rows)
        assert torch.equal(together.tokens, torch.cat([alone[row].tokens for row in rows]))


def test_an_edit_may_be_drafted(pair):
    generator, quantizer = pair
    dice = torch.Generator().manual_seed(3)
    latents = torch.randn(7, 4, 4, 5, generator=dice)
    tokens = generator.config.layout.flatten(quantizer.nearest(latents))
    kept = Kept(tokens.masked_fill(torch.rand(tokens.shape, generator=dice) < 0.5, -1), latents)
    plain = drawn(pair, kept=kept)
    assert not torch.equal(plain.tokens, drawn(pair).tokens)
    for amount in (0.0, 1.0):
        fast = drawn(pair, kept=kept, strategy=StagedDraft(disturbed(generator, amount)))
        assert torch.equal(fast.tokens, plain.tokens)


# -- a smaller one for the rest ---------------------------------------------------------------------------------------


@torch.no_grad()
def by_two(pair: Pair, small: NextScaleGenerator, count: int, law: Law, guidance: Guidance) -> Tensor:
    """Tokens b n, the last `count` stages by `small`: each stage reads all before it again, without a cache."""
    (large, quantizer), layout, keys = pair, pair[0].config.layout, seven_keys()
    tokens, both, stop = torch.zeros(7, layout.num_tokens, dtype=torch.int64), large.condition.with_null(LABELS), 0
    for stage, (size, scale) in enumerate(zip(layout.group_sizes, guidance.scales(4), strict=True)):
        start, stop, model = stop, stop + size, large if stage < 4 - count else small
        conditional, null = model(quantizer.inputs(tokens, layout).repeat(2, 1, 1), both)[:, start:stop].chunk(2)
        places = torch.arange(start, stop).expand(7, -1)
        log_law = law(null + scale * (conditional - null))
        tokens[:, start:stop] = (log_law + gumbel(keys, places, log_law.shape[-1])).argmax(-1)
    return tokens


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("guidance", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_smaller_tail_equals_the_plain_loop_of_both(pair, count, guidance, law):
    small = disturbed(pair[0], 1.0)
    expected = by_two(pair, small, count, LAWS[law], GUIDANCES[guidance])
    options = {"guidance": GUIDANCES[guidance], "law": LAWS[law]}
    assert torch.equal(drawn(pair, **options, strategy=SmallerTail(small, count)).tokens, expected)
    assert not torch.equal(expected, drawn(pair, **options).tokens)
    own = drawn(pair, **options, strategy=SmallerTail(pair[0], count))
    assert torch.equal(own.tokens, drawn(pair, **options).tokens)


def test_the_smaller_one_reads_what_came_before_once(pair):
    small = disturbed(pair[0], 1.0)
    (large_calls, large), (small_calls, little) = calls_of(pair[0]), calls_of(small)
    try:
        both = drawn(pair, strategy=SmallerTail(small, 2))
    finally:
        large.remove()
        little.remove()
    assert (large_calls, small_calls) == ([1, 4], [14, 16])
    assert both.calls.tolist() == [4] * 7


@pytest.mark.parametrize("rows", [[0], [5, 0, 3], [6, 5, 4, 3, 2, 1, 0]])
def test_an_image_of_two_models_is_the_same_in_any_company(pair, rows):
    options = {"strategy": SmallerTail(disturbed(pair[0], 1.0)), "guidance": GUIDANCES["linear"]}
    assert torch.equal(drawn(pair, rows, **options).tokens, drawn(pair, **options).tokens[rows])


# -- names, refusals, pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGE_ENTRIES)
def test_each_draws_and_guarantees_what_its_entry_says(pair, name):
    generator, quantizer = pair
    draft = packed(disturbed(generator, 0.2))
    way, entry = build_stage_strategy(name, StageParts(generator=generator, draft=draft)), STAGE_ENTRIES[name]
    assert way.guarantee == entry.guarantee
    config = SamplerConfig(strategy=way, batch_size=3)
    tokens, plain = (
        torch.cat(list(generate_tokens(generator, LABELS, each, quantizer=quantizer)))
        for each in (config, SamplerConfig())
    )
    assert torch.equal(tokens, plain) == (entry.guarantee == "pathwise")
    if entry.needs_draft:
        with pytest.raises(ValueError, match=f"strategy '{name}' needs a draft model"):
            build_stage_strategy(name, StageParts(generator=generator))


def test_the_draft_models_stages_can_be_chosen_and_are_fewer_than_all(pair):
    parts = {"generator": pair[0], "draft": pair[0]}
    assert build_stage_strategy("staged-draft", StageParts(**parts)).stages == 2
    assert build_stage_strategy("smaller-tail", StageParts(**parts)).stages == 2
    assert build_stage_strategy("smaller-tail", StageParts(**parts, stages=3)).stages == 3
    two = make_pair((1, 2))[0]
    assert build_stage_strategy("staged-draft", StageParts(generator=two, draft=two)).stages == 1
    for stages in (0, 4):
        with pytest.raises(ValueError, match=f"at least 1 and less than all 4, got {stages}"):
            build_stage_strategy("staged-draft", StageParts(**parts, stages=stages))
        with pytest.raises(ValueError, match=f"at least 1 and less than all 4, got {stages}"):
            drawn(pair, strategy=SmallerTail(pair[0], stages))
    with pytest.raises(ValueError, match="'jacobi' is none of next-scale generators; choose from plain, staged-draft"):
        build_stage_strategy("jacobi", StageParts(**parts))


def test_a_model_of_another_tokenizer_is_refused(pair):
    for other, why in (
        (make_pair(SCALES, codebook_size=12)[0], "codes of the draft generator, 12, must be"),
        (make_pair((1, 2, 4))[0], "the layout of the draft generator"),
    ):
        for way in (StagedDraft(other, 1), SmallerTail(other, 1)):
            with pytest.raises(ValueError, match=why):
                drawn(pair, strategy=way)


def test_what_is_for_the_other_kind_of_generator_is_refused(pair, make_generator):
    generator, quantizer = pair
    next_token, condition = make_generator(GridLayout(3, 4)), torch.tensor([[0, 1]])
    for config, why in (
        (SamplerConfig(strategy=StageByStage()), "StageByStage is for next-scale generators"),
        (SamplerConfig(strategy=StagedDraft(generator)), "StagedDraft is for next-scale generators"),
        (SamplerConfig(smooth=Smooth()), "smooth is for next-scale generators"),
    ):
        with pytest.raises(ValueError, match=why):
            next(generate_tokens(next_token, condition, config))
    for config in (
        SamplerConfig(strategy=Jacobi()),
        SamplerConfig(compile=True),
        SamplerConfig(strategy=StageByStage(), compile=True),
    ):
        with pytest.raises(ValueError, match="strategies and compiled rounds are for next-token generators"):
            next(generate_tokens(generator, LABELS, config, quantizer=quantizer))


def make_tokenizer(quantizer: ResidualConfig) -> Tokenizer:
    return TokenizerConfig(image_size=16, backbone=CNN, quantizer=quantizer).build().eval()


def test_pictures_are_those_of_the_tokens(pair):
    """They are decoded from the latents that drawing has added up: the same numbers, computed once."""
    generator, quantizer = pair
    stage = VectorConfig(codebook_size=13, codebook_dim=5, l2_norm=False)
    tokenizer = make_tokenizer(ResidualConfig(stage=stage, view=ScalesConfig(scales=SCALES, blends=2)))
    tokenizer.quantizer.load_state_dict(quantizer.state_dict())
    statistics = Statistics()
    config = SamplerConfig(batch_size=3, strategy=StagedDraft(generator))
    pictures = list(generate(generator, tokenizer, LABELS, config, seed=2, statistics=statistics))
    tokens = list(generate_tokens(generator, LABELS, config, quantizer=quantizer, seed=2))
    assert [len(batch) for batch in pictures] == [3, 3, 1]
    assert not any(batch.requires_grad for batch in pictures)
    for batch, codes in zip(pictures, tokens, strict=True):
        assert torch.equal(batch, tokenizer.decode(codes, generator.config.layout))
    assert (statistics.images, statistics.tokens, statistics.calls_per_image) == (7, 210, 2)
    assert statistics.seconds.keys() == {"draft", "model", "law", "latents"}


def test_another_run_draws_other_images(pair):
    way = StagedDraft(pair[0])
    tokens = [sample_stages(*pair, LABELS, image_keys(seed, range(7)), strategy=way).tokens for seed in (0, 1)]
    assert not torch.equal(*tokens)
