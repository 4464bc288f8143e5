"""Continuous tokens: a normal distribution in place of a code (the bottleneck of a VAE, arXiv:1312.6114)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imgtok.quantizers.base import Choice, Quantized, check_stages
from imgtok.tokens import GridLayout, SequenceLayout, plain_layout

LOG_VARIANCES = (-30.0, 20.0)  # beyond, exponentials would overflow


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    dim: int = 16
    """Numbers of a token."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}")

    @property
    def codebook_size(self) -> int:
        """There are no codes."""
        return 0

    @property
    def codebook_dim(self) -> int:
        return self.dim

    @property
    def latent_dim(self) -> int:
        """Means, then the logarithms of variances."""
        return 2 * self.dim

    @property
    def index_shape(self) -> tuple[int, ...]:
        """What stands for a token is a vector."""
        return (self.dim,)

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        """One token per latent."""
        return plain_layout(latent_shape)

    def build(self) -> Gaussian:
        return Gaussian(self)


class Gaussian(nn.Module):
    """Latents b ... 2d are means and log-variances; tokens are vectors b ... d, drawn in training, else the means.

    Where quantizers of codes have indices, this one has the tokens themselves, float32.
    """

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.codebook_dim = config.codebook_size, config.codebook_dim

    def forward(self, latents: Tensor) -> Quantized:
        """In training drawn from the global generator, as nn.Dropout does; "kl" is a mean over images, not tokens."""
        mean, log_variance = self.moments(latents)
        if not self.training:
            return Quantized(mean, mean, {})
        tokens = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return Quantized(tokens, tokens.detach(), {"kl": self.divergence(latents).flatten(1).sum(1).mean()})

    def moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """b ... 2d -> mean and log-variance, b ... d, float32."""
        mean, log_variance = latents.float().chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCES)

    def divergence(self, latents: Tensor) -> Tensor:
        """Of each token from a standard normal distribution, in nats (arXiv:1312.6114 B): b ... 2d -> b ..."""
        mean, log_variance = self.moments(latents)
        return (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        return self.config.layout_of(*latent_shape)

    def nearest(self, latents: Tensor) -> Tensor:
        """b ... 2d -> the means b ... d."""
        return self.moments(latents)[0]

    def choose(self, latents: Tensor, choice: Choice) -> Tensor:
        raise ValueError("continuous tokens are no codes, so none can be chosen in the place of another")

    def codes(self, indices: Tensor, stages: int | None = None) -> Tensor:
        """Tokens b ... d as they are; there is one stage."""
        check_stages(stages, 1)
        return indices.float()

    def entropy_loss(self, latents: Tensor) -> Tensor:
        raise ValueError("continuous tokens have no codes whose use could be evened out; set the weight entropy to 0")

    def upkeep(self) -> NoUpkeep:
        return NoUpkeep()


class NoUpkeep(nn.Module):
    """There is no codebook to look after."""

    def update(
        self, quantizer: Gaussian, latents: Tensor, indices: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {}
