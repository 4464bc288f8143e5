"""TiTok's generators (arXiv:2406.07550): masked transformers over 32 to 128 tokens, a ViT or a U-ViT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgtok.convert import State, drop, fuse, rename
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.masked import MaskedConfig
from imgtok.preset import Preset, Weights
from imgtok.presets.titok import CODE, PAPER
from imgtok.tokens import SequenceLayout


def generator_config(published: Mapping[str, Any]) -> MaskedConfig:
    """Our configuration for the hyper-parameters of the published `ImageBert` (ViT) or `UViTBert` (UViT).

    A U-ViT has one block more than its published number of layers: the one in the middle.
    """
    is_vit = {"ViT": True, "UViT": False}[published["kind"]]
    return MaskedConfig(
        layout=SequenceLayout(published["image_seq_len"]),
        codebook_size=published["codebook_size"],
        condition=LabelConditionConfig(labels=(Label(size=published["num_classes"]),)),
        width=published["hidden_size"],
        depth=published["num_layers"] + (not is_vit),
        num_heads=published["num_heads"],
        mlp_ratio=published["intermediate_size"] / published["hidden_size"],
        norm="after" if is_vit else "before",
        norm_eps=published["norm_eps"],
        skips=not is_vit,
        dropout=0.1 if is_vit else 0.0,
        attention_dropout=0.1 if is_vit else 0.0,
    )


def converter(config: MaskedConfig) -> Any:
    """Published parameters of either kind to ours, for models of `config`."""

    def convert(state: State) -> State:
        state = convert_uvit(state, config.depth // 2) if config.skips else convert_vit(state)
        table = state.pop("embeddings.weight")  # codes, the mask, the classes, the null class
        codes = config.codebook_size + 1
        return state | {"inputs.embedding.weight": table[:codes], "condition.embeddings.0.weight": table[codes:]}

    return convert


def convert_vit(state: State) -> State:
    """Of a BERT. All its tokens are of one type, whose vector becomes part of the positions."""
    state = drop(state, r"model\.embeddings\.position_ids")
    state = fuse(state, ("self.query", "self.key", "self.value"), "qkv")
    state = rename(
        state,
        [
            (r"^model\.embeddings\.word_embeddings\.", "embeddings."),
            (r"^model\.embeddings\.LayerNorm\.", "inputs.norm."),
            (r"^model\.embeddings\.position_embeddings\.weight$", "inputs.positions"),
            (r"^model\.lm_head\.", "head.logits."),
            (r"^model\.encoder\.layer\.", "blocks."),
            (r"\.attention\.output\.dense\.", ".attention.proj."),
            (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.output\.LayerNorm\.", ".mlp_norm."),
        ],
    )
    types = state.pop("model.embeddings.token_type_embeddings.weight")
    return state | {"inputs.positions": state["inputs.positions"] + types[0]}


def convert_uvit(state: State, half: int) -> State:
    """Of a U-ViT with `half` blocks on either side. Its queries, keys and values have no bias: here, one of zeros."""
    weights = {name: tensor for name, tensor in state.items() if name.endswith(".attn.qkv.weight")}
    state = state | {f"{name.removesuffix('weight')}bias": w.new_zeros(len(w)) for name, w in weights.items()}
    for i in range(half):
        state = rename(
            state,
            [
                (rf"^out_blocks\.{i}\.skip_linear\.", f"skips.{i}."),
                (rf"^in_blocks\.{i}\.", f"blocks.{i}."),
                (rf"^out_blocks\.{i}\.", f"blocks.{half + 1 + i}."),
            ],
        )
    rules = [
        (r"^mid_block\.", f"blocks.{half}."),
        (r"^pos_embed$", "inputs.positions"),
        (r"^norm\.", "head.norm."),
        (r"^lm_head\.", "head.logits."),
        (r"\.norm1\.", ".attention_norm."),
        (r"\.norm2\.", ".mlp_norm."),
        (r"\.attn\.", ".attention."),
    ]
    state = rename(state, rules)
    return state | {"inputs.positions": state["inputs.positions"][0]}


VIT = {"kind": "ViT", "hidden_size": 768, "num_layers": 24, "intermediate_size": 3072, "norm_eps": 1e-12}
UVIT = {"kind": "UViT", "hidden_size": 1024, "num_layers": 20, "intermediate_size": 4096, "norm_eps": 1e-5}


def sized(sizes: Mapping[str, Any], tokens: int) -> MaskedConfig:
    shared = {"num_heads": 16, "codebook_size": 4096, "num_classes": 1000}
    return generator_config({**sizes, **shared, "image_seq_len": tokens})


def preset(config: MaskedConfig, name: str, gfid: float, drawn: str) -> Preset[MaskedConfig]:
    return Preset(
        config=config,
        convert=converter(config),
        paper=PAPER,
        code=CODE,
        weights=Weights(
            repo=f"yucornetto/generator_titok_{name}_imagenet", file="model.safetensors", licence="Apache-2.0"
        ),
        tokenizer=f"titok-{name}",
        published={"gfid": gfid},
        note=f"masked; for the published gFID, its authors draw with {drawn} --unmasking-anneal",
    )


# Published guidance is that past the conditional logits, and linear rises to its scale after the last step: with g and
# T steps, our scale is 1 + g (T - 1) / T.
PRESETS = {
    "titok-maskgit-l32-256": preset(
        sized(VIT, 32),
        "l32",
        2.77,
        "--guidance 4.9375 --guidance-schedule linear --unmasking-steps 8 --unmasking-noise 9.5",
    ),
    "titok-maskgit-b64-256": preset(
        sized(VIT, 64),
        "b64",
        2.48,
        "--guidance 3.625 --guidance-schedule linear --unmasking-steps 8 --unmasking-noise 11",
    ),
    "titok-maskgit-s128-256": preset(
        sized(UVIT, 128),
        "s128",
        1.97,
        "--guidance 6.9 --guidance-schedule cosine --guidance-power 3 --unmasking-steps 64 --unmasking-noise 2.8",
    ),
}
