"""Registers and the flow: who sees whom, one dropped register for many, noise, training."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from imgtok.backbones.flow import Flow, FlowConfig, Registers
from imgtok.backbones.trunk import TrunkConfig
from imgtok.backbones.vae import CosinesConfig, KLConfig, PixelsConfig
from imgtok.config import from_dict, to_dict
from imgtok.nn.flow import FlowGuidance, FlowSolver

TRUNK = TrunkConfig(width=32, depth=2, head_dim=8)
CONFIG = FlowConfig(
    vae=KLConfig(widths=(8, 8), blocks=1, latent_channels=4, norm_groups=4),
    registers=6,
    grid=(2, 3),
    encoder=replace(TRUNK, width=24),
    decoder=TRUNK,
    solver=FlowSolver(num_steps=3),
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    """What begins with zeros has random weights too."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn(parameter.shape, generator=dice) * fan_in**-0.5)
    return module


@pytest.fixture(scope="module")
def flow() -> Flow:
    model = CONFIG.build().eval()
    shaken(model.encoder)
    shaken(model.decoder)
    return model


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 8)])
def test_any_size_is_encoded_and_drawn(flow, height, width):
    images, latents = noise(2, 3, height, width), noise(2, 6, 32)
    assert flow.encode(images).shape == (2, 6, 24)
    decoded = flow.decode(latents, (height, width))
    assert decoded.shape == images.shape
    torch.testing.assert_close(torch.cat([flow.decode(part, (height, width)) for part in latents.split(1)]), decoded)
    assert CONFIG.latent_shape(height, width) == (6,)


def test_without_a_size_the_picture_has_the_trained_one(flow):
    assert torch.equal(flow.decode(noise(1, 6, 32)), flow.decode(noise(1, 6, 32), (8, 12)))


def test_noise_decides_and_without_it_is_always_the_same(flow):
    latents, start = noise(1, 6, 32).expand(2, -1, -1), noise(2, 4, 4, 6)
    same, drawn = flow.decode(latents), flow.decode(latents, noise=start)
    torch.testing.assert_close(same[0], same[1])
    assert (drawn[0] - drawn[1]).abs().max() > 0.01
    assert torch.equal(flow.decode(latents, noise=start), drawn)


def test_a_register_sees_patches_and_those_before_it(flow):
    encoder, maps = flow.encoder, noise(1, 4, 4, 6)
    before, kept = encoder(maps), encoder.registers.data.clone()
    encoder.registers.data[3] += noise(24, seed=2)
    changed = (encoder(maps) - before).abs().amax(-1)[0] > 1e-6
    encoder.registers.data.copy_(kept)
    assert changed.tolist() == [False] * 3 + [True] * 3
    other = maps.clone()
    other[..., 0, 0] += 1
    assert ((encoder(other) - before).abs().amax(-1) > 1e-4).all()


def test_one_dropped_register_stands_for_all(flow):
    decoder, x, times = flow.decoder, noise(2, 4, 4, 6), torch.tensor([0.3, 0.8])
    latents = noise(2, 2, 32)
    dropped = decoder.dropped.expand(2, 4, -1)
    whole = Registers(torch.cat([latents + decoder.positions[:2], dropped], dim=1), [1] * 6)
    short = decoder.registers(latents)
    assert short.tokens.shape[1] == 3
    torch.testing.assert_close(decoder(x, times, short), decoder(x, times, whole), atol=1e-5, rtol=0)
    null = Registers(decoder.null.expand(2, 6, -1), [1] * 6)
    torch.testing.assert_close(decoder(x, times, decoder.null_registers(2)), decoder(x, times, null), atol=1e-5, rtol=0)
    unweighted = decoder(x, times, short._replace(counts=[1] * 3))
    assert (unweighted - decoder(x, times, whole)).abs().max() > 1e-3


