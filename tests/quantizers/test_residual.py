"""Several codes for a vector: what stages see, how their codes add up, losses, dropout, and upkeep."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok import config as configs
from imgtok.quantizers.residual import ResidualConfig, ResidualQuantizer
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import BandsConfig, ScalesConfig, StagesConfig, band_limit, nearest_ticks
from imgtok.tokens import ScaleLayout

DIM = 4
STAGE = VectorConfig(codebook_size=32, codebook_dim=DIM, l2_norm=False, entropy_temperature=0.3, reseed_below=0.0)
SCALES = ResidualConfig(stage=STAGE, view=ScalesConfig(scales=(1, 2, 3, 6), blends=2))
VIEWS = {
    "scales": SCALES.view,
    "no-blend": ScalesConfig(scales=(1, 2, 3, 6), blends=0),
    "pairs": ScalesConfig(scales=(1, (1, 2), (2, 4), (4, 6)), blends=4),
    "bands-share": BandsConfig(scales=SCALES.view, rule="share"),
    "bands-sqrt": BandsConfig(scales=SCALES.view, rule="sqrt"),
    "bands-nyquist": BandsConfig(scales=SCALES.view, rule="nyquist"),
    "stages": StagesConfig(count=4),
}
all_views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
both_ways = pytest.mark.parametrize("shared", [True, False], ids=["one-codebook", "own-codebooks"])


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=dice(seed))


def quantizer_of(config: ResidualConfig) -> ResidualQuantizer:
    """With random codes of about the latents' length, and random blends."""
    quantizer = config.build()
    with torch.no_grad():
        for number, parameter in enumerate(quantizer.parameters()):
            scale = 0.5 if parameter.ndim == 2 else 0.1
            parameter.copy_(scale * noise(*parameter.shape, seed=number + 10))
    return quantizer.eval()


# -- quantisation -----------------------------------------------------------------------------------------------------


@all_views
@both_ways
@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 6), (3, 7), (1, 1), (12, 9)])
def test_the_three_ways_to_quantize_agree(view, shared, height, width):
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=view, shared=shared))
    latents = noise(2, height, width, DIM)
    layout = quantizer.layout_of(height, width)
    quantized, maps = quantizer(latents), quantizer.nearest(latents)
    assert quantized.losses == {}
    assert quantized.indices.dtype == torch.int64
    assert torch.equal(quantized.indices, layout.flatten(maps))
    torch.testing.assert_close(quantized.latents, quantizer.codes(maps))
    total = quantizer.start(2, layout)
    for stage, indices in enumerate(maps):
        total = quantizer.accumulate(total, indices, stage, layout)
        assert torch.equal(total, quantizer.codes(maps, stages=stage + 1))
    assert torch.equal(total, quantizer.codes(maps))


@all_views
def test_layouts_grow_to_the_whole_grid(view):
    for height, width in [(1, 1), (2, 9), (6, 6), (5, 3), (32, 32), (17, 40)]:
        layout = ResidualConfig(stage=STAGE, view=view).layout_of(height, width)  # refuses maps that do not grow
        assert layout.latent_shape == (height, width)
        assert len(layout.sizes) == 4


def test_the_given_scales_are_those_of_the_size_they_are_for():
    view = ScalesConfig(scales=(1, (1, 2), (2, 4), (4, 6)), other_scales=((2, 2, 5, 8),), blends=0)
    assert view.sizes_of(4, 6) == ((1, 1), (1, 2), (2, 4), (4, 6))
    assert view.sizes_of(8, 8) == ((2, 2), (2, 2), (5, 5), (8, 8))
    assert view.sizes_of(8, 12) == ((2, 2), (2, 4), (4, 8), (8, 12))
    assert view.sizes_of(2, 3) == ((1, 1), (1, 1), (1, 2), (2, 3))
    assert ScalesConfig().sizes_of(16, 16) == tuple((s, s) for s in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))


