"""Codes swapped for near neighbours, as a generator's errors are: how robust a decoder is, or becomes (RobusTok)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imgtok.quantizers.vector import VectorQuantizer


class Draws(NamedTuple):
    """What is random in a perturbation."""

    chance: Tensor
    """b ..., uniform in [0, 1)."""
    rank: Tensor
    """b ..., int64, uniform in [0, neighbours)."""


class Perturbation(NamedTuple):
    latents: Tensor
    """b ... d, what the decoder reads; the gradient passes straight through to the latents, none to the codebook."""
    indices: Tensor
    """b ..., after the swaps."""
    clean: Tensor
    """b ..., of the nearest codes."""


def draw(shape: tuple[int, ...], neighbours: int, generator: torch.Generator) -> Draws:
    """For tokens of this shape, on the generator's device."""
    device = generator.device
    chance = torch.rand(shape, generator=generator, device=device)
    return Draws(chance, torch.randint(neighbours, shape, generator=generator, device=device))


def perturb(
    quantizer: VectorQuantizer, latents: Tensor, draws: Draws, *, rate: float, neighbours: int, share: float = 1.0
) -> Perturbation:
    """Each token of latents b ... d gets, with probability `rate`, one of the `neighbours` codes nearest to its latent.

    All of them are equally likely, the nearest too, so that rate * (1 - 1 / neighbours) of the tokens change. Only the
    first `share` of the batch, rounded down, is perturbed: shuffle what is sorted. Rate, share and neighbours are the
    alpha, beta and delta of RobusTok (algorithm 1). ValueError for numbers out of range.
    """
    if not (0 <= rate <= 1 and 0 <= share <= 1):
        raise ValueError(f"rate {rate} and share {share} must lie between 0 and 1")
    if not 1 <= neighbours <= quantizer.codebook_size:
        raise ValueError(f"neighbours must be from 1 to the codebook's {quantizer.codebook_size}, got {neighbours}")
    latents = quantizer.normalize(latents.float())
    with torch.no_grad():
        nearest = quantizer.distances(latents).topk(neighbours, largest=False).indices
        clean = nearest[..., 0]
        others = nearest.gather(-1, draws.rank[..., None])[..., 0]
        swapped = draws.chance <= rate
        swapped[int(len(latents) * share) :] = False
        indices = torch.where(swapped, others, clean)
        codes = quantizer.codes(indices)
    return Perturbation(latents + (codes - latents).detach(), indices, clean)