def test_images_of_a_batch_may_keep_different_numbers(flow):
    decoder, x, times, latents = flow.decoder, noise(4, 4, 4, 6), torch.full((4,), 0.6), noise(4, 6, 32)
    together = decoder(x, times, decoder.registers(latents, torch.tensor([2, 6, 1, 0])))
    rows = [decoder.registers(latents[i : i + 1, :k]) for i, k in enumerate((2, 6, 1))]
    rows.append(decoder.null_registers(1))
    alone = torch.cat([decoder(x[i : i + 1], times[:1], row) for i, row in enumerate(rows)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_scale_of_one_is_no_guidance_and_others_use_the_null_condition(flow):
    registers, start = flow.decoder.registers(noise(1, 6, 32)), noise(1, 4, 4, 6)

    def drawn(scale: float) -> Tensor:
        model = CONFIG.build()
        model.decoder = flow.decoder
        model.solver, model.guidance = FlowSolver(num_steps=1), FlowGuidance(scale=scale)
        return model.draw(registers, start)

    times = torch.ones(1)
    torch.testing.assert_close(drawn(1.0), start - flow.decoder(start, times, registers))
    null = start - flow.decoder(start, times, flow.decoder.null_registers(1))
    torch.testing.assert_close(drawn(0.0), null)
    torch.testing.assert_close(drawn(2.0), 2 * drawn(1.0) - null, atol=1e-5, rtol=0)


def test_training_begins_with_no_velocity_and_reaches_every_parameter():
    model = CONFIG.build().train()
    images, times, kept = noise(3, 3, 8, 12), torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0, 3, 6])

    def loss() -> Tensor:
        maps = model.vae.encode(images)
        latents = nn.functional.pad(model.encoder(maps), (0, 8))
        return model.loss(maps, latents, noise(*maps.shape), times, kept)

    target = noise(*model.vae.encode(images).shape) - model.vae.encode(images)
    torch.testing.assert_close(loss(), target.square().mean())
    shaken(model.encoder)
    shaken(model.decoder)
    loss().backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert missing == {name for name, _ in model.named_parameters() if name.startswith("vae.")}


def test_a_toy_is_learnt_and_registers_tell_which_picture():
    """Four maps, each of its own values: pictures drawn from the registers of one are that one (another is 1 away)."""
    torch.manual_seed(0)
    config = replace(CONFIG, encoder=replace(TRUNK, depth=1), decoder=replace(TRUNK, depth=1), registers=2)
    model, dice = config.build().train(), torch.Generator().manual_seed(0)
    maps = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).float().repeat(1, 2)[..., None, None].expand(-1, -1, 2, 2)
    weights = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    for _ in range(300):
        batch = maps[torch.randint(4, (32,), generator=dice)]
        start, kept = torch.randn(batch.shape, generator=dice), torch.randint(0, 3, (32,), generator=dice)
        loss = model.loss(batch, model.encoder(batch), start, torch.rand(32, generator=dice), kept)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().solver = FlowSolver(num_steps=10)
    with torch.no_grad():
        latents = model.encoder(maps).repeat(8, 1, 1)
        for kept in (1, 2):
            drawn = model.draw(model.decoder.registers(latents[:, :kept]), noise(32, 4, 2, 2, seed=1))
            assert (drawn - maps.repeat(8, 1, 1, 1)).abs().mean() < 0.25


def test_hidden_weights_are_the_matrices_of_the_blocks(flow):
    hidden = flow.hidden_weights()
    assert len(hidden) == 4 * (CONFIG.encoder.depth + CONFIG.decoder.depth)
    assert {weight.ndim for weight in hidden} == {2}
    assert not {id(weight) for weight in hidden} & {id(weight) for weight in flow.vae.parameters()}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda flow: flow.encode(noise(1, 3, 8, 10)), "10 x 8 pixels cannot be cut into patches of 4"),
        (lambda flow: flow.decode(noise(1, 7, 32)), "7 latents were given, but there are registers for 1 to 6"),
        (lambda flow: flow.decode(noise(2, 6, 32), noise=noise(1, 4, 4, 6)), r"noise must be of shape \(2, 4, 4, 6\)"),
        (lambda flow: CONFIG.build().train().decode(noise(1, 6, 32)), "by its velocity"),
        (lambda flow: TrunkConfig(width=36, head_dim=8), "width 36 must be divisible by head_dim 8"),
        (lambda flow: replace(CONFIG, registers=0), "registers and patch_size must be at least 1, got 0 and 2"),
    ],
)
def test_what_does_not_fit_is_refused(flow, call, message):
    with pytest.raises(ValueError, match=message):
        call(flow)