def test_scales_code_as_a_plain_loop_does():
    quantizer, latents = quantizer_of(SCALES), noise(2, 6, 6, DIM)
    maps, codes = quantizer.nearest(latents), quantizer.codebooks[0].embedding.weight
    rest, total = latents.permute(0, 3, 1, 2), torch.zeros(2, DIM, 6, 6)
    for stage, side in enumerate((1, 2, 3, 6)):
        small = F.adaptive_avg_pool2d(rest, side)
        distances = (small[..., None] - codes.T[None, :, None, None]).square().sum(1)
        assert torch.equal(maps[stage], distances.argmin(-1))
        chosen = codes[maps[stage]].permute(0, 3, 1, 2)
        large = F.interpolate(chosen, (6, 6), mode="bicubic") if side < 6 else chosen
        blend = quantizer.view.blends[stage // 2]
        part = 0.5 * large + 0.5 * F.conv2d(large, blend.weight, blend.bias, padding=1)
        total, rest = total + part, rest - part
        torch.testing.assert_close(quantizer.codes(maps, stage + 1), total.permute(0, 2, 3, 1))


def test_plain_stages_code_as_a_plain_loop_does():
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=StagesConfig(count=3), shared=False))
    latents = noise(2, 3, 5, DIM)
    rest = latents
    for stage, indices in enumerate(quantizer.nearest(latents)):
        codes = quantizer.stages[stage].embedding.weight
        assert torch.equal(indices, (rest[..., None, :] - codes).square().sum(-1).argmin(-1))
        rest = rest - codes[indices]
    torch.testing.assert_close(quantizer(latents).latents, latents - rest)


def test_one_stage_is_the_inner_quantizer():
    quantizer, latents = quantizer_of(ResidualConfig(stage=STAGE, view=StagesConfig(count=1))), noise(2, 3, 5, DIM)
    inner = quantizer.codebooks[0]
    ours, plain = quantizer.train()(latents), inner.train()(latents)
    assert torch.equal(ours.latents, plain.latents)
    assert torch.equal(ours.indices, plain.indices.flatten(1))
    torch.testing.assert_close(ours.losses, plain.losses)
    torch.testing.assert_close(quantizer.entropy_loss(latents), inner.entropy_loss(latents))


@all_views
def test_half_precision_changes_nothing_but_the_latents(view):
    quantizer, latents = quantizer_of(ResidualConfig(stage=STAGE, view=view)), noise(2, 4, 6, DIM).bfloat16()
    plain = quantizer(latents.float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer(latents)
    assert mixed.latents.dtype == torch.float32
    assert torch.equal(mixed.indices, plain.indices)
    assert torch.equal(mixed.latents, plain.latents)


@pytest.mark.parametrize("count", [3, 5])
def test_a_wrong_number_of_maps_is_told(count):
    maps = [torch.zeros(1, 2, 2, dtype=torch.int64)] * count
    with pytest.raises(ValueError, match=f"{count} maps of indices were given, but there are 4 stages"):
        quantizer_of(SCALES).codes(maps)
    with pytest.raises(ValueError, match="at least 1 and at most the quantizer's 4, got 0"):
        quantizer_of(SCALES).codes([torch.zeros(1, 2, 2, dtype=torch.int64)] * 4, stages=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": replace(STAGE, l2_norm=True)}, "l2_norm must be off"),
        ({"dropout": 1.5}, "dropout must be between 0 and 1, got 1.5"),
        ({"least_stages": 5}, "least_stages must be from 1 to 4, got 5"),
        ({"least_stages": 0}, "least_stages must be from 1 to 4, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SCALES, **change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "none smaller than before"),
        ({"scales": (2, 1), "blends": 0}, "none smaller than before"),
        ({"scales": (1, 2), "blends": 3}, "blends must be from 0 to 2, one for each scale, got 3"),
        ({"scales": (1, 2), "blends": 0, "other_scales": ((1, 2, 4),)}, "each of other_scales must have 2 scales"),
    ],
)
def test_scales_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScalesConfig(**settings)
    with pytest.raises(ValueError, match="count must be at least 1"):
        StagesConfig(count=0)


@all_views
def test_configurations_survive_json(view):
    config = ResidualConfig(stage=STAGE, view=view, shared=False, dropout=0.5, least_stages=2)
    assert configs.from_dict(ResidualConfig, configs.to_dict(config)) == config


# -- views ------------------------------------------------------------------------------------------------------------


def test_stages_have_the_blends_that_published_weights_expect():
    assert nearest_ticks(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert nearest_ticks(14, 4) == (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3)
    assert nearest_ticks(6, 1) == (0,) * 6
    assert nearest_ticks(1, 1) == (0,)
    for stages in range(1, 20):
        assert nearest_ticks(stages, stages) == tuple(range(stages))


@pytest.mark.parametrize("blends", [2, 3, 4, 5])
def test_blends_are_assigned_with_numpys_rounding(blends):
    margin = 1 / 3 / 4 if blends == 4 else 1 / 2 / blends
    ticks = np.linspace(margin, 1 - margin, blends)
    for stages in range(blends, 30):
        expected = [int(np.abs(ticks - k / (stages - 1)).argmin()) for k in range(stages)]
        assert list(nearest_ticks(stages, blends)) == expected


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        ("share", None),
        ("sqrt", [1, 0, 8, 12, 16, 20, 40, 48, 82, 29]),
        ("nyquist", [1, 0, 8, 0, 16, 0, 24, 32, 88, 87]),
    ],
)
def test_bands_partition_the_plane(rule, sizes):
    view = BandsConfig(rule=rule)
    layout = ScaleLayout(view.sizes_of(16, 16))
    counts, before = [], torch.zeros(16, 9, dtype=torch.bool)
    for stage in range(9):
        passed = band_limit(rule, stage, layout)
        assert (before <= passed).all()  # nothing is lost again
        twice = torch.tensor([1] + [2] * 7 + [1])  # columns that stand for their mirror images too
        counts.append(int((passed * twice).sum() - (before * twice).sum()))
        before = passed
    counts.append(256 - sum(counts))
    assert before[0, 0]
    if sizes:
        assert counts == sizes
    else:
        assert counts[:5] == [1, 0, 0, 0, 0]  # why the rule is not the default
        assert sum(counts) == 256


