"""LlamaGen: tokenizers, and class- and text-conditional transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from imgtok.generators.condition import LabelCondition, TextFeatures
from imgtok.generators.generator import Generator
from imgtok.generators.presets.llamagen import converter, generator_config
from imgtok.hub import build_from_state
from imgtok.presets.llamagen import convert_tokenizer, tokenizer_config
from imgtok.sample.engine import sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys
from imgtok.tokenizer import Tokenizer

from ..sample.toys import Recorder
from .runner import Call, Case, Family, gap_to_second, positions


def build(case: Case) -> Any:
    if "model_type" in case.config:
        config = generator_config(case.config)
        return build_from_state(config, converter(config)(case.state()), case.name).eval()
    return build_from_state(tokenizer_config(case.config), convert_tokenizer(case.state()), case.name).eval()


def encode_latent(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (image,) = case.inputs(call)
    (latent,) = case.outputs(call, known=1)
    low, high = call["arguments"]["value_range"]
    latents = tokenizer.latents((image - low) * (2 / (high - low)) - 1)
    case.compare(call, latent, rearrange(latents, "b h w d -> b d h w"))


def quantize(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (latent,) = case.inputs(call)
    indices, quantized = case.outputs(call, known=2)
    check_raster(call)
    quantizer, latents = tokenizer.quantizer, rearrange(latent, "b d h w -> b h w d")
    ours = quantizer(latents)
    distances = quantizer.distances(quantizer.normalize(latents))
    if call["arguments"]["metric"] == "cosine":
        distances = distances / 2  # between unit vectors: 1 - cosine
    ties = case.compare_choices(indices, ours.indices, gap_to_second(-distances))
    if quantized is not None:  # at a tie that fell the other way, the published choice has the published code
        codes = torch.where(ties[..., None], quantizer.codes(case.stored[call["outputs"][0]]), ours.latents)
        case.compare(call, quantized, rearrange(codes, "b h w d -> b d h w"))


def decode_indices(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (indices,) = case.inputs(call)
    picture, stats = case.outputs(call, known=2)
    check_raster(call)
    decoded = tokenizer.decode_latents(tokenizer.quantizer.codes(indices))
    if call["arguments"].get("clamp") is not None:
        decoded = decoded.clamp(*call["arguments"]["clamp"])
    case.compare(call, picture, decoded)
    case.compare_stats(call, stats, decoded)


def losses(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (latent,) = case.inputs(call)
    (stored,) = case.outputs(call, known=1)
    arguments = call["arguments"]
    assert arguments["entropy_distance"] in ("squared", None)  # None: no entropy loss in this case
    assert arguments["entropy_log_eps"] in (1e-5, None)
    config = tokenizer.config.quantizer
    temperature = arguments["entropy_temperature"] or config.entropy_temperature
    quantizer = replace(config, entropy_temperature=temperature).build()
    quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    latents = rearrange(latent, "b d h w -> b h w d")
    raw = quantizer.train()(latents).losses | {"entropy": quantizer.entropy_loss(latents)}
    weights = dict.fromkeys(raw, 1.0)
    if arguments["weights_included"]:
        weights |= {"commitment": case.config["commit_loss_beta"], "entropy": case.config["entropy_loss_ratio"]}
    case.compare(call, stored, torch.stack([weights[name] * raw[name] for name in arguments["order"]]))


def teacher_forced(case: Case, generator: Generator, call: Call) -> None:
    *given, tokens = case.inputs(call)
    tokens = tokens.long()
    stored, stats, argmax, loss = case.outputs(call, known=4)
    condition = check_condition(generator, given, call)
    assert call["arguments"]["first_slot"] == generator.num_slots - 1  # the first row of the logits
    logits = generator(F.pad(tokens, (0, 1)), condition)[:, : generator.num_tokens]
    case.compare(call, stored, logits)
    case.compare_stats(call, stats, logits)
    case.compare_choices(argmax, logits.argmax(-1), gap_to_second(logits))
    rows = positions(call["arguments"]["loss_positions"], tokens.shape[1])
    case.compare(call, loss, F.cross_entropy(logits[:, rows].flatten(0, 1), tokens[:, rows].flatten())[None])


def greedy(case: Case, generator: Generator, call: Call) -> None:
    condition = check_condition(generator, case.inputs(call), call)
    tokens, stored = case.outputs(call, known=2)
    arguments = call["arguments"]
    guidance = Guidance(
        scale=arguments["guidance_scale"] if arguments["unconditional_pass"] else 1.0, steps=arguments["guided_steps"]
    )
    recorder = Recorder(Law(temperature=0))
    ours = sample_tokens(
        generator,
        condition,
        image_keys(0, range(len(case.stored[call["outputs"][0]]))),
        law=recorder,
        guidance=guidance,
        num_tokens=arguments["num_tokens"],
    ).tokens
    logits = torch.cat(recorder.logits, dim=1)
    followed = follow(ours, case.stored[call["outputs"][0]])
    gap = gap_to_second(logits).masked_fill(~followed, 0)  # after a tie that fell the other way, all may differ
    case.compare_choices(tokens, ours, gap)
    case.compare(call, stored, logits, where=followed[..., None].expand_as(logits))


def follow(ours: Tensor, published: Tensor) -> Tensor:
    """b n, True where all tokens before are the published ones."""
    assert ours.shape == published.shape, f"{tuple(ours.shape)} tokens instead of {tuple(published.shape)}"
    differ = (ours != published).long()
    return differ.cumsum(1) - differ == 0


def check_condition(generator: Generator, given: list[Tensor], call: Call) -> Any:
    """The condition from the inputs of a call, whose null class must be ours."""
    if not isinstance(generator.condition, LabelCondition):
        return TextFeatures(*given)
    null = call["arguments"]["null_label"]
    assert null is None or generator.condition.null(1).tolist() == [[null]]
    return given[0]


def check_raster(call: Call) -> None:
    assert call["arguments"]["index_order"] in ("raster", None)


FAMILY = Family(
    build=build,
    calls={
        "encode_latent": encode_latent,
        "quantize": quantize,
        "decode_indices": decode_indices,
        "losses": losses,
        "teacher_forced": teacher_forced,
        "greedy": greedy,
    },
)
