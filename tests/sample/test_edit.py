"""Edits: what is kept, what is drawn, and the seam between the two, on real pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.sample.branched import BranchedJacobi
from imgtok.sample.draft_model import DraftModel, EarlyExit
from imgtok.sample.edit import Box, blend, box_mask, edit, fitted, on_canvas
from imgtok.sample.engine import sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate, generate_tokens
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.kept import Kept, filled_in, free_places, keep
from imgtok.sample.lantern import Lantern
from imgtok.sample.law import Law
from imgtok.sample.noise import gumbel, image_keys
from imgtok.sample.plain import Plain
from imgtok.sample.recalling import RecallingJacobi
from imgtok.sample.recycled import Recycled
from imgtok.sample.sjd import SpeculativeJacobi
from imgtok.sample.strategy import Progress
from imgtok.sample.token_tree import StaticTree
from imgtok.tokens import GridLayout, ScaleLayout

from .editing import CODES, SIDE, Pair, make_pair, pictures, seam, stir, train
from .frequencies import check_frequencies
from .no_sync import NoSync
from .toys import TableGenerator

SIZE = (SIDE, SIDE)
OFF_GRID = Box(13, 19, 29, 35)  # cells are 8 pixels wide
LOWER = Box(0, 24, 64, 40)
CONFIG = SamplerConfig(law=Law(top_k=50), guidance=Guidance(scale=2.0, schedule="linear"), batch_size=6)


def masked(box: Box, count: int) -> Tensor:
    return box_mask(box, SIZE).expand(count, -1, -1)


@pytest.fixture(scope="module", params=["next-token", "next-scale"])
def pair(request) -> Pair:
    made = make_pair(request.param == "next-scale")
    stir(made.generator)
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pictures("val", 6)[0]


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(6)[:, None]


def kept_of(pair: Pair, images: Tensor, mask: Tensor) -> Kept:
    return keep(pair.tokenizer, pair.generator.config.layout, images, mask, 4)


def tokens_of(pair: Pair, labels: Tensor, kept: Kept | None, config: SamplerConfig = CONFIG, **options: Any) -> Tensor:
    parts = generate_tokens(
        pair.generator, labels, config, quantizer=pair.tokenizer.quantizer, kept=kept, seed=3, **options
    )
    return torch.cat(list(parts))


def edited(pair: Pair, images: Tensor, mask: Tensor, labels: Tensor, config: SamplerConfig = CONFIG, **options: Any):
    return torch.cat(list(edit(pair.generator, pair.tokenizer, images, mask, labels, config, seed=3, **options)))


# -- what is kept and what is drawn -----------------------------------------------------------------------------------


def test_with_everything_masked_it_is_ordinary_sampling(pair, images, labels):
    drawn = torch.cat(list(generate(pair.generator, pair.tokenizer, labels, CONFIG, seed=3)))
    assert torch.equal(edited(pair, images, torch.ones(6, *SIZE, dtype=torch.bool), labels), drawn)


def test_with_nothing_masked_the_tokens_are_the_pictures_own(pair, images, labels):
    kept = kept_of(pair, images, torch.zeros(6, *SIZE, dtype=torch.bool))
    assert torch.equal(tokens_of(pair, labels, kept), pair.tokenizer.encode(images))


@torch.no_grad()
def test_free_places_follow_the_law_and_forced_ones_show_the_picture(pair, images, labels):
    """Judged by teacher forcing on the outcome, all places at once."""
    generator, quantizer, layout = pair.generator, pair.tokenizer.quantizer, pair.generator.config.layout
    kept, by_stage = kept_of(pair, images, masked(OFF_GRID, 6)), isinstance(pair.generator, NextScaleGenerator)
    tokens, free = tokens_of(pair, labels, kept), kept.tokens < 0
    assert 0.2 < free.float().mean() < 0.5
    read, own, scales = tokens, kept.tokens, torch.tensor(CONFIG.guidance.scales(layout.num_tokens))
    if by_stage:
        read, own = quantizer.inputs(tokens, layout), coded_after(pair, kept, tokens)
        by_group = torch.tensor(CONFIG.guidance.scales(len(layout.sizes)))
        scales = by_group.repeat_interleave(torch.tensor(layout.group_sizes))
        assert not torch.equal(own[~free], kept.tokens[~free])
    both = generator.condition.with_null(labels)
    conditional, null = generator(read.repeat(2, *[1] * (read.ndim - 1)), both).chunk(2)
    law = CONFIG.law(null + scales[:, None] * (conditional - null))
    drawn = (law + gumbel(image_keys(3, range(6)), torch.arange(tokens.shape[1]).expand(6, -1), CODES)).argmax(-1)
    assert torch.equal(tokens, torch.where(free, drawn, own))


def coded_after(pair: Pair, kept: Kept, tokens: Tensor) -> Tensor:
    """b n, what each stage codes of the kept latents after the stages of `tokens` before it."""
    quantizer, layout = pair.tokenizer.quantizer, pair.generator.config.layout
    total, own = torch.zeros_like(kept.latents), []
    for stage, indices in enumerate(layout.unflatten(tokens)):
        own.append(quantizer.nearest_after(kept.latents, total, stage, layout))
        total = quantizer.accumulate(total, indices, stage, layout)
    return layout.flatten(own)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_edit_is_the_same_in_any_batch(pair, images, labels, batch_size):
    kept = kept_of(pair, images, masked(OFF_GRID, 6))
    whole = tokens_of(pair, labels, kept)
    assert torch.equal(tokens_of(pair, labels, kept, replace(CONFIG, batch_size=batch_size)), whole)
    assert torch.equal(tokens_of(pair, labels[2:4], kept.rows(slice(2, 4)), first=2), whole[2:4])


def test_masked_pixels_have_no_influence(pair, images, labels):
    mask = masked(OFF_GRID, 6)
    others = torch.where(mask[:, None], images.flip(0), images)
    assert not torch.equal(others, images)
    assert torch.equal(edited(pair, others, mask, labels), edited(pair, images, mask, labels))


def test_another_class_or_seed_draws_something_else(pair, images, labels):
    mask = masked(OFF_GRID, 6)
    one = edited(pair, images, mask, labels)
    for other in (edited(pair, images, mask, (labels + 1) % 7), edited(pair, images, mask, labels, first=1)):
        assert not (other == one)[:, :, box_mask(OFF_GRID, SIZE)].flatten(1).all(1).any()


# -- strategies: next-token pairs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_token() -> Pair:
    made = make_pair(False)
    stir(made.generator)
    return made


@pytest.mark.parametrize(
    "strategy",
    [Jacobi(window=1), Jacobi(window=16), BranchedJacobi(), RecallingJacobi(), Recycled(), EarlyExit(1)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_pathwise_strategies_give_the_same_edit(by_token, images, labels, strategy):
    kept = kept_of(by_token, images, masked(OFF_GRID, 6))
    config = replace(CONFIG, strategy=strategy, batch_size=4)
    assert torch.equal(tokens_of(by_token, labels, kept, config), tokens_of(by_token, labels, kept))


def test_forced_tokens_save_calls(by_token, images, labels):
    """They are right guesses from the second time on that they are in the window."""
    kept = kept_of(by_token, images, masked(Box(0, 56, 64, 8), 6))  # the last row of 8
    drawn = sample_tokens(
        by_token.generator, labels, image_keys(3, range(6)), strategy=Jacobi(window=13), forced=kept.tokens
    )
    assert int(drawn.calls.max()) <= 2 * 4 + 8  # 14 tokens every other call, 56 / 14 = 4


FORCED = 2


@pytest.fixture(scope="module")
def tables() -> list[TableGenerator]:
    """A target and a draft over four tokens of three codes."""
    dice = torch.Generator().manual_seed(0)
    parts = [
        [torch.rand(*shape, generator=dice, dtype=torch.float64) + 0.1 for shape in ((3,), (3, 3), (3, 3, 3))]
        for _ in range(2)
    ]
    return [TableGenerator(*(part / part.sum(-1, keepdim=True) for part in three), num_tokens=4) for three in parts]


@pytest.mark.parametrize("name", ["plain", "sjd", "sjd-coupled", "draft-maximal", "draft-block", "tree"])
def test_around_a_forced_token_the_law_is_that_of_the_others_given_those_before(tables, name):
    """P(y) = p(y_0) p(y_2 given y_0, f) p(y_3 given f, y_2), by every strategy that is exact."""
    target, draft = tables
    strategy: Any = {
        "plain": lambda: Plain(),
        "sjd": lambda: SpeculativeJacobi(window=2),
        "sjd-coupled": lambda: SpeculativeJacobi(window=2, coupled=True),
        "draft-maximal": lambda: DraftModel(draft, window=2),
        "draft-block": lambda: DraftModel(draft, window=2, coupling="block"),
        "tree": lambda: StaticTree(draft, branching=(2, 1)),
    }[name]()
    rows = 20000
    forced = torch.tensor([-1, FORCED, -1, -1]).expand(rows, -1)
    keys, condition = image_keys(0, range(rows)), torch.zeros(rows, 1)
    tokens = sample_tokens(target, condition, keys, strategy=strategy, forced=forced).tokens  # type: ignore[arg-type]
    assert bool((tokens[:, 1] == FORCED).all())
    first, later = target.first.exp(), target.later.exp()
    joint = first[:, None, None] * later[:, FORCED][:, :, None] * later[FORCED][None]
    counts = torch.bincount(tokens[:, 0] * 9 + tokens[:, 2] * 3 + tokens[:, 3], minlength=27)
    check_frequencies(counts, joint.flatten())


def test_a_strategy_without_a_guarantee_is_refused(by_token, images, labels):
    """It would accept a code that is like the forced one."""
    codes = by_token.tokenizer.quantizer.codes(torch.arange(CODES))
    config = replace(CONFIG, strategy=Lantern(by_token.generator, codes, neighbours=4, delta=0.1))
    with pytest.raises(ValueError, match="Lantern may put a similar token in the place of one that is given"):
        edited(by_token, images, masked(OFF_GRID, 6), labels, config)


@pytest.mark.parametrize("strategy", [Plain(), Jacobi(window=4), BranchedJacobi()], ids=lambda s: type(s).__name__)
def test_forcing_never_waits_for_the_device(by_token, labels, strategy):
    forced = torch.full((6, 64), -1)
    forced[:, ::3] = 5
    with NoSync(rounds=4) as watch:

        def look(progress: Progress) -> None:
            if watch.rounds:
                watch.round()

        keys, options = image_keys(3, range(6)), {"strategy": strategy, "ask_every": 10, "on_round": look}
        sample_tokens(by_token.generator, labels, keys, forced=forced, **options)
    assert watch.rounds == 0
    assert watch.calls > 100


# -- which places are free --------------------------------------------------------------------------------------------


def test_on_the_finest_map_a_token_is_free_if_a_masked_pixel_lies_in_its_cell():
    mask = torch.zeros(1, 12, 16, dtype=torch.bool)
    mask[0, 4, 8] = mask[0, 11, 0] = True
    free = free_places(mask, GridLayout(3, 4)).unflatten(1, (3, 4))[0]
    assert free.nonzero().tolist() == [[1, 2], [2, 0]]


def test_on_coarser_maps_a_token_is_free_if_more_than_half_of_its_cell_is_masked():
    layout, mask = ScaleLayout(((1, 1), (2, 2), (4, 4), (4, 4))), torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, :8, :5] = True  # 40 of the 64 pixels of the upper left quarter
    one, two, three, four = layout.unflatten(free_places(mask, layout))
    assert not one.any()
    assert two.nonzero().tolist() == [[0, 0, 0]]
    assert three.nonzero().tolist() == four.nonzero().tolist() == [[0, y, x] for y in range(2) for x in range(2)]
    mask[0, :8, 4] = False
    assert not layout.unflatten(free_places(mask, layout))[1].any()  # exactly half


@pytest.mark.parametrize("size", [(16, 16), (13, 7), (1, 9), (1, 1)])
def test_unknown_pixels_are_continued_from_known_ones(size):
    dice = torch.Generator().manual_seed(0)
    values, known = torch.rand(2, 3, *size, generator=dice), torch.rand(2, 1, *size, generator=dice) < 0.3
    known[:, :, 0, 0] = True
    filled = filled_in(values, known)
    assert torch.equal(filled.where(known, 0), values.where(known, 0))
    for i in range(2):
        seen = values[i, :, known[i, 0]]
        assert bool((filled[i].flatten(1).amin(1) >= seen.amin(1) - 1e-6).all())
        assert bool((filled[i].flatten(1).amax(1) <= seen.amax(1) + 1e-6).all())


def test_a_hole_in_a_slope_is_filled_about_as_it_was():
    slope = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    known = ~box_mask(Box(40, 24, 16, 16), SIZE)[None, None]  # from 0.27 to 0.75, which is what black or grey misses
    assert (filled_in(slope, known) - slope).abs().max() < 0.2


# -- the seam ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", [0, 1, 4, 100])
def test_blending_keeps_what_is_far_and_draws_what_is_masked(border):
    dice = torch.Generator().manual_seed(0)
    images, drawn = (torch.rand(1, 3, 40, 48, generator=dice) for _ in range(2))
    mask = torch.zeros(1, 40, 48, dtype=torch.bool)
    mask[:, 10:20, 12:30] = True
    mixed = blend(drawn, images, mask, border)
    rows, columns = torch.arange(40)[:, None], torch.arange(48)[None]
    down, across = (10 - rows).maximum(rows - 19).clamp_min(0), (12 - columns).maximum(columns - 29).clamp_min(0)
    distance = torch.maximum(down, across)
    assert torch.equal(mixed[:, :, distance == 0], drawn[:, :, distance == 0])
    assert torch.equal(mixed[:, :, distance > border], images[:, :, distance > border])
    share = (1 - distance / (border + 1)).clamp_min(0)
    torch.testing.assert_close(mixed, images + share * (drawn - images))


def test_pixels_away_from_the_mask_stay_exactly(pair, images, labels):
    near = box_mask(Box(13 - 4, 19 - 4, 29 + 8, 35 + 8), SIZE)
    result = edited(pair, images, masked(OFF_GRID, 6), labels)
    assert torch.equal(result[:, :, ~near], images[:, :, ~near])
    assert not torch.equal(result[:, :, near], images[:, :, near])


def test_the_border_softens_the_seam(pair):
    """Where the mask cuts through cells, whose kept pixels are drawn too. 4 pixels make 5 steps of one."""
    images, labels = pictures("val", 24)
    mask = masked(OFF_GRID, 24)
    sharp, soft = (seam(edited(pair, images, mask, labels, border=border), mask) for border in (0, 4))
    assert soft < 0.35 * sharp


def test_kept_places_are_coded_after_what_was_drawn(monkeypatch):
    """Coarse tokens reach beyond the mask; the picture's own fine tokens would not put right what those changed."""
    pair = make_pair(True)
    images, labels = pictures("val", 24)
    mask, config = masked(LOWER, 24), SamplerConfig(batch_size=24)
    kept = kept_of(pair, images, mask)

    def error() -> float:
        tokens = tokens_of(pair, labels, kept, config)
        decoded = pair.tokenizer.decode(tokens, pair.generator.config.layout)
        return float((decoded - images).square()[:, :, ~box_mask(LOWER, SIZE)].mean())

    after = error()
    own = iter(pair.generator.config.layout.unflatten(kept.tokens))
    monkeypatch.setattr(type(pair.tokenizer.quantizer), "nearest_after", lambda *args: next(own))
    assert after < 0.5 * error()