@pytest.mark.parametrize("rule", ["share", "sqrt", "nyquist"])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (4, 10), (7, 5), (1, 1), (1, 6)])
def test_bands_add_up_to_the_latents(rule, height, width):
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=BandsConfig(scales=SCALES.view, rule=rule)))
    latents, layout = noise(2, height, width, DIM), quantizer.layout_of(height, width)
    passed = [quantizer.view.low_pass(latents, stage, layout) for stage in range(4)]
    assert torch.equal(passed[-1], latents)
    for less, more in pairwise(passed):
        band = more - less
        torch.testing.assert_close((band * less).sum((1, 2)), torch.zeros(2, DIM), atol=1e-4, rtol=0)  # orthogonal
    torch.testing.assert_close(passed[0].mean((1, 2)), latents.mean((1, 2)))  # the mean comes first


def test_a_slow_wave_is_whole_in_a_low_band():
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=BandsConfig(scales=SCALES.view, rule="nyquist")))
    rows = torch.arange(6)[:, None].expand(6, 6)
    wave = torch.cos(2 * math.pi * rows / 6)[None, :, :, None].expand(1, 6, 6, DIM)
    layout = quantizer.layout_of(6, 6)
    torch.testing.assert_close(quantizer.view.low_pass(wave, 2, layout), wave)  # one wave: below 3 / 2
    torch.testing.assert_close(quantizer.view.low_pass(wave, 1, layout), torch.zeros_like(wave))


@all_views
def test_what_is_coded_already_is_not_seen_again(view):
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=view))
    latents, layout = noise(1, 6, 6, DIM), quantizer.layout_of(6, 6)
    last = quantizer.view.rest(latents, latents, 3, layout)
    torch.testing.assert_close(last, torch.zeros_like(latents))
    for stage in range(4):
        seen = quantizer.view.rest(latents, torch.zeros_like(latents), stage, layout)
        assert seen.shape == (1, *layout.sizes[stage], DIM)