@torch.no_grad()
def test_what_patches_are_behind_a_block_depends_on_no_later_one(flow):
    decoder, x, times = flow.decoder, noise(2, 4, 4, 6), torch.tensor([0.3, 0.8])
    registers = decoder.registers(noise(2, 6, 32))
    velocity, first = decoder.watched(x, times, registers, 0)
    last = decoder.watched(x, times, registers, 1)[1]
    assert torch.equal(velocity, decoder(x, times, registers))
    assert first.shape == last.shape == (2, 32, 2, 3)
    assert (first - last).abs().max() > 0.1
    weight = decoder.blocks[1].inner.mlp.down.weight
    kept = weight.clone()
    weight.mul_(2)
    assert torch.equal(decoder.watched(x, times, registers, 0)[1], first)
    assert not torch.equal(decoder.watched(x, times, registers, 1)[1], last)
    weight.copy_(kept)


def test_pixels_stand_in_for_an_autoencoder_and_come_back():
    config = PixelsConfig(side=2, scale=1.5, shift=0.25)
    images, pixels = noise(2, 3, 8, 12), config.build()
    maps = pixels.encode(images)
    assert maps.shape == (2, config.latent_channels, 8 // config.reduction, 12 // config.reduction)
    torch.testing.assert_close(pixels.decode(maps), images)
    torch.testing.assert_close(maps.mean(), (images.mean() - 0.25) * 1.5)
    assert not list(pixels.parameters()) and not pixels.state_dict()
    model = replace(CONFIG, vae=config, patch_size=2, grid=(2, 3)).build().eval()
    assert model.decode(model.encoder(model.maps(images))[..., :1].expand(-1, -1, 32), (8, 12)).shape == images.shape
    with pytest.raises(ValueError, match="side must be at least 1 and scale above 0, got 0 and 1"):
        PixelsConfig(side=0)


def test_the_lower_frequencies_stand_in_for_an_autoencoder():
    """All of them are the pixels; the first ones are the mean and slopes of a square; what is white comes out white."""
    images = noise(2, 3, 8, 12)
    whole = CosinesConfig(side=4, kept=4, shift=0.25, scale=0.5, decay=1.5).build()
    assert whole.encode(images).shape == (2, 48, 2, 3)
    torch.testing.assert_close(whole.decode(whole.encode(images)), images)

    config = CosinesConfig(side=4, kept=2, shift=0.25, scale=0.5, decay=1.5)
    cosines = config.build()
    maps = cosines.encode(images)
    assert maps.shape == (2, config.latent_channels, 8 // config.reduction, 12 // config.reduction)
    square = images[0, 1, 4:8, 8:] - 0.25
    torch.testing.assert_close(maps[0, 4, 1, 2], square.mean() * 4 * 0.5)
    slope = torch.tensor([math.pi * (place + 0.5) / 4 for place in range(4)]).cos()
    expected = (square.mean(0) * 2 * slope / slope.norm()).sum() * 0.5 * 2**1.5
    torch.testing.assert_close(maps[0, 5, 1, 2], expected)
    torch.testing.assert_close(cosines.encode(cosines.decode(maps)), maps)  # a projection
    flat = torch.full((1, 3, 8, 8), 0.7)
    torch.testing.assert_close(cosines.decode(cosines.encode(flat)), flat)

    assert not list(cosines.parameters()) and not cosines.state_dict()
    model = replace(CONFIG, vae=config, patch_size=2, grid=(1, 1)).build().eval()
    assert from_dict(FlowConfig, to_dict(model.config)) == model.config
    with torch.device("meta"):  # where models are built before their weights come
        empty = config.build()
    assert torch.equal(empty.encode(images), maps)
    with pytest.raises(ValueError, match=r"kept must be 1 to side and scale above 0, got 5 of 4 and 0\.25"):
        CosinesConfig(side=4, kept=5)
