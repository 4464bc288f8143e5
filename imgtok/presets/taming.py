"""Published names of the VQGAN line (taming-transformers) to ours: what LlamaGen, VAR and others have in common."""

from __future__ import annotations

import re

from torch import Tensor

from imgtok.convert import State, rename

RULES = [
    (r"^(encoder|decoder)\.", r"backbone.\1."),
    (r"\.(?:down|up)sample\.", ".resample."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".proj."),
    (r"^quantize\.", "quantizer."),
    (r"^quant_conv\.", "to_codes."),
    (r"^post_quant_conv\.", "from_codes."),
]
PROJECTIONS = ("to_codes.weight", "from_codes.weight")


def taming_to_ours(state: State) -> State:
    """Of parameters whose levels are called `encoder.levels.i` already, and their parts `res.j` and `attn.j`.

    Attention sits between residual blocks where the level has any.
    """
    attentive = {match[1] for name in state if (match := re.match(r"((?:en|de)coder\.levels\.\d+)\.attn\.", name))}
    state = rename({interleave(name, attentive): tensor for name, tensor in state.items()}, RULES)
    return {name: as_linear(tensor) if name in PROJECTIONS else tensor for name, tensor in state.items()}


def as_linear(weight: Tensor) -> Tensor:
    """The weight of a 1 x 1 convolution as that of the linear layer that it is; others stay."""
    return weight.flatten(1) if weight.shape[2:] == (1, 1) else weight


def interleave(name: str, attentive: set[str]) -> str:
    """levels.i.res.j and .attn.j -> levels.i.blocks.k in order of execution."""
    match = re.match(r"((?:en|de)coder\.levels\.\d+)\.(res|attn)\.(\d+)\.(.*)", name)
    if not match:
        return name
    level, kind, j, rest = match.groups()
    block = 2 * int(j) + (kind == "attn") if level in attentive else int(j)
    return f"{level}.blocks.{block}.{rest}"
