"""VAR's transformers (arXiv:2404.02905): d16 to d30 at 256 x 256 pixels, d36 at 512 x 512."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from imgtok.convert import State, drop, rename
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.preset import Preset, Weights
from imgtok.presets.var import CODE, PAPER, SCALES_256, SCALES_512
from imgtok.tokens import ScaleLayout

SCALES = {256: SCALES_256, 512: SCALES_512}


def generator_config(published: Mapping[str, Any]) -> NextScaleConfig:
    """Our configuration for the hyper-parameters of the published `VAR`, under their published names."""
    head_dim = published["embed_dim"] // published["num_heads"]
    return NextScaleConfig(
        layout=ScaleLayout(tuple((side, side) for side in published["patch_nums"])),
        codebook_size=published["vocab_size"],
        codebook_dim=published["z_channels"],
        condition=LabelConditionConfig(labels=(Label(size=published["num_classes"]),)),
        width=published["embed_dim"],
        depth=published["depth"],
        num_heads=published["num_heads"],
        mlp_ratio=published.get("mlp_ratio", 4.0),
        norm_eps=published.get("norm_eps", 1e-6),
        attention_scale="learned" if published.get("attn_l2_norm", True) else 0.25 / head_dim**0.5,
        shared_modulation=published.get("shared_aln", False),
        drop_path=0.1 * published["depth"] / 24,
    )


def convert(state: State) -> State:
    """Published VAR parameters to ours. Keys have no bias there, which is a bias of zeros here."""
    state = drop(state, r"lvl_1L|attn_bias_for_masking|.*\.zero_k_bias")
    for name in [name for name in state if name.endswith(".q_bias")]:
        prefix = name.removesuffix("q_bias")
        q, v = state.pop(name), state.pop(f"{prefix}v_bias")
        state[f"{prefix}mat_qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    state = rename(
        state,
        [
            (r"^class_emb\.", "condition.embeddings.0."),
            (r"^word_embed\.", "inputs.latents."),
            (r"^lvl_embed\.", "inputs.stages."),
            (r"^pos_1LC$", "inputs.positions"),
            (r"^pos_start$", "inputs.start"),
            (r"^shared_ada_lin\.1\.", "shared."),
            (r"\.attn\.mat_qkv\.", ".attention.qkv."),
            (r"\.attn\.proj\.", ".attention.proj."),
            (r"\.attn\.scale_mul_1H11$", ".attention.log_scale"),
            (r"\.ffn\.", ".mlp."),
            (r"\.ada_lin\.1\.", ".modulation."),
            (r"\.ada_gss$", ".modulation"),
            (r"^head_nm\.modulation\.", "head.modulation."),
            (r"^head\.(weight|bias)$", r"head.logits.\1"),
        ],
    )
    lone = r"inputs\.(positions|start)|blocks\.\d+\.modulation"  # with axes of length 1 in front
    state = {name: tensor.flatten(0, -2) if re.fullmatch(lone, name) else tensor for name, tensor in state.items()}
    return {name: t.flatten() if name.endswith(".log_scale") else t for name, t in state.items()}


def sized(depth: int, image_size: int = 256) -> NextScaleConfig:
    return generator_config(
        {
            "depth": depth,
            "embed_dim": 64 * depth,
            "num_heads": depth,
            "patch_nums": SCALES[image_size],
            "vocab_size": 4096,
            "z_channels": 32,
            "num_classes": 1000,
            "shared_aln": depth == 36,
        }
    )


def preset(depth: int, gfid: float, image_size: int = 256) -> Preset[NextScaleConfig]:
    return Preset(
        config=sized(depth, image_size),
        convert=convert,
        paper=PAPER,
        code=CODE,
        weights=Weights(repo="FoundationVision/var", file=f"var_d{depth}.pth", licence="MIT"),
        published={"gfid": gfid},
        tokenizer="var-vq-f16",
        note="next-scale: 10 network calls an image; its authors guide with --guidance 2.5 --guidance-schedule linear",
    )


PRESETS = {
    "var-d16-256": preset(16, 3.55),
    "var-d20-256": preset(20, 2.95),
    "var-d24-256": preset(24, 2.33),
    "var-d30-256": preset(30, 1.97),
    "var-d36-512": preset(36, 2.63, 512),
}
