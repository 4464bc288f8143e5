"""One learned codebook: nearest codes, gradients, losses, and how training keeps it alive."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.quantizers.vector import VectorConfig, VectorQuantizer

CONFIG = VectorConfig(codebook_size=32, codebook_dim=4, l2_norm=False, entropy_temperature=0.3, reseed_below=0.0)
both_norms = pytest.mark.parametrize("l2_norm", [True, False])


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=dice(seed))


def quantizer_of(config: VectorConfig, codes: Tensor | None = None) -> VectorQuantizer:
    """With given codes, or random ones far from the unit sphere."""
    quantizer = config.build()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(noise(config.codebook_size, config.codebook_dim) if codes is None else codes)
    return quantizer


# -- quantisation -----------------------------------------------------------------------------------------------------


@both_norms
def test_every_code_quantizes_to_itself(l2_norm):
    quantizer = quantizer_of(replace(CONFIG, l2_norm=l2_norm))
    indices = torch.arange(32).reshape(2, 4, 4)
    quantized = quantizer(quantizer.codes(indices))
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(quantized.latents, quantizer.codes(indices))


@both_norms
def test_the_nearest_code_is_the_one_that_a_plain_search_finds(l2_norm):
    quantizer, latents = quantizer_of(replace(CONFIG, l2_norm=l2_norm)), noise(3, 50, 4, seed=1)
    codes, vectors = quantizer.embedding.weight.detach().double(), latents.double()
    if l2_norm:
        codes, vectors = (x / x.norm(dim=-1, keepdim=True) for x in (codes, vectors))
    expected = (vectors[:, :, None] - codes).norm(dim=-1).argmin(-1)
    assert torch.equal(quantizer.nearest(latents), expected)
    assert torch.equal(quantizer(latents).indices, expected)
    assert expected.unique().numel() > 16  # the search had something to find


def test_unit_vectors_ignore_length():
    quantizer, latents = quantizer_of(replace(CONFIG, l2_norm=True)), noise(2, 9, 4, seed=1)
    quantized, longer = quantizer(latents), quantizer(latents * 7)
    assert torch.equal(quantized.indices, longer.indices)
    torch.testing.assert_close(longer.latents.norm(dim=-1), torch.ones(2, 9))


@pytest.mark.parametrize("shape", [(2, 4), (2, 7, 4), (2, 3, 5, 4)])
def test_shapes_are_kept(shape):
    quantized = quantizer_of(CONFIG)(noise(*shape))
    assert quantized.latents.shape == shape
    assert quantized.indices.shape == shape[:-1]
    assert quantized.indices.dtype == torch.int64


def test_half_precision_latents_are_compared_in_float32():
    quantizer, latents = quantizer_of(CONFIG), noise(1, 100, 4, seed=1).bfloat16()
    quantized = quantizer(latents)
    assert quantized.latents.dtype == torch.float32
    assert torch.equal(quantized.indices, quantizer(latents.float()).indices)


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_codebook_is_refused(size):
    with pytest.raises(ValueError, match="must be at least 1"):
        VectorConfig(codebook_size=size)
    with pytest.raises(ValueError, match="must be at least 1"):
        VectorConfig(codebook_dim=size)


def test_unit_codes_begin_on_the_sphere():
    torch.testing.assert_close(VectorConfig(codebook_size=9).build().embedding.weight.norm(dim=-1), torch.ones(9))


# -- gradients and losses ---------------------------------------------------------------------------------------------


def test_the_gradient_passes_straight_through():
    latents, probe = noise(2, 5, 4, seed=1).requires_grad_(), noise(2, 5, 4, seed=2)
    (quantizer_of(CONFIG)(latents).latents * probe).sum().backward()
    torch.testing.assert_close(latents.grad, probe)


def test_the_gradient_passes_straight_through_to_the_unit_sphere():
    latents, probe = noise(2, 5, 4, seed=1).requires_grad_(), noise(2, 5, 4, seed=2)
    (quantizer_of(replace(CONFIG, l2_norm=True))(latents).latents * probe).sum().backward()
    plain = latents.detach().clone().requires_grad_()
    (F.normalize(plain, dim=-1) * probe).sum().backward()
    torch.testing.assert_close(latents.grad, plain.grad)


@both_norms
def test_losses_follow_their_formulas(l2_norm):
    quantizer, latents = quantizer_of(replace(CONFIG, l2_norm=l2_norm)).train(), noise(2, 5, 4, seed=1)
    losses = quantizer(latents).losses | {"entropy": quantizer.entropy_loss(latents)}
    codes, vectors = quantizer.embedding.weight.detach().double(), latents.double().reshape(-1, 4)
    if l2_norm:
        codes, vectors = (x / x.norm(dim=-1, keepdim=True) for x in (codes, vectors))
    distances = ((vectors[:, None] - codes) ** 2).sum(-1)
    error = distances.min(-1).values.mean() / 4  # mean over the four channels
    probs = torch.softmax(-distances / 0.3, dim=-1)
    entropies = torch.stack([-(p * p.log()).sum() for p in probs])
    mean = probs.mean(0)
    entropy = entropies.mean() + (mean * (mean + 1e-5).log()).sum()
    for name, expected in {"commitment": error, "codebook": error, "entropy": entropy}.items():
        torch.testing.assert_close(losses[name].double(), expected, atol=1e-5, rtol=1e-5)
    assert losses.keys() == {"commitment", "codebook", "entropy"}
    torch.testing.assert_close(quantizer.entropy_loss(latents[0]), quantizer.entropy_loss(latents[:1]))


def test_each_loss_moves_its_own_side():
    quantizer, latents = quantizer_of(CONFIG).train(), noise(2, 5, 4, seed=1).requires_grad_()
    losses = quantizer(latents).losses
    inputs = (latents, quantizer.embedding.weight)
    to_latents, to_codes = torch.autograd.grad(losses["commitment"], inputs, retain_graph=True, allow_unused=True)
    assert to_codes is None and to_latents.abs().sum() > 0
    to_latents, to_codes = torch.autograd.grad(losses["codebook"], inputs, retain_graph=True, allow_unused=True)
    assert to_latents is None and to_codes.abs().sum() > 0


def test_the_entropy_loss_is_lowest_when_codes_are_sure_and_all_used():
    codes = torch.eye(4) * 10
    quantizer = quantizer_of(replace(CONFIG, codebook_size=4), codes)
    sure_and_all = quantizer.entropy_loss(codes[None])
    sure_of_one = quantizer.entropy_loss(codes[:1].expand(1, 4, 4))
    unsure = quantizer.entropy_loss(torch.zeros(1, 4, 4))
    torch.testing.assert_close(sure_and_all, torch.tensor(-math.log(4)), atol=1e-3, rtol=0)
    torch.testing.assert_close(sure_of_one, torch.tensor(0.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(unsure, torch.tensor(0.0), atol=1e-3, rtol=0)


def test_a_codebook_of_running_means_has_no_gradient_and_no_codebook_loss():
    quantizer = quantizer_of(replace(CONFIG, learning="ema")).train()
    assert not quantizer.embedding.weight.requires_grad
    assert "codebook" not in quantizer(noise(1, 5, 4)).losses


@pytest.mark.parametrize("training", [True, False])
def test_quantising_changes_nothing(training):
    quantizer = quantizer_of(replace(CONFIG, learning="ema", reseed_below=0.9)).train(training)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    losses = quantizer(noise(8, 5, 4)).losses
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    assert bool(losses) == training


# -- upkeep -----------------------------------------------------------------------------------------------------------


@both_norms
def test_running_means_move_to_the_means_of_their_latents(l2_norm):
    config = replace(CONFIG, codebook_size=3, codebook_dim=2, l2_norm=l2_norm, learning="ema", ema_decay=0.5)
    quantizer = quantizer_of(config, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    clusters = torch.tensor([[3.0, 0.5], [0.5, 3.0], [-2.0, -4.0]])
    latents = (clusters[:, None] + 0.1 * noise(3, 40, 2)).reshape(1, 120, 2)
    upkeep = quantizer.upkeep()
    for _ in range(40):  # 0.5^40 of the beginning is left
        upkeep.update(quantizer, latents, quantizer(latents).indices, dice())
    vectors = F.normalize(latents, dim=-1) if l2_norm else latents
    means = vectors.reshape(3, 40, 2).mean(1)
    torch.testing.assert_close(quantizer.embedding.weight, F.normalize(means, dim=-1) if l2_norm else means)
    torch.testing.assert_close(upkeep.counts, torch.ones(3))  # in units of the mean use


def test_one_step_of_running_means_follows_the_formula():
    config = replace(CONFIG, codebook_size=2, codebook_dim=1, learning="ema", ema_decay=0.9)
    for repeats in (1, 10):  # the size of the batch does not matter
        quantizer = quantizer_of(config, torch.tensor([[1.0], [-5.0]]))
        latents, indices = torch.tensor([[[2.0], [4.0]]]).repeat(repeats, 1, 1), torch.zeros(repeats, 2).long()
        logged = quantizer.upkeep().update(quantizer, latents, indices, dice())
        # count 0.9 * 1 + 0.1 * 2, sum 0.9 * 1 + 0.1 * 6; the unused code keeps its place
        torch.testing.assert_close(quantizer.embedding.weight, torch.tensor([[1.5 / 1.1], [-5.0]]))
        torch.testing.assert_close(logged["perplexity"], torch.tensor(1.0))
        assert int(logged["reseeded"]) == 0


def test_a_codebook_that_learns_by_its_loss_is_left_alone():
    quantizer, latents = quantizer_of(CONFIG), noise(2, 50, 4, seed=1)
    before = quantizer.embedding.weight.detach().clone()
    quantizer.upkeep().update(quantizer, latents, quantizer(latents).indices, dice())
    assert torch.equal(quantizer.embedding.weight, before)


@pytest.mark.parametrize("learning", ["loss", "ema"])
@both_norms
def test_dead_codes_move_to_latents_of_the_batch(l2_norm, learning):
    config = replace(CONFIG, codebook_size=4, l2_norm=l2_norm, learning=learning, ema_decay=0.5, reseed_below=0.1)
    codes = torch.cat([torch.eye(4)[:2] * 2, -torch.ones(2, 4) * 50])
    quantizer, upkeep = quantizer_of(config, codes), None
    latents = torch.eye(4)[:2].repeat(10, 1)[None] + 0.01 * noise(1, 20, 4)
    upkeep, reseeded = quantizer.upkeep(), []
    for step in range(10):
        indices = quantizer(latents).indices
        before = quantizer.embedding.weight.detach().clone()
        reseeded.append(int(upkeep.update(quantizer, latents, indices, dice(step))["reseeded"]))
        if reseeded[-1]:
            break
    assert reseeded[-1] == 2 and len(reseeded) > 1  # not before the use has fallen
    candidates = F.normalize(latents[0], dim=-1) if l2_norm else latents[0]
    for code in quantizer.embedding.weight[2:]:
        assert (code == candidates).all(-1).any()
    if learning == "loss":
        assert torch.equal(quantizer.embedding.weight[:2], before[:2])
    assert upkeep.counts[2] == upkeep.counts[3]
    assert 0.1 < upkeep.counts[2] < 1  # not dead at once, but not safe either
    torch.testing.assert_close(upkeep.sums[2:] / upkeep.counts[2:, None], quantizer.embedding.weight[2:])


@pytest.mark.parametrize("learning", ["loss", "ema"])
def test_codes_that_the_first_batch_has_little_use_for_can_begin_on_its_latents(learning):
    """Near zero, one code takes all latents of a place far from there; then all take part."""
    config = replace(CONFIG, codebook_size=8, l2_norm=False, learning=learning, begin="latents", reseed_below=0.02)
    quantizer, latents = quantizer_of(config, 0.01 * noise(8, 4)), 5 + noise(4, 50, 4, seed=1)
    upkeep, first = quantizer.upkeep(), quantizer(latents).indices
    used = len(first.unique())
    assert used < 4
    assert int(upkeep.update(quantizer, latents, first, dice())["reseeded"]) >= 8 - used
    second = quantizer(latents).indices
    assert len(second.unique()) > 6
    assert int(upkeep.update(quantizer, latents, second, dice())["reseeded"]) == 0
    if learning == "ema":  # a used code is the mean of its latents, whatever it was before
        codes = quantizer_of(config, 0.01 * noise(8, 4))
        codes.upkeep().update(codes, latents, first, dice())
        kept = int(first.flatten().mode().values)
        torch.testing.assert_close(codes.embedding.weight[kept], latents[first == kept].mean(0))


def test_a_code_with_a_fair_share_is_not_re_seeded():
    quantizer = quantizer_of(replace(CONFIG, codebook_size=2, reseed_below=0.1, ema_decay=0.0), torch.eye(4)[:2])
    indices = torch.tensor([[0] * 18 + [1] * 2])  # a tenth of all, a fifth of the mean
    assert int(quantizer.upkeep().update(quantizer, noise(1, 20, 4), indices, dice())["reseeded"]) == 0


def test_never_means_never():
    quantizer = quantizer_of(replace(CONFIG, reseed_below=0.0, ema_decay=0.0))
    indices = torch.zeros(1, 20, dtype=torch.int64)
    assert int(quantizer.upkeep().update(quantizer, noise(1, 20, 4), indices, dice())["reseeded"]) == 0


def test_the_same_generator_re_seeds_the_same():
    def outcome(seed: int) -> Tensor:
        quantizer = quantizer_of(replace(CONFIG, reseed_below=0.5, ema_decay=0.0))
        quantizer.upkeep().update(
            quantizer, noise(1, 200, 4, seed=1), torch.zeros(1, 200, dtype=torch.int64), dice(seed)
        )
        return quantizer.embedding.weight.detach()

    assert torch.equal(outcome(3), outcome(3))
    assert not torch.equal(outcome(3), outcome(4))


def test_upkeep_resumes_from_its_state():
    config = replace(CONFIG, learning="ema", ema_decay=0.9, reseed_below=0.3)
    one, batches = quantizer_of(config), [noise(1, 40, 4, seed=seed) for seed in range(6)]
    upkeep = one.upkeep()
    for step, latents in enumerate(batches):
        if step == 3:
            other, resumed = quantizer_of(config), one.upkeep()
            other.load_state_dict(one.state_dict())
            resumed.load_state_dict(upkeep.state_dict())
        upkeep.update(one, latents, one(latents).indices, dice(step))
    for step in (3, 4, 5):
        resumed.update(other, batches[step], other(batches[step]).indices, dice(step))
    assert torch.equal(one.embedding.weight, other.embedding.weight)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in upkeep.state_dict().items())


def test_a_saved_quantizer_holds_its_codes_and_nothing_else():
    quantizer = quantizer_of(replace(CONFIG, learning="ema"))
    quantizer.upkeep()
    assert list(quantizer.state_dict()) == ["embedding.weight"]


def test_mixed_precision_does_not_reach_the_distances():
    quantizer = VectorConfig(codebook_size=512, codebook_dim=8).build()
    latents = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer.nearest(latents)
    assert torch.equal(mixed, quantizer.nearest(latents))
