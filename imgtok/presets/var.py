"""VAR's multi-scale tokenizer (arXiv:2404.02905)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from imgtok.backbones.cnn import CNNConfig
from imgtok.convert import State, drop, rename
from imgtok.preset import Preset, Weights
from imgtok.presets.taming import taming_to_ours
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.tokenizer import TokenizerConfig

PAPER = "arXiv:2404.02905"
CODE = "FoundationVision/VAR (MIT)"
SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
BLENDS = [  # of the multi-scale quantizer, by whatever name it goes
    (r"\.quant_resi\.(?:qresi_ls\.)?(\d+)\.", r".view.blends.\1."),
    (r"\.quant_resi\.qresi\.", ".view.blends.0."),  # a single one
]


def tokenizer_config(published: Mapping[str, Any], other_scales: tuple[tuple[int, ...], ...] = ()) -> TokenizerConfig:
    """Our configuration for the hyper-parameters of the published `VQVAE`, under their published names.

    `other_scales`: lists of scales for other image sizes. ValueError for the unpublished cosine variant.
    """
    if published.get("using_znorm"):
        raise ValueError("using_znorm is on, but released weights compare by Euclidean distance; there is no other")
    widths = tuple(published["ch"] * factor for factor in published["ch_mult"])
    blocks, scales = published["num_res_blocks"], tuple(published["patch_nums"])
    backbone = CNNConfig(
        stem_width=published["ch"],
        encoder_widths=widths,
        decoder_widths=widths,
        encoder_blocks=(blocks,) * len(widths),
        decoder_blocks=(blocks + 1,) * len(widths),
        latent_channels=published["z_channels"],
        norm_groups=published.get("norm_groups", 32),
    )
    ratio = abs(published["quant_resi"])
    blends = published["share_quant_resi"] or len(scales)  # 0: each scale has its own
    quantizer = ResidualConfig(
        stage=VectorConfig(codebook_size=published["vocab_size"], codebook_dim=published["z_channels"], l2_norm=False),
        view=ScalesConfig(scales=scales, other_scales=other_scales, blends=blends if ratio else 0, blend_ratio=ratio),
    )
    return TokenizerConfig(
        image_size=scales[-1] * backbone.reduction,
        backbone=backbone,
        quantizer=quantizer,
        code_kernel=published["quant_conv_ks"],
    )


def convert_tokenizer(state: State) -> State:
    """Published VQVAE parameters to ours. Levels of its decoder count from the highest resolution, ours run to it."""
    state = drop(state, r"quantize\.ema_vocab_hit_SV")
    last = max((int(match[1]) for name in state if (match := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    state = {
        re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.levels.{last - int(match[1])}.", name): tensor
        for name, tensor in state.items()
    }
    names = [
        (r"^encoder\.down\.", "encoder.levels."),
        (r"(\.levels\.\d+)\.block\.", r"\1.res."),
        (r"\.mid\.block_1\.", ".mid.0."),
        (r"\.mid\.attn_1\.", ".mid.1."),
        (r"\.mid\.block_2\.", ".mid.2."),
        *BLENDS,
        (r"^quantize\.embedding\.", "quantize.stages.0.embedding."),
    ]
    return taming_to_ours(rename(state, names))


VQ16 = tokenizer_config(
    {
        "vocab_size": 4096,
        "z_channels": 32,
        "ch": 160,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "quant_conv_ks": 3,
        "quant_resi": 0.5,
        "share_quant_resi": 4,
        "patch_nums": SCALES_256,
    },
    other_scales=(SCALES_512,),
)

PRESETS = {
    "var-vq-f16": Preset(
        config=VQ16,
        convert=convert_tokenizer,
        paper=PAPER,
        code=CODE,
        weights=Weights(repo="FoundationVision/var", file="vae_ch160v4096z32.pth", licence="MIT"),
        published={"rfid": 0.92},
        note="10 scales; for images of 256 pixels (680 tokens) and of 512 (2240)",
    )
}