@all_views
@torch.no_grad()
def test_stages_lower_the_error_once_codes_fit(view):
    """Codes as running means of what they see, over and over the same pictures."""
    stage = replace(STAGE, codebook_size=64, learning="ema", ema_decay=0.5, reseed_below=0.05)
    quantizer = quantizer_of(ResidualConfig(stage=stage, view=view, shared=False))
    for parameter in quantizer.view.parameters():
        parameter.data.zero_()
    for blend in quantizer.view.modules():  # which here change nothing
        if isinstance(blend, torch.nn.Conv2d):
            blend.weight.data[range(DIM), range(DIM), 1, 1] = 1.0
    latents = F.interpolate(noise(16, DIM, 3, 3), (6, 6), mode="bilinear").permute(0, 2, 3, 1)
    upkeep = quantizer.upkeep()
    for step in range(30):
        upkeep.update(quantizer, latents, quantizer(latents).indices, dice(step))
    maps = quantizer.nearest(latents)
    errors = [float((quantizer.codes(maps, stages) - latents).square().mean()) for stages in (1, 2, 3, 4)]
    assert all(later < earlier + 1e-4 for earlier, later in pairwise(errors))  # a band may be empty
    assert errors[-1] < 0.1 * float(latents.square().mean())


# -- for generators ---------------------------------------------------------------------------------------------------


@all_views
@pytest.mark.parametrize(("height", "width"), [(6, 6), (3, 7)])
def test_inputs_are_what_is_seen_stage_by_stage(view, height, width):
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=view, shared=False))
    layout = quantizer.layout_of(height, width)
    maps = quantizer.nearest(noise(2, height, width, DIM))
    inputs = quantizer.inputs(layout.flatten(maps), layout)
    assert inputs.shape == (2, layout.num_tokens - layout.group_sizes[0], DIM)
    parts = inputs.split(layout.group_sizes[1:], dim=1)
    for stage, part in enumerate(parts, start=1):
        total = quantizer.codes(maps, stages=stage)
        seen = quantizer.seen(total, stage, layout)
        assert torch.equal(part, seen.flatten(1, 2))
        plain = F.adaptive_avg_pool2d(total.permute(0, 3, 1, 2), layout.sizes[stage]).permute(0, 2, 3, 1)
        torch.testing.assert_close(seen, plain)
    assert torch.equal(quantizer.seen(total, 3, layout), total)


def test_a_single_stage_needs_no_inputs():
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=StagesConfig(count=1)))
    assert quantizer.inputs(torch.zeros(2, 6, dtype=torch.int64), quantizer.layout_of(2, 3)).shape == (2, 0, DIM)


# -- gradients and losses ---------------------------------------------------------------------------------------------


@all_views
def test_the_gradient_passes_straight_through(view):
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=view))
    latents, probe = noise(2, 6, 6, DIM).requires_grad_(), noise(2, 6, 6, DIM, seed=2)
    (quantizer(latents).latents * probe).sum().backward()
    torch.testing.assert_close(latents.grad, probe)


@all_views
@both_ways
def test_losses_follow_their_formulas(view, shared):
    quantizer, latents = quantizer_of(ResidualConfig(stage=STAGE, view=view, shared=shared)), noise(2, 6, 6, DIM)
    losses = quantizer.train()(latents).losses
    maps = quantizer.nearest(latents)
    expected = sum((quantizer.codes(maps, stages) - latents).square().mean() for stages in (1, 2, 3, 4)) / 4
    assert losses.keys() == {"commitment", "codebook"}
    for loss in losses.values():
        torch.testing.assert_close(loss, expected)


@all_views
@both_ways
def test_each_loss_moves_its_own_side(view, shared):
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=view, shared=shared)).train()
    latents = noise(2, 6, 6, DIM).requires_grad_()
    losses, own = quantizer(latents).losses, list(quantizer.parameters())
    to_latents, *to_own = torch.autograd.grad(
        losses["commitment"], [latents, *own], retain_graph=True, allow_unused=True
    )
    totals = [step.total.detach() for step in quantizer.steps(latents)]
    expected = sum(2 * (latents.detach() - total) for total in totals) / 4 / latents.numel()
    torch.testing.assert_close(to_latents, expected)
    assert all(gradient is None for gradient in to_own)
    to_latents, *to_own = torch.autograd.grad(losses["codebook"], [latents, *own], allow_unused=True)
    assert to_latents is None
    assert all(gradient.abs().sum() > 0 for gradient in to_own)


