"""What every quantizer offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from imgtok.tokens import TokenLayout


class Quantized(NamedTuple):
    """The outcome of quantisation. Latents are channel-last: `b ... d` with one vector per token."""

    latents: Tensor
    """b ... d, what the decoder reads; the gradient passes straight through."""
    indices: Tensor
    """int64 in [0, codebook_size): b ..., or b n, stage after stage, where several codes stand for a vector."""
    losses: dict[str, Tensor]
    """Scalars by name, unweighted; empty in evaluation mode."""


class Codes(Protocol):
    """A quantizer with one index for each vector, or that part of another which has."""

    codebook_size: int

    def codes(self, indices: Tensor) -> Tensor: ...

    def nearest(self, latents: Tensor) -> Tensor: ...

    def neighbours(self, latents: Tensor, count: int) -> Tensor:
        """b ... d -> b ... count, the codes nearest to each vector, the nearest first; count up to `codebook_size`."""
        ...


Choice = Callable[[Codes, Tensor], Tensor]
"""Which codes stand for vectors: b ... d -> b ..."""


def nearest_codes(codes: Codes, latents: Tensor) -> Tensor:
    """The choice that quantisation is."""
    return codes.nearest(latents)


class Quantizer(Protocol):
    """The methods the tokenizer and the training loop use; all tensors channel-last.

    How tokens lie over the latents, and so the form of indices that are not flat, is the quantizer's own: a grid b h w,
    a sequence b n, or a map b h_k w_k for each of several stages. Its `layout_of` flattens them and takes that back.
    Where several codes stand side by side for a token, its indices have one axis more, the last.
    """

    codebook_size: int
    codebook_dim: int

    def __call__(self, latents: Tensor) -> Quantized: ...

    def layout_of(self, *latent_shape: int) -> TokenLayout:
        """How the tokens of latents lie over them, which are b h w d or, in a sequence, b n d; of the config too."""
        ...

    def codes(self, indices: Any, stages: int | None = None) -> Tensor:
        """Indices -> b ... d, the vectors that the decoder reads. `stages`: those of the first stages only."""
        ...

    def nearest(self, latents: Tensor) -> Any:
        """b ... d -> the indices of the codes that represent each vector."""
        ...

    def choose(self, latents: Tensor, choice: Choice) -> Any:
        """As `nearest`, but each code is the choice's. ValueError if tokens are no codes."""
        ...

    def entropy_loss(self, latents: Tensor) -> Tensor:
        """A scalar that is low when each latent is sure of its code and all codes are used alike."""
        ...

    def upkeep(self) -> Upkeep:
        """A fresh record of the codebook's use, kept by the training task."""
        ...


class Upkeep(Protocol):
    """Moves and re-seeds the codes of a quantizer after each training step; a module, so checkpoints hold its state."""

    def update(self, quantizer: Any, latents: Tensor, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`quantizer` is the one that made it. Returns numbers to log, unsynchronised."""
        ...


def check_stages(stages: int | None, count: int) -> int:
    """`stages`, or all `count` of them for None; ValueError if there are not so many."""
    if stages is not None and not 1 <= stages <= count:
        raise ValueError(f"stages must be at least 1 and at most the quantizer's {count}, got {stages}")
    return count if stages is None else stages
