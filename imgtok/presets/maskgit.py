"""MaskGIT's VQGAN (arXiv:2202.04200): TiTok's teacher and pixel decoder, and the tokenizer of RAR."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.backbones.cnn import CNNConfig
from imgtok.convert import State, rename
from imgtok.preset import Preset, Weights
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig

PAPER = "arXiv:2202.04200"
CODE = "bytedance/1d-tokenizer, google-research/maskgit (Apache-2.0)"
LEVELS = [
    (r"\.block\.", ".blocks."),
    (r"\.upsample_conv\.", ".resample.conv."),
    (r"\.nin_shortcut\.", ".shortcut."),
]


def cnn_config(published: Mapping[str, Any]) -> CNNConfig:
    """Of the published `Encoder` and `Decoder`: no attention, means of 2 x 2 places on the way down."""
    widths = tuple(published["hidden_channels"] * factor for factor in published["channel_mult"])
    blocks = (published["num_res_blocks"],) * len(widths)
    return CNNConfig(
        stem_width=published["hidden_channels"],
        encoder_widths=widths,
        decoder_widths=widths,
        encoder_blocks=blocks,
        decoder_blocks=blocks,
        latent_channels=published["z_channels"],
        attention=False,
        resample="mean",
    )


def tokenizer_config(published: Mapping[str, Any]) -> TokenizerConfig:
    """Our configuration for the hyper-parameters of the published model, under their published names."""
    return TokenizerConfig(
        image_size=published["image_size"],
        backbone=cnn_config(published),
        quantizer=VectorConfig(
            codebook_size=published["num_embeddings"], codebook_dim=published["z_channels"], l2_norm=False
        ),
        pixel_range=(0.0, 1.0),
    )


def convert_tokenizer(state: State) -> State:
    """Published parameters to ours, whose layers between latents and codes change nothing here."""
    half = convert_half(state, "decoder", "backbone.decoder") | convert_half(state, "encoder", "backbone.encoder")
    identity = torch.eye(state["quantize.embedding.weight"].shape[1])
    layers = {f"{name}.weight": identity.clone() for name in ("to_codes", "from_codes")}
    layers |= {f"{name}.bias": identity.new_zeros(len(identity)) for name in ("to_codes", "from_codes")}
    rest = {name: tensor for name, tensor in state.items() if not re.match(r"(encoder|decoder)\.", name)}
    return rename(rest, [(r"^quantize\.", "quantizer.")]) | half | layers


def convert_half(state: State, published: str, ours: str) -> State:
    """The parameters of an encoder or decoder with the name `published`, those of others left out.

    Levels of the decoder count from the highest resolution, ours run to it. Convolutions without a bias get one of
    zeros. What a block that widens adds is a product of its own outcome, not of its input, by mistake: so its last
    convolution takes that product in, and our shortcut from the input has weights of zero.
    """
    state = {
        name.removeprefix(f"{published}."): each for name, each in state.items() if name.startswith(f"{published}.")
    }
    last = max((int(match[1]) for name in state if (match := re.match(r"up\.(\d+)\.", name))), default=0)
    state = {
        re.sub(r"^up\.(\d+)\.", lambda match: f"levels.{last - int(match[1])}.", name): tensor
        for name, tensor in state.items()
    }
    state = rename(state, [(r"^down\.", "levels."), *LEVELS])
    for name in [name for name in state if name.endswith(".shortcut.weight")]:
        state |= without_detour(state, name.removesuffix(".shortcut.weight"))
    if "conv_out.weight" in state:
        state["conv_out.weight"] = as_3x3(state["conv_out.weight"])
    return {f"{ours}.{name}": tensor for name, tensor in with_biases(state).items()}


def without_detour(state: State, block: str) -> State:
    """h + S h, where h = C x: the convolution (1 + S) C, and a shortcut of zeros from the input instead of S."""
    conv, detour = state[f"{block}.conv2.weight"], state[f"{block}.shortcut.weight"].flatten(1)
    channels = state[f"{block}.conv1.weight"].shape[1]
    return {
        f"{block}.conv2.weight": conv + torch.einsum("o i, i c h w -> o c h w", detour, conv),
        f"{block}.shortcut.weight": conv.new_zeros(len(conv), channels, 1, 1),
    }


def as_3x3(weight: Tensor) -> Tensor:
    """A 1 x 1 convolution as one of 3 x 3 with zeros around; others stay."""
    return F.pad(weight, (1, 1, 1, 1)) if weight.shape[2:] == (1, 1) else weight


def with_biases(state: State) -> State:
    zeros = {
        name.replace(".weight", ".bias"): tensor.new_zeros(len(tensor))
        for name, tensor in state.items()
        if tensor.ndim == 4 and name.replace(".weight", ".bias") not in state
    }
    return state | zeros


PUBLISHED = {
    "image_size": 256,
    "hidden_channels": 128,
    "channel_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "z_channels": 256,
    "num_embeddings": 1024,
}

PRESETS = {
    "maskgit-vqgan-f16": Preset(
        config=tokenizer_config(PUBLISHED),
        convert=convert_tokenizer,
        paper=PAPER,
        code=CODE,
        weights=Weights(repo="fun-research/TiTok", file="maskgit-vqgan-imagenet-f16-256.bin", licence="Apache-2.0"),
        published={"rfid": 2.28},
    )
}