def test_a_trained_generator_draws_what_fits():
    """The seam to what is drawn in place is smaller than that to an independent picture of the class, pasted."""
    pair = make_pair(False)
    train(pair, 120)
    images, labels = pictures("val", 48)
    mask, config = masked(Box(16, 16, 32, 32), 48), SamplerConfig(batch_size=48)
    pasted = torch.cat(list(generate(pair.generator, pair.tokenizer, labels, config, seed=3)))
    in_place = edited(pair, images, mask, labels, config, border=0)
    assert seam(in_place, mask) < 0.85 * seam(blend(pasted, images, mask, 0), mask)


# -- outpainting ------------------------------------------------------------------------------------------------------


def test_a_picture_is_put_on_a_canvas():
    image = (pictures("val", 1)[0][0] * 127 + 127).to(torch.uint8)
    canvas, mask = on_canvas(image, Box(8, 0, 32, 24), SIZE)
    assert canvas.shape == (3, *SIZE)
    assert torch.equal(mask, ~box_mask(Box(8, 0, 32, 24), SIZE))
    inside = canvas[:, :24, 8:40].float()
    halved = torch.nn.functional.avg_pool2d(image.float(), 2)[:, 4:28]  # 32 x 32, of which the middle rows fit
    assert (inside - halved).abs().mean() < 8
    assert bool((canvas[:, mask] == 127).all())


