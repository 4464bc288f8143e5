"""RobusTok's perturbation of latents: a function of given numbers, beside the family's models."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from imgtok.quantizers.base import Quantized
from imgtok.quantizers.perturb import Draws, Swapped, perturbed, swap
from imgtok.quantizers.vector import VectorConfig, VectorQuantizer

from .runner import Call, Case, gap_to_second


def quantizer_of(case: Case) -> VectorQuantizer:
    config = case.config
    return VectorConfig(codebook_size=config["codebook_size"], codebook_dim=config["codebook_dim"]).build().eval()


def swapped(quantizer: VectorQuantizer, call: Call, inputs: list[Tensor]) -> tuple[Quantized, Swapped]:
    """What the decoder reads, and which codes."""
    arguments, (z, codebook, chance, rank) = call["arguments"], inputs
    assert arguments["l2_normalise"] and arguments["replace_where"] == "u <= alpha"
    assert int(len(z) * arguments["beta"]) == arguments["changed_pictures"]
    quantizer.embedding.weight.data = codebook
    latents = rearrange(z, "b c h w -> b h w c")
    shape = latents.shape[:-1]
    draws = Draws(chance.reshape(shape), rank.long().reshape(shape))
    rows, rate, neighbours = arguments["changed_pictures"], arguments["alpha"], arguments["delta"]
    chosen = swap(quantizer, latents, draws, rate=rate, neighbours=neighbours)
    chosen.indices[rows:] = chosen.clean[rows:]

    def dice(shape: tuple[int, ...], count: int) -> Draws:
        assert shape == (rows, *latents.shape[1:-1]) and count == neighbours
        return Draws(draws.chance[:rows], draws.rank[:rows])

    return perturbed(quantizer, latents, dice, rate=rate, neighbours=neighbours, share=arguments["beta"]), chosen


def latent_perturbation(case: Case, _: Any, call: Call) -> None:
    quantizer, inputs = quantizer_of(case), case.inputs(call)
    latents, indices, clean = case.outputs(call, known=3)
    read, ours = swapped(quantizer, call, inputs)
    z, delta = quantizer.normalize(rearrange(inputs[0], "b c h w -> b h w c")), call["arguments"]["delta"]
    distances = quantizer.distances(z)
    shape = case.stored[clean].shape if clean else ours.clean.shape
    case.compare_choices(clean, ours.clean.reshape(shape), gap_to_second(-distances).reshape(shape))
    # Of a swapped token the smallest gap anywhere among its neighbours decides whether the rank is sure.
    gap = distances.topk(delta + 1, largest=False).values.diff(dim=-1).min(-1).values
    differ = case.compare_choices(indices, ours.indices.reshape(shape), gap.reshape(shape)).reshape(ours.indices.shape)
    kept = rearrange(read.latents, "b h w c -> b c h w")
    case.compare(call, latents, kept, where=(~differ)[:, None].expand_as(kept))


def perturbation_gradient(case: Case, _: Any, call: Call) -> None:
    quantizer, (*inputs, probe) = quantizer_of(case), case.inputs(call)
    (gradient,) = case.outputs(call, known=1)
    assert call["arguments"]["loss"] == "sum(perturbed * probe)" and call["arguments"]["with_respect_to"] == "z"
    with torch.enable_grad():
        z = inputs[0].requires_grad_()
        read, _ = swapped(quantizer, call, [z, *inputs[1:]])
        (read.latents * rearrange(probe, "b c h w -> b h w c")).sum().backward()
    assert quantizer.embedding.weight.grad is None and z.grad is not None
    case.compare(call, gradient, z.grad)


CALLS = {"perturb": latent_perturbation, "perturb_gradient": perturbation_gradient}
