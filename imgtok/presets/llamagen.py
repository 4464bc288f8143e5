"""LlamaGen's tokenizers (arXiv:2406.06525): VQ-16 and VQ-8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgtok.backbones.cnn import CNNConfig
from imgtok.convert import State, drop, fuse, rename
from imgtok.preset import Preset, Weights
from imgtok.presets.taming import taming_to_ours
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig

PAPER = "arXiv:2406.06525"
CODE = "FoundationVision/LlamaGen (MIT)"


def tokenizer_config(published: Mapping[str, Any], image_size: int = 256) -> TokenizerConfig:
    """Our configuration for the hyper-parameters of the published `VQModel`, under their published names."""
    width, blocks = published["ch"], published["num_res_blocks"]
    encoder, decoder = published["encoder_ch_mult"], published["decoder_ch_mult"]
    backbone = CNNConfig(
        stem_width=width,
        encoder_widths=tuple(width * factor for factor in encoder),
        decoder_widths=tuple(width * factor for factor in decoder),
        encoder_blocks=(blocks,) * len(encoder),
        decoder_blocks=(blocks + 1,) * len(decoder),
        latent_channels=published["z_channels"],
        norm_groups=published.get("norm_groups", 32),
    )
    quantizer = VectorConfig(
        codebook_size=published["codebook_size"],
        codebook_dim=published["codebook_embed_dim"],
        l2_norm=published.get("codebook_l2_norm", True),
    )
    return TokenizerConfig(image_size=image_size, backbone=backbone, quantizer=quantizer)


def convert_tokenizer(state: State) -> State:
    """Published VQModel parameters to ours."""
    state = drop(state, r"quantize\.codebook_used|loss\..*")
    state = taming_to_ours(rename(state, [(r"\.conv_blocks\.", ".levels.")]))
    return fuse(state, ("q", "k", "v"), "qkv")


def vq(multipliers: list[int]) -> TokenizerConfig:
    return tokenizer_config(
        {
            "ch": 128,
            "encoder_ch_mult": multipliers,
            "decoder_ch_mult": multipliers,
            "num_res_blocks": 2,
            "z_channels": 256,
            "codebook_size": 16384,
            "codebook_embed_dim": 8,
        }
    )


def preset(config: TokenizerConfig, repo: str, file: str, published: Mapping[str, float]) -> Preset[TokenizerConfig]:
    weights = Weights(repo=repo, file=file, licence="MIT")
    return Preset(
        config=config, convert=convert_tokenizer, paper=PAPER, code=CODE, weights=weights, published=published
    )


VQ16, VQ8 = vq([1, 1, 2, 2, 4]), vq([1, 2, 2, 4])

PRESETS = {
    "llamagen-vq-f16": preset(VQ16, "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", {"rfid": 2.19}),
    "llamagen-vq-f8": preset(VQ8, "FoundationVision/LlamaGen", "vq_ds8_c2i.pt", {"rfid": 0.59}),
    "llamagen-vq-f16-t2i": preset(VQ16, "peizesun/llamagen_t2i", "vq_ds16_t2i.pt", {}),
}