def test_a_picture_that_fits_stays_and_others_are_cut_evenly():
    image = torch.randint(256, (3, 20, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(fitted(image, (20, 30)), image)
    assert torch.equal(fitted(image, (20, 20)), image[:, :, 5:25])
    assert torch.equal(fitted(image, (10, 30)), image[:, 5:15])
    assert fitted(image, (7, 64)).shape == (3, 7, 64)


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 0, 4), (60, 0, 5, 4), (0, 60, 4, 5), (4, 4, 4, -1)])
def test_a_box_that_is_empty_or_leaves_the_picture_is_refused(box):
    with pytest.raises(ValueError, match="which is not inside a picture of 64 x 64"):
        box_mask(Box(*box), SIZE)


# -- what cannot be edited --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("this pair draws float", {"images": torch.zeros(6, 3, 64, 56)}),
        ("this pair draws float", {"images": torch.zeros(6, 3, 64, 64, dtype=torch.uint8)}),
        ("expected torch.bool", {"mask": torch.zeros(6, 64, 64)}),
        ("expected torch.bool", {"mask": torch.ones(1, 64, 64, dtype=torch.bool)}),
        ("5 conditions were given for 6 images", {"condition": torch.zeros(5, 1, dtype=torch.int64)}),
        ("nothing to draw in image 4", {"mask": (torch.arange(6) != 4)[:, None, None].expand(-1, 64, 64)}),
        ("border must be 0 or more pixels, got -1", {"border": -1}),
    ],
)
def test_what_does_not_fit_together_is_refused(pair, images, labels, part, change):
    given = {"images": images, "mask": masked(OFF_GRID, 6), "condition": labels, **change}
    with pytest.raises(ValueError, match=part):
        next(edit(pair.generator, pair.tokenizer, **given))
