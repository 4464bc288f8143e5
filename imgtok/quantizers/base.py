"""What every quantizer offers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Quantized(NamedTuple):
    """The outcome of quantisation. Latents are channel-last: `b ... d` with one vector per token."""

    latents: Tensor
    """b ... d, what the decoder reads; the gradient passes straight through."""
    indices: Tensor
    """b ..., int64 in [0, codebook_size)."""
    losses: dict[str, Tensor]
    """Scalars by name, unweighted; empty in evaluation mode."""


class Quantizer(Protocol):
    """The methods the tokenizer and the training loop use; all tensors channel-last."""

    codebook_size: int
    codebook_dim: int

    def __call__(self, latents: Tensor) -> Quantized: ...

    def codes(self, indices: Tensor) -> Tensor:
        """b ... -> b ... d, the vectors that the decoder reads."""
        ...

    def nearest(self, latents: Tensor) -> Tensor:
        """b ... d -> b ..., the index of the code that represents each vector."""
        ...

    def entropy_loss(self, latents: Tensor) -> Tensor:
        """A scalar that is low when each latent is sure of its code and all codes are used alike."""
        ...

    def upkeep(self) -> Upkeep:
        """A fresh record of the codebook's use, kept by the training task."""
        ...


class Upkeep(Protocol):
    """Moves and re-seeds the codes of a quantizer after each training step; a module, so checkpoints hold its state."""

    def update(
        self, quantizer: Quantizer, latents: Tensor, indices: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Returns numbers to log, unsynchronised."""
        ...