@all_views
def test_steps_follow_the_given_codes_and_what_they_see_moves_the_latents_alone(view):
    quantizer = quantizer_of(ResidualConfig(stage=STAGE, view=view)).train()
    latents, maps = noise(2, 6, 6, DIM).requires_grad_(), quantizer.nearest(noise(2, 6, 6, DIM, seed=1))
    steps = list(quantizer.steps(latents, maps))
    assert all(step.indices is given for step, given in zip(steps, maps, strict=True))
    torch.testing.assert_close(steps[-1].total, quantizer.codes(maps))
    seen = sum(step.rest.square().sum() for step in steps)
    to_latents, *to_own = torch.autograd.grad(seen, [latents, *quantizer.parameters()], allow_unused=True)
    assert to_latents.abs().sum() > 0
    assert all(gradient is None for gradient in to_own)


def test_blends_learn_even_where_codes_are_running_means():
    quantizer = quantizer_of(replace(SCALES, stage=replace(STAGE, learning="ema"))).train()
    losses = quantizer(noise(2, 6, 6, DIM)).losses
    assert losses.keys() == {"commitment", "blend"}
    losses["blend"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in quantizer.view.parameters())
    assert quantizer.codebooks[0].embedding.weight.grad is None
    plain = replace(SCALES, stage=replace(STAGE, learning="ema"), view=StagesConfig(count=2))
    assert quantizer_of(plain).train()(noise(2, 6, 6, DIM)).losses.keys() == {"commitment"}


@both_ways
def test_the_entropy_loss_is_over_all_that_a_codebook_sees(shared):
    quantizer = quantizer_of(replace(SCALES, shared=shared))
    latents = noise(2, 6, 6, DIM).requires_grad_()
    rests = [step.rest.detach().flatten(1, 2) for step in quantizer.steps(latents)]
    loss = quantizer.entropy_loss(latents)
    if shared:
        expected = quantizer.codebooks[0].entropy_loss(torch.cat(rests, dim=1))
    else:
        own = [codes.entropy_loss(rest) for codes, rest in zip(quantizer.codebooks, rests, strict=True)]
        expected = sum(own) / 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_quantising_changes_nothing(training):
    quantizer = quantizer_of(replace(SCALES, stage=replace(STAGE, learning="ema", reseed_below=0.9))).train(training)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    losses = quantizer(noise(2, 6, 6, DIM)).losses
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    assert bool(losses) == training


# -- dropout ----------------------------------------------------------------------------------------------------------


def stages_read(quantizer: ResidualQuantizer, latents: Tensor) -> Tensor:
    """How many stages the decoder reads of each image."""
    read, maps = quantizer(latents).latents, quantizer.nearest(latents)
    totals = torch.stack([quantizer.codes(maps, stages) for stages in range(1, 1 + quantizer.num_stages)])
    near = (totals - read).abs().amax((2, 3, 4)) < 1e-5
    assert torch.equal(near.sum(0), torch.ones(len(latents), dtype=torch.int64))
    return near.long().argmax(0) + 1


def test_dropout_hides_late_stages_from_the_decoder():
    quantizer = quantizer_of(replace(SCALES, dropout=0.6, least_stages=2)).train()
    latents = noise(1, 6, 6, DIM).expand(3000, 6, 6, DIM)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        share = torch.bincount(stages_read(quantizer, latents), minlength=5) / 3000
    torch.testing.assert_close(share, torch.tensor([0, 0, 0.3, 0.3, 0.4]), atol=0.04, rtol=0)


def test_dropout_touches_neither_indices_nor_losses_and_is_for_training_alone():
    plain, dropping = quantizer_of(SCALES).train(), quantizer_of(replace(SCALES, dropout=1.0)).train()
    latents = noise(8, 6, 6, DIM)
    assert torch.equal(plain(latents).indices, dropping(latents).indices)
    torch.testing.assert_close(plain(latents).losses, dropping(latents).losses)
    assert (stages_read(dropping, latents) < 4).all()
    assert (stages_read(dropping.eval(), latents) == 4).all()
    keeping = quantizer_of(replace(SCALES, dropout=1.0, least_stages=4)).train()
    assert (stages_read(keeping, latents) == 4).all()


def test_dropout_repeats_with_torchs_seed_and_passes_the_gradient():
    quantizer, latents = quantizer_of(replace(SCALES, dropout=0.5)).train(), noise(16, 6, 6, DIM).requires_grad_()
    read = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            read.append(quantizer(latents).latents)
    assert torch.equal(read[0], read[1])
    assert not torch.equal(read[0], read[2])
    (gradient,) = torch.autograd.grad(read[0].sum(), latents)
    assert torch.equal(gradient, torch.ones_like(latents))


