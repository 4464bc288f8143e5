"""TiTok's masked generators: their logits, and their way of drawing with the randomness taken out."""

from __future__ import annotations

import torch

from imgtok.generators.masked import MaskedGenerator
from imgtok.generators.presets.titok import converter, generator_config
from imgtok.hub import build_from_state
from imgtok.sample.guidance import Guidance
from imgtok.sample.masked import Unmasking, sample_masked
from imgtok.sample.noise import image_keys

from .runner import Call, Case


def build(case: Case) -> MaskedGenerator:
    config = generator_config(case.config)
    return build_from_state(config, converter(config)(case.state()), case.name).eval()


def masked_logits(case: Case, generator: MaskedGenerator, call: Call) -> None:
    tokens, *given = case.inputs(call)
    stored, stats = case.outputs(call, known=2)
    check_rows(generator, call)
    labels = given[0] if given else generator.condition.null(len(tokens))
    assert bool(given) == (call["arguments"]["condition"] == "class")
    logits = generator(tokens.long(), labels.long())
    case.compare(call, stored, logits)
    case.compare_stats(call, stats, logits)


def iterative_decode(case: Case, generator: MaskedGenerator, call: Call) -> None:
    (labels,) = case.inputs(call)
    stored, generated = case.outputs(call, known=2)
    arguments = call["arguments"]
    assert arguments["mask_token"] == generator.mask_token and arguments["randomize_temperature"] == 0
    unmasking = Unmasking(
        steps=arguments["num_sample_steps"], noise=0.0, anneal=arguments["softmax_temperature_annealing"]
    )
    seen = [torch.full((len(labels), generator.num_tokens), generator.mask_token)]
    ours = sample_masked(
        generator,
        labels.long(),
        image_keys(0, range(len(labels))),
        guidance=guidance_of(call),
        unmasking=unmasking,
        on_step=lambda tokens, guesses: seen.append(tokens),
    )
    case.compare(call, stored, torch.stack(seen[:-1], dim=1))
    case.compare(call, generated, ours.tokens)


def guidance_of(call: Call) -> Guidance:
    """Published: conditional + g (conditional - null), g constant or rising from 0 to its scale after the last step;
    power-cosine: null + g (conditional - null)."""
    arguments = call["arguments"]
    scale, steps = arguments["guidance_scale"], arguments["num_sample_steps"]
    if arguments["guidance_decay"] == "power-cosine":
        return Guidance(scale=scale, schedule="cosine", power=arguments["guidance_scale_pow"])
    if arguments["guidance_decay"] == "linear":
        return Guidance(scale=1 + scale * (steps - 1) / steps, schedule="linear")
    assert arguments["guidance_decay"] == "constant"
    return Guidance(scale=1 + scale)


def check_rows(generator: MaskedGenerator, call: Call) -> None:
    """Where the published table has its mask, its classes and its null class."""
    arguments, config = call["arguments"], generator.config
    assert arguments["mask_token"] == generator.mask_token
    assert arguments["class_token_offset"] in (None, config.codebook_size + 1)
    null = config.codebook_size + 1 + config.condition.labels[0].size
    assert arguments["class_token"] in (None, null)


CALLS = {"masked_logits": masked_logits, "iterative_decode": iterative_decode}
