"""Codes swapped for near neighbours, as a generator's errors are: how robust a decoder is, or becomes (RobusTok)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from imgtok.quantizers.base import Codes, Quantized, Quantizer


class Draws(NamedTuple):
    """What is random in a perturbation."""

    chance: Tensor
    """b ..., uniform in [0, 1)."""
    rank: Tensor
    """b ..., int64, uniform in [0, neighbours)."""


class Swapped(NamedTuple):
    indices: Tensor
    """b ..., after the swaps."""
    clean: Tensor
    """b ..., of the nearest codes."""


Dice = Callable[[tuple[int, ...], int], Draws]
"""Draws for tokens of a shape b ... and so many neighbours."""


def draw(shape: tuple[int, ...], neighbours: int, generator: torch.Generator) -> Draws:
    """For tokens of this shape, on the generator's device."""
    device = generator.device
    chance = torch.rand(shape, generator=generator, device=device)
    return Draws(chance, torch.randint(neighbours, shape, generator=generator, device=device))


def swap(codes: Codes, latents: Tensor, draws: Draws, *, rate: float, neighbours: int) -> Swapped:
    """Each vector of latents b ... d gets, with probability `rate`, one of the `neighbours` codes nearest to it.

    All of them are equally likely, the nearest too, so that rate * (1 - 1 / neighbours) of the tokens change.
    ValueError for numbers out of range.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}")
    if not 1 <= neighbours <= codes.codebook_size:
        raise ValueError(f"neighbours must be from 1 to the codebook's {codes.codebook_size}, got {neighbours}")
    with torch.no_grad():
        nearest, rank = codes.neighbours(latents, neighbours), draws.rank.to(latents.device)
        others = nearest.gather(-1, rank[..., None])[..., 0]
        return Swapped(torch.where(draws.chance.to(latents.device) <= rate, others, nearest[..., 0]), nearest[..., 0])


def perturbed(
    quantizer: Quantizer, latents: Tensor, dice: Dice, *, rate: float, neighbours: int, share: float = 1.0
) -> Quantized:
    """What a quantizer of any kind makes of latents b ... d, but the decoder reads swapped codes (arXiv:2503.08354).

    Only the first `share` of the batch, rounded down, is perturbed: shuffle what is sorted. Indices and losses are
    those of the clean codes; the gradient passes straight through to the latents as it does without. Rate, share and
    neighbours are the alpha, beta and delta of RobusTok (algorithm 1). Of several stages, each codes what the swaps
    before it left over, as a generator does that has seen them; so the last ones count most. ValueError as `swap`,
    for a share out of range, and for tokens that are no codes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")

    def choice(codes: Codes, vectors: Tensor) -> Tensor:
        draws = dice(tuple(vectors.shape[:-1]), neighbours)
        return swap(codes, vectors, draws, rate=rate, neighbours=neighbours).indices

    clean, rows = quantizer(latents), int(len(latents) * share)
    if not rows:
        return clean
    with torch.no_grad():
        swapped = quantizer.codes(quantizer.choose(latents[:rows], choice))
        read = torch.cat([swapped, clean.latents[rows:]])
    return clean._replace(latents=clean.latents + (read - clean.latents).detach())
