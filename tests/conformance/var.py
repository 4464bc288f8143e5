"""VAR: the multi-scale tokenizer, and the transformer over its scales."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from imgtok.hub import build_from_state
from imgtok.presets.var import convert_tokenizer, tokenizer_config
from imgtok.tokenizer import Tokenizer

from . import var_transformer
from .llamagen import encode_latent
from .runner import Call, Case, Family, gap_to_second


def build_tokenizer(case: Case) -> Tokenizer:
    return build_from_state(tokenizer_config(case.config), convert_tokenizer(case.state()), case.name).eval()


def build(case: Case) -> Any:
    return var_transformer.build(case) if "depth" in case.config else build_tokenizer(case)


def quantize(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (latent,) = case.inputs(call)
    indices, totals, stats = case.outputs(call, known=3)
    assert indices is not None
    quantizer: Any = tokenizer.quantizer
    assert call["arguments"]["index_order"] == "scales in turn, raster in each"
    assert list(quantizer.view.blend_of_stage) == call["arguments"]["phi_of_scale"]
    latents = rearrange(latent, "b d h w -> b h w d")
    layout = quantizer.layout_of(*latents.shape[1:3])
    published = layout.unflatten(case.stored[indices].long())
    steps = list(quantizer.steps(latents, published))  # a tie may fall the other way: go on from the published choice
    scores = [-quantizer.quantizer_of(stage).distances(step.rest) for stage, step in enumerate(steps)]
    chosen = layout.flatten([score.argmax(-1) for score in scores])
    ties = case.compare_choices(indices, chosen, layout.flatten([gap_to_second(score) for score in scores]))
    ours = quantizer(latents)
    if not ties.any():
        assert torch.equal(ours.indices, chosen)
        torch.testing.assert_close(ours.latents, steps[-1].total)
    whole = rearrange([step.total for step in steps], "s b h w d -> s b d h w")
    case.compare(call, totals, whole)
    compare_rows(case, call, stats, whole)


def reconstruct_latent(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (latent,) = case.inputs(call)
    picture, stats = case.outputs(call, known=2)
    assert call["arguments"]["clamp"] is None
    decoded = tokenizer.decode_latents(tokenizer.quantizer(rearrange(latent, "b d h w -> b h w d")).latents)
    case.compare(call, picture, decoded)
    case.compare_stats(call, stats, decoded)


def transformer_input(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (tokens,) = case.inputs(call)
    stored, stats = case.outputs(call, known=2)
    quantizer: Any = tokenizer.quantizer
    inputs = quantizer.inputs(tokens.long(), tokenizer.config.layout)
    case.compare(call, stored, inputs)
    case.compare_stats(call, stats, inputs)


def decode_tokens(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (tokens,) = case.inputs(call)
    total, picture, stats = case.outputs(call, known=3)
    assert call["arguments"]["clamp"] == [-1.0, 1.0]
    tokens, layout = tokens.long(), tokenizer.config.layout
    codes = tokenizer.quantizer.codes(layout.unflatten(tokens))
    case.compare(call, total, rearrange(codes, "b h w d -> b d h w"))
    case.compare(call, picture, tokenizer.decode(tokens))
    stages = [stage + 1 for stage in call["arguments"]["stats_scales"]]
    compare_rows(case, call, stats, [tokenizer.decode(tokens, stages=count) for count in stages])


def losses(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (latent,) = case.inputs(call)
    (stored,) = case.outputs(call, known=1)
    quantizer: Any = tokenizer.quantizer
    raw = quantizer.train()(rearrange(latent, "b d h w -> b h w d")).losses
    quantizer.eval()
    case.compare(call, stored, (case.config["beta"] * raw["commitment"] + raw["codebook"])[None])


def compare_rows(case: Case, call: Call, name: str | None, tensors: Any) -> None:
    """Mean and standard deviation of each of several tensors."""
    correction = {"unbiased": 1, "population": 0}[call["arguments"]["std"]]
    rows: list[Tensor] = [torch.stack([each.mean(), each.std(correction=correction)]) for each in tensors]
    case.compare(call, name, torch.stack(rows))


FAMILY = Family(
    build=build,
    calls={
        "encode_latent": encode_latent,
        "quantize": quantize,
        "reconstruct_latent": reconstruct_latent,
        "transformer_input": transformer_input,
        "decode_tokens": decode_tokens,
        "losses": losses,
        **var_transformer.CALLS,
    },
)
