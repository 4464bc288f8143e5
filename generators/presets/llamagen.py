"""LlamaGen's transformers (arXiv:2406.06525): class- and text-conditional, B to 3B."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from imgtok.convert import State, drop, fuse, rename
from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.nn.mlp import swiglu_hidden
from imgtok.preset import Preset, Weights
from imgtok.presets.llamagen import CODE, PAPER
from imgtok.tokens import GridLayout


def generator_config(published: Mapping[str, Any]) -> GeneratorConfig:
    """Our configuration for the hyper-parameters of the published `Transformer`, under their published names."""
    side = math.isqrt(published["block_size"])
    if side * side != published["block_size"]:
        raise ValueError(f"block_size {published['block_size']} is not the square of a grid's side")
    condition: LabelConditionConfig | TextConditionConfig
    if published["model_type"] == "c2i":
        condition = LabelConditionConfig(labels=(Label(size=published["num_classes"]),))
    else:
        condition = TextConditionConfig(num_slots=published["cls_token_num"], feature_dim=published["caption_dim"])
    return GeneratorConfig(
        layout=GridLayout(side, side),
        codebook_size=published["vocab_size"],
        condition=condition,
        width=published["dim"],
        depth=published["n_layer"],
        num_heads=published["n_head"],
        num_kv_heads=published.get("n_kv_head"),
        mlp_hidden=swiglu_hidden(published["dim"], published.get("multiple_of", 256)),
        norm_eps=published.get("norm_eps", 1e-5),
        rope_base=float(published.get("rope_base", 10000)),
        prefix_rotation="zero",
    )


def converter(config: GeneratorConfig) -> Any:
    """Published Transformer parameters to ours, for models of `config`."""

    def convert(state: State) -> State:
        state = drop(state, r"freqs_cis|.*\.kv_cache\..*")
        state = rename(
            state,
            [
                (r"^cls_embedding\.embedding_table\.", "condition.embeddings.0."),
                (r"^cls_embedding\.cap_proj\.", "condition."),
                (r"^cls_embedding\.uncond_embedding$", "condition.null_features"),
                (r"^tok_embeddings\.", "inputs.embedding."),
                (r"^layers\.", "blocks."),
                (r"\.wqkv\.", ".qkv."),
                (r"\.wo\.", ".proj."),
                (r"\.ffn_norm\.", ".mlp_norm."),
                (r"\.feed_forward\.w2\.", ".mlp.down."),
                (r"^norm\.", "head.norm."),
                (r"^output\.", "head.logits."),
            ],
        )
        state = fuse(state, ("feed_forward.w1", "feed_forward.w3"), "mlp.gate_up")
        if isinstance(config.condition, TextConditionConfig) and "condition.null_features" in state:
            rows = slice(config.condition.num_slots)  # files hold 120, whatever the length of the prefix
            state["condition.null_features"] = state["condition.null_features"][rows]
        head_dim = config.width // config.num_heads
        rotated = config.num_heads + (config.num_kv_heads or config.num_heads)
        return {
            name: halve_pairs(tensor, rotated, head_dim) if re.search(r"\.qkv\.weight$", name) else tensor
            for name, tensor in state.items()
        }

    return convert


def halve_pairs(qkv: Tensor, rotated: int, head_dim: int) -> Tensor:
    """Published rotation turns neighbours (2i, 2i + 1), ours turns (i, i + d/2): reorders the rows of q and k heads."""
    if qkv.ndim != 2 or qkv.shape[0] < rotated * head_dim:  # misshapen: leave it to the strict loader to say so
        return qkv
    qk, v = qkv[: rotated * head_dim], qkv[rotated * head_dim :]
    return torch.cat([rearrange(qk, "(h i two) c -> (h two i) c", h=rotated, two=2), v])


SIZES: dict[str, tuple[int, int, int]] = {
    "b": (12, 12, 768),
    "l": (24, 16, 1024),
    "xl": (36, 20, 1280),
    "xxl": (48, 24, 1536),
    "3b": (24, 32, 3200),
}
# gFID at 256 x 256 as published, where files were released.
RELEASED = {
    ("b", 256): 5.46,
    ("l", 256): 3.80,
    ("b", 384): 6.09,
    ("l", 384): 3.07,
    ("xl", 384): 2.62,
    ("xxl", 384): 2.34,
    ("3b", 384): 2.18,
}


def sized(size: str, image_size: int, model_type: str) -> GeneratorConfig:
    depth, heads, width = SIZES[size]
    return generator_config(
        {
            "model_type": model_type,
            "dim": width,
            "n_layer": depth,
            "n_head": heads,
            "vocab_size": 16384,
            "block_size": (image_size // 16) ** 2,
            "num_classes": 1000,
            "cls_token_num": 120,
            "caption_dim": 2048,
        }
    )


def class_preset(size: str, image_size: int) -> Preset[GeneratorConfig]:
    config = sized(size, image_size, "c2i")
    gfid = RELEASED.get((size, image_size))
    file = f"c2i_{size.upper()}_{image_size}.pt"
    return Preset(
        config=config,
        convert=converter(config),
        paper=PAPER,
        code=CODE,
        weights=Weights(repo="FoundationVision/LlamaGen", file=file, licence="MIT") if gfid else None,
        tokenizer="llamagen-vq-f16",
        published={"gfid": gfid} if gfid else {},
        note="" if gfid else "sizes only: no file was released at this resolution",
    )


def text_preset(image_size: int, file: str) -> Preset[GeneratorConfig]:
    config = sized("xl", image_size, "t2i")
    return Preset(
        config=config,
        convert=converter(config),
        paper=PAPER,
        code=CODE,
        weights=Weights(repo="peizesun/llamagen_t2i", file=file, licence="MIT"),
        tokenizer="llamagen-vq-f16-t2i",
        note="conditions are FLAN-T5-XL features of at most 120 tokens, padded on the left",
    )


PRESETS = {f"llamagen-gpt-{size}-{image}": class_preset(size, image) for size in SIZES for image in (256, 384)} | {
    "llamagen-gpt-xl-t2i-256": text_preset(256, "t2i_XL_stage1_256.pt"),
    "llamagen-gpt-xl-t2i-512": text_preset(512, "t2i_XL_stage2_512.pt"),
}
