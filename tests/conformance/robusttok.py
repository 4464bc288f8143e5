"""RobustTok and ImageFolder: tokenizers with queries, and the frozen network of their semantic loss."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from imgtok.hub import build_from_state
from imgtok.presets.robusttok import convert_semantic, convert_tokenizer, semantic_config, tokenizer_config
from imgtok.tokenizer import Tokenizer

from .runner import Call, Case, Family, gap_to_second


class Published:
    """A tokenizer, and the network beside it in the same checkpoint."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def tokenizer(self) -> Tokenizer:
        config = tokenizer_config(self.case.config)
        return build_from_state(config, convert_tokenizer(self.case.state()), self.case.name).eval()

    @property
    def branches(self) -> list[Any]:
        """The quantizers side by side."""
        quantizer: Any = self.tokenizer.quantizer
        return list(getattr(quantizer, "branches", [quantizer]))

    @cached_property
    def semantic(self) -> Any:
        state = convert_semantic(self.case.state())
        return build_from_state(semantic_config(self.case.config), state, f"{self.case.name}'s semantic model").eval()


def latents_of(model: Published, image: Tensor, call: Call) -> list[Tensor]:
    """b h w d of each branch."""
    assert call["arguments"]["value_range"] == [-1.0, 1.0]
    assert call["arguments"]["branches"] == len(model.branches)
    return list(model.tokenizer.latents(image).chunk(len(model.branches), dim=-1))


def encode_latent(case: Case, model: Published, call: Call) -> None:
    (image,) = case.inputs(call)
    (stored,) = case.outputs(call, known=1)
    parts = [rearrange(part, "b h w d -> b d h w") for part in latents_of(model, image, call)]
    layouts = {"B,C,h,w": lambda: parts[0], "B,branch,C,h,w": lambda: torch.stack(parts, dim=1)}
    case.compare(call, stored, layouts[call["arguments"]["layout"]]())


def quantize(case: Case, model: Published, call: Call) -> None:
    (image,) = case.inputs(call)
    names = case.outputs(call, known=len(model.branches))
    assert call["arguments"]["l2_normalise"] and call["arguments"]["token_order"] == "raster"
    for name, branch, latents in zip(names, model.branches, latents_of(model, image, call), strict=True):
        cosines = -branch.distances(branch.normalize(latents)) / 2  # between unit vectors: 1 - cosine
        case.compare_choices(name, branch.nearest(latents).flatten(1), gap_to_second(cosines).flatten(1))
    if len(model.branches) == 1:
        assert torch.equal(model.tokenizer.encode(image), model.branches[0].nearest(latents).flatten(1))


def quantize_multiscale(case: Case, model: Published, call: Call) -> None:
    (image,) = case.inputs(call)
    names = case.outputs(call, known=len(model.branches))
    assert not call["arguments"]["l2_normalise"]  # of what is returned; it is chosen by its direction
    layout = model.tokenizer.config.layout
    assert [list(size) for size in layout.sizes] == [[side, side] for side in call["arguments"]["scales"]]
    ours = []
    for name, branch, latents in zip(names, model.branches, latents_of(model, image, call), strict=True):
        assert name is not None
        published = layout.unflatten(case.stored[name].long())
        steps = list(branch.steps(latents, published))  # a tie may fall the other way: go on from the published choice
        scores = [-branch.quantizer_of(stage).distances(step.rest) for stage, step in enumerate(steps)]
        chosen = layout.flatten([score.argmax(-1) for score in scores])
        case.compare_choices(name, chosen, layout.flatten([gap_to_second(score) for score in scores]))
        ours.append(layout.flatten(branch.nearest(latents)))
    encoded = model.tokenizer.encode(image)
    assert torch.equal(encoded if encoded.ndim == 3 else encoded[..., None], torch.stack(ours, dim=-1))


def given_indices(case: Case, model: Published, call: Call) -> Tensor:
    """b n, or b n k of several branches."""
    indices = [each.long() for each in case.inputs(call)]
    rule = call["arguments"].get("index_rule")
    if rule is not None:
        by_rule = torch.arange(indices[0].numel()) * rule["multiplier"] % rule["modulus"]
        assert all(torch.equal(each.flatten(), by_rule) for each in indices)
    assert call["arguments"].get("concatenate") in (None, "channels, branch 0 first")
    assert len(indices) == call["arguments"]["branches"]
    return indices[0] if len(model.branches) == 1 else torch.stack(indices, dim=-1)


def decode_indices(case: Case, model: Published, call: Call) -> None:
    picture, stats = case.outputs(call, known=2)
    codes = model.tokenizer.quantizer.codes(model.tokenizer.config.layout.unflatten(given_indices(case, model, call)))
    compare_picture(case, model, call, codes, picture, stats)


def decode_indices_multiscale(case: Case, model: Published, call: Call) -> None:
    total, picture, stats = case.outputs(call, known=3)
    codes = model.tokenizer.quantizer.codes(model.tokenizer.config.layout.unflatten(given_indices(case, model, call)))
    assert call["arguments"]["layout"]["fhat"] == "B,branch,C,h,w"
    case.compare(call, total, rearrange(codes, "b h w (k d) -> b k d h w", k=len(model.branches)))
    compare_picture(case, model, call, codes, picture, stats)


def compare_picture(
    case: Case, model: Published, call: Call, codes: Tensor, picture: str | None, stats: str | None
) -> None:
    assert call["arguments"]["clamp"] is None
    decoded = model.tokenizer.decode_latents(codes)
    case.compare(call, picture, decoded)
    case.compare_stats(call, stats, decoded)


def generator_inputs(case: Case, model: Published, call: Call) -> None:
    (stored,) = case.outputs(call, known=1)
    assert call["arguments"]["resize"] == "area"
    quantizer: Any = model.tokenizer.quantizer
    case.compare(call, stored, quantizer.inputs(given_indices(case, model, call), model.tokenizer.config.layout))


def semantic_target(case: Case, model: Published, call: Call) -> None:
    """The class token of the frozen network, then the layer before the codes, which all branches share."""
    (image,) = case.inputs(call)
    whole, target = case.outputs(call, known=2)
    arguments = call["arguments"]
    assert arguments["value_range"] == [-1.0, 1.0]
    mean, std = (torch.tensor(arguments[f"normalise_{name}"])[:, None, None] for name in ("mean", "std"))
    feature = model.semantic(((image + 1) / 2 - mean) / std).whole
    case.compare(call, whole, feature)
    rows = torch.cat([feature] * len(model.branches), dim=-1)
    for part in model.tokenizer.to_codes(rows).chunk(len(model.branches), dim=-1):
        case.compare(call, target, part)


FAMILY = Family(
    build=Published,
    calls={
        "encode_latent": encode_latent,
        "quantize": quantize,
        "quantize_multiscale": quantize_multiscale,
        "decode_indices": decode_indices,
        "decode_indices_multiscale": decode_indices_multiscale,
        "generator_inputs": generator_inputs,
        "semantic_target": semantic_target,
    },
)
