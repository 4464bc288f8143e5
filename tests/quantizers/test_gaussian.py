"""Continuous tokens: means, draws, and the distance from a standard normal distribution."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from imgtok.quantizers.gaussian import Gaussian, GaussianConfig
from imgtok.tokens import GridLayout, SequenceLayout


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def gaussian() -> Gaussian:
    return GaussianConfig(dim=3).build().eval()


def test_the_means_stand_for_latents(gaussian):
    latents = noise(2, 4, 5, 6)
    result = gaussian(latents)
    assert torch.equal(result.latents, latents[..., :3])
    assert torch.equal(gaussian.nearest(latents), latents[..., :3])
    assert torch.equal(gaussian.codes(result.indices), result.latents)
    assert result.losses == {}


def test_the_divergence_is_that_of_normal_distributions(gaussian):
    mean, log_variance = noise(2, 5, 3), noise(2, 5, 3, seed=1)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    latents = torch.cat([mean, log_variance], dim=-1)
    torch.testing.assert_close(gaussian.divergence(latents), expected)
    torch.testing.assert_close(gaussian.train()(latents).losses["kl"], expected.sum(1).mean())


def test_training_draws_from_the_distribution(gaussian):
    """Mean and variance of 20000 draws, within 5 standard errors."""
    latents, count = torch.tensor([0.5, -1.0, 2.0, 0.0, -2.0, 1.0]), 20_000
    torch.manual_seed(0)
    drawn = gaussian.train()(latents.expand(count, 1, 6)).latents[:, 0]
    variance = latents[3:].exp()
    assert ((drawn.mean(0) - latents[:3]).abs() < 5 * (variance / count).sqrt()).all()
    assert ((drawn.var(0) - variance).abs() < 5 * variance * (2 / count) ** 0.5).all()


def test_the_gradient_reaches_means_and_variances(gaussian):
    latents = noise(2, 4, 6).requires_grad_()
    result = gaussian.train()(latents)
    (result.latents.square().sum() + result.losses["kl"]).backward()
    assert latents.grad is not None
    assert (latents.grad.abs() > 0).all()


def test_extreme_variances_stay_finite(gaussian):
    result = gaussian.train()(torch.full((1, 2, 6), 1e4))
    assert result.latents.isfinite().all()
    assert result.losses["kl"].isfinite()


def test_tokens_are_vectors_of_a_sequence_or_grid():
    config = GaussianConfig(dim=3)
    assert (config.codebook_size, config.codebook_dim, config.latent_dim, config.index_shape) == (0, 3, 6, (3,))
    assert config.layout_of(2, 4) == GridLayout(2, 4)
    assert config.layout_of(7) == SequenceLayout(7)


def test_what_needs_codes_is_refused(gaussian):
    with pytest.raises(ValueError, match="have no codes"):
        gaussian.entropy_loss(noise(1, 2, 6))
    with pytest.raises(ValueError, match="dim must be at least 1"):
        GaussianConfig(dim=0)
