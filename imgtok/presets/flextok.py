"""FlexTok (arXiv:2502.13967): images as 1 to 256 ordered tokens, and pictures drawn from the first ones by a flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from imgtok.backbones.flow import FlowConfig
from imgtok.backbones.trunk import TrunkConfig
from imgtok.backbones.vae import KLConfig
from imgtok.convert import State, fuse, rename
from imgtok.nn.flow import FlowGuidance, FlowSolver
from imgtok.nn.position import waves_2d
from imgtok.preset import Preset, Weights
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.tokenizer import TokenizerConfig

PAPER = "arXiv:2502.13967"
CODE = "apple/ml-flextok (Apple sample code licence)"
LICENCE = "Apple Machine Learning Research Model licence: non-commercial research only"
NOTE = (
    "decode from the first tokens with layout=SequenceLayout(number), in other steps after setting backbone.solver; "
    "unchecked: the scale of the autoencoder's latents, 0.18215 as diffusers has it by default, since the published "
    "one stands in the repository's config.json alone; a wrong one gives wrong tokens"
)
VAE = KLConfig(scale=0.18215)
SOLVER = FlowSolver(num_steps=20)
GUIDANCE = FlowGuidance(scale=7.5, momentum=-0.5, max_norm=2.5, parallel=0.0)
TABLES = ("encoder.module_dict.enc_posemb_module.posembs", "decoder.module_dict.dec_patches_posemb_module.posembs")

RULES = [
    (r"^vae\.vae\.", "backbone.vae.model."),
    (r"^encoder\.module_dict\.enc_to_latents\.proj\.", "to_codes."),
    (r"^decoder\.module_dict\.dec_from_latents\.proj\.", "from_codes."),
    (r"^(encoder|decoder)\.module_dict\.(?:enc|dec)_", r"backbone.\1."),
    (r"\.(?:noise_)?patch_emb\.patch_proj\.", ".project."),
    (r"\.register_module\.", "."),
    (r"\.registers_posemb_module\.posembs$", ".positions"),
    (r"\.nested_dropout\.dropout_mask_token$", ".dropped"),
    (r"\.latent_dropout\.nullcond$", ".null"),
    (r"\.time_embedder\.mlp\.0\.", ".time.fc1."),
    (r"\.time_embedder\.mlp\.2\.", ".time.fc2."),
    (r"\.to_patches\.adaLN_modulation\.1\.", ".modulation."),
    (r"\.to_patches\.proj\.", ".to_patches."),
    (r"^(backbone\.decoder)\.transformer\.blocks\.(\d+)\.(attn|mlp)\.", r"\1.blocks.\2.inner.\3."),
    (r"\.transformer\.blocks\.", ".blocks."),
    (r"\.adaLN_modulation\.1\.", ".modulation."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc2\.", ".mlp.down."),
]


def tokenizer_config(published: Mapping[str, Any], vae: KLConfig = VAE) -> TokenizerConfig:
    """Our configuration for the hyper-parameters of the published model, with another autoencoder if wanted."""
    side = published["latent_size"] // published["patch_size"]
    trunks = {
        half: TrunkConfig(
            width=published[f"{short}_dim"],
            depth=published[f"{short}_depth"],
            head_dim=published["head_dim"],
            mlp_ratio=published["mlp_ratio"],
        )
        for half, short in (("encoder", "enc"), ("decoder", "dec"))
    }
    backbone = FlowConfig(
        vae=vae,
        registers=published["num_registers"],
        patch_size=published["patch_size"],
        grid=(side, side),
        solver=SOLVER,
        guidance=GUIDANCE,
        **trunks,
    )
    return TokenizerConfig(
        image_size=published["latent_size"] * vae.reduction,
        backbone=backbone,
        quantizer=ScalarConfig(levels=tuple(published["fsq_levels"])),
    )


def convert_tokenizer(state: State) -> State:
    """Published parameters to ours. Tables that are stored, but fixed, are compared with ours and left out.

    ValueError where such a table is another.
    """
    state = dict(state)
    for name in TABLES:
        if name in state:
            check_table(name, state.pop(name))
    state = fuse(fuse(state, ("wq", "wk", "wv"), "qkv"), ("fc1", "fc3"), "gate_up")
    positions = "decoder.module_dict.dec_registers_posemb_module.posembs"  # 1 1 c n
    state[positions] = state[positions][0, 0].T
    return rename(state, RULES)


def check_table(name: str, published: Tensor) -> None:
    """1 c h w: positions of patches."""
    _, channels, height, width = published.shape
    ours = waves_2d(height, width, channels)
    if not torch.allclose(published[0].permute(1, 2, 0).float(), ours, atol=1e-3):
        raise ValueError(f"{name} holds other positions than the sines and cosines that this model computes")


def released(encoder_depth: int, decoder_depth: int) -> TokenizerConfig:
    """Widths are 64 for each block."""
    return tokenizer_config(
        {
            "enc_dim": 64 * encoder_depth,
            "dec_dim": 64 * decoder_depth,
            "enc_depth": encoder_depth,
            "dec_depth": decoder_depth,
            "head_dim": 64,
            "latent_size": 32,
            "num_registers": 256,
            "fsq_levels": [8, 8, 8, 5, 5, 5],
            "patch_size": 2,
            "mlp_ratio": 4.0,
        }
    )


def preset(encoder_depth: int, decoder_depth: int, data: str, rfid: float | None) -> Preset[TokenizerConfig]:
    return Preset(
        config=released(encoder_depth, decoder_depth),
        convert=convert_tokenizer,
        paper=PAPER,
        code=CODE,
        weights=Weights(
            repo=f"EPFL-VILAB/flextok_d{encoder_depth}_d{decoder_depth}_{data}",
            file="model.safetensors",
            licence=LICENCE,
        ),
        published={} if rfid is None else {"rfid": rfid},
        note=NOTE,
    )


PRESETS = {
    "flextok-d12-d12": preset(12, 12, "in1k", 3.18),
    "flextok-d18-d18": preset(18, 18, "in1k", 1.18),
    "flextok-d18-d28": preset(18, 28, "in1k", 1.05),
    "flextok-d18-d28-dfn": preset(18, 28, "dfn", None),
}