# -- upkeep -----------------------------------------------------------------------------------------------------------


@all_views
@both_ways
def test_upkeep_is_that_of_each_codebook_with_what_it_sees(view, shared):
    stage = replace(STAGE, codebook_size=128, learning="ema", ema_decay=0.5, reseed_below=0.6)
    quantizer = quantizer_of(ResidualConfig(stage=stage, view=view, shared=shared))
    latents, layout = noise(2, 6, 6, DIM), quantizer.layout_of(6, 6)
    maps = quantizer.nearest(noise(2, 6, 6, DIM, seed=1))  # the indices given count, not what would be nearest
    steps = list(quantizer.steps(latents, maps))
    rests, chosen = [step.rest.flatten(1, 2) for step in steps], [step.indices.flatten(1) for step in steps]
    if shared:
        rests, chosen = [torch.cat(rests, 1)], [torch.cat(chosen, 1)]
    expected, numbers, generator = [], [], dice(3)
    for codebook, rest, indices in zip(quantizer.codebooks, rests, chosen, strict=True):
        copy = stage.build()
        copy.load_state_dict(codebook.state_dict())
        numbers.append(copy.upkeep().update(copy, rest, indices, generator))
        expected.append(copy.embedding.weight)
    logged = quantizer.upkeep().update(quantizer, latents, layout.flatten(maps), dice(3))
    for codebook, weight in zip(quantizer.codebooks, expected, strict=True):
        assert torch.equal(codebook.embedding.weight, weight)
    for name in ("codes_used", "perplexity"):
        torch.testing.assert_close(logged[name], torch.stack([each[name].float() for each in numbers]).mean())
    assert logged["reseeded"] == sum(each["reseeded"] for each in numbers) > 0
    for number, step in enumerate(steps):
        assert logged[f"codes_used_{number}"] == step.indices.unique().numel()
        assert logged[f"perplexity_{number}"] >= 1
    assert all(value.ndim == 0 for value in logged.values())


def test_dead_codes_of_a_shared_codebook_move_to_what_any_stage_sees():
    stage = replace(STAGE, codebook_size=256, ema_decay=0.0, reseed_below=0.1)
    quantizer = quantizer_of(replace(SCALES, stage=stage))
    latents = noise(4, 6, 6, DIM)
    rests = [step.rest.detach().flatten(0, 2) for step in quantizer.steps(latents)]
    before = quantizer.codebooks[0].embedding.weight.detach().clone()
    quantizer.upkeep().update(quantizer, latents, quantizer(latents).indices, dice())
    after = quantizer.codebooks[0].embedding.weight.detach()
    moved = after[(after != before).any(-1)]
    homes = [int((moved[:, None] == rest).all(-1).any(-1).sum()) for rest in rests]
    assert sum(homes) == len(moved) > 50
    assert min(homes[1:]) > 0  # the first stage sees 4 of 200 vectors


def test_upkeep_resumes_from_its_state():
    config = replace(SCALES, stage=replace(STAGE, learning="ema", ema_decay=0.9, reseed_below=0.3), shared=False)
    one, batches = quantizer_of(config), [noise(2, 6, 6, DIM, seed=seed) for seed in range(6)]
    upkeep = one.upkeep()
    for step, latents in enumerate(batches):
        if step == 3:
            other, resumed = quantizer_of(config), one.upkeep()
            other.load_state_dict(one.state_dict())
            resumed.load_state_dict(upkeep.state_dict())
        upkeep.update(one, latents, one(latents).indices, dice(step))
    for step in (3, 4, 5):
        resumed.update(other, batches[step], other(batches[step]).indices, dice(step))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in upkeep.state_dict().items())


def test_a_saved_quantizer_holds_codes_and_blends_and_nothing_else():
    names = {"stages.0.embedding.weight"}
    blends = {f"view.blends.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    assert set(quantizer_of(SCALES).state_dict()) == names | blends
    own = replace(SCALES, view=StagesConfig(count=2), shared=False)
    assert set(quantizer_of(own).state_dict()) == {"stages.0.embedding.weight", "stages.1.embedding.weight"}
