"""RobustTok (arXiv:2509.12474), and ImageFolder (arXiv:2410.01756) and XQ-GAN (arXiv:2412.01762) before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ImageFeaturesConfig, ViTConfig
from imgtok.convert import State, drop, rename
from imgtok.nn.position import resize_table
from imgtok.preset import Preset, Weights
from imgtok.presets.taming import as_linear
from imgtok.presets.var import BLENDS
from imgtok.quantizers.factorized import BranchConfig, ProductConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.sign import SignConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.tokenizer import TokenizerConfig

ROBUSTTOK, XQGAN, IMAGEFOLDER = "arXiv:2509.12474", "arXiv:2412.01762", "arXiv:2410.01756"
CODE = "qiuk2/RobusTok (none stated), lxa9867/ImageFolder (Adobe Research, non-commercial)"
LICENCE = "none stated"

BLOCKS = [  # of timm's vision transformers, with and without DINOv2's scales
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".mlp_norm."),
    (r"\.attn\.", ".attention."),
    (r"\.ls1\.gamma$", ".attention_scale"),
    (r"\.ls2\.gamma$", ".mlp_scale"),
]
CONSTANTS = (
    "encoder.latent_tokens",
    "encoder.lvl_embed.weight",
    "encoder.model.cls_token",
    "encoder.model.pos_embed",
    "decoder.mask_token",
    "decoder.lvl_embed.weight",
    "decoder.model.cls_token",
    "decoder.model.pos_embed",
)


def vit_config(published: Mapping[str, Any]) -> ViTConfig:
    """Of DINOv2's kind, of which there are two in a tokenizer."""
    return ViTConfig(
        width=published["dim"],
        depth=published["depth"],
        num_heads=published["num_heads"],
        mlp_ratio=published["mlp_ratio"],
        norm_eps=1e-6,
        layer_scale=1e-5,
        drop_path=0.1,
    )


def patch_grid(published: Mapping[str, Any]) -> tuple[int, int]:
    side = published["image_size"] // published["patch_size"]
    return (side, side)


def tokenizer_config(published: Mapping[str, Any]) -> TokenizerConfig:
    """Our configuration for the hyper-parameters of the published `VQModel`, under their published names.

    Codes are chosen by their direction; with one scale they are unit vectors, with several of any length, or signs.
    """
    side, branches = math.isqrt(published["num_latent_tokens"]), published["product_quant"]
    if side**2 != published["num_latent_tokens"]:
        raise ValueError(f"num_latent_tokens must be a square number, got {published['num_latent_tokens']}")
    backbone = QueryConfig(
        latents=(side, side),
        branches=branches,
        patch_size=published["patch_size"],
        grid=patch_grid(published),
        encoder=vit_config(published),
        decoder=vit_config(published),
        code_class=True,
    )
    branch = branch_config(published)
    return TokenizerConfig(
        image_size=published["image_size"],
        backbone=backbone,
        quantizer=branch if branches == 1 else ProductConfig(branch=branch, count=branches),
    )


def branch_config(published: Mapping[str, Any]) -> BranchConfig:
    scales = tuple(published["scales"])
    size, dim = published["codebook_size"], published["codebook_dim"]
    if len(scales) == 1:
        return VectorConfig(codebook_size=size, codebook_dim=dim)
    binary = published.get("binary", False)  # our name: the published code tells by its choice of class
    if binary and size != 2**dim:
        raise ValueError(f"{dim} signs are {2**dim} codes, but codebook_size is {size}; the two must agree")
    codes = VectorConfig(codebook_size=size, codebook_dim=dim, l2_norm=False, distance="cosine")
    return ResidualConfig(
        stage=SignConfig(bits=dim, l2_norm=False) if binary else codes,
        view=ScalesConfig(scales=scales, blends=4, blend_ratio=0.5),
        dropout=0.1,
        least_stages=min(3, len(scales)),
        unit=binary,
    )


def convert_tokenizer(state: State) -> State:
    """Published VQModel parameters to ours. Sums of constants become one: a token's position, its level, a mask token.

    Left out: the frozen network of the semantic loss, records of the codes' use, and layers that are never used.
    """
    state = drop(state, r"semantic_model\..*|sem_linear\..*|.*\.lvl1LC|.*ema_vocab_hit_SV|.*\.scaler")
    rules = [
        *BLOCKS,
        (r"^(encoder|decoder)\.model\.norm\.", r"backbone.\1.vit.norm_out."),
        (r"^(encoder|decoder)\.model\.blocks\.", r"backbone.\1.vit.blocks."),
        (r"^encoder\.model\.patch_embed\.proj\.", "backbone.encoder.patches.project."),
        (r"^decoder\.to_pixel\.model\.", "backbone.decoder.head.to_pixels."),
        (r"^quantizes\.", "quantizer.branches."),
        (r"^quantize\.", "quantizer."),
        *BLENDS,
    ]
    if any(".quant_resi." in name for name in state):
        rules.append((r"\.embedding\.weight$", ".stages.0.embedding.weight"))
    constants = {name: state.pop(name) for name in CONSTANTS}
    encoder, branches = encoder_tokens(constants)
    projections = {
        "to_codes.weight": torch.block_diag(*[as_linear(state.pop("quant_conv.weight"))] * branches),
        "to_codes.bias": state.pop("quant_conv.bias").repeat(branches),
        "from_codes.weight": as_linear(state.pop("post_quant_conv.weight")),
        "from_codes.bias": state.pop("post_quant_conv.bias"),
    }
    grid = tuple(encoder["backbone.encoder.queries"].shape[1:3])
    return rename(state, rules) | projections | encoder | decoder_tokens(constants, grid)


def encoder_tokens(constants: State) -> tuple[State, int]:
    """Ours, and the number of branches: there is a level for the image and one for each branch of the latents."""
    latents, levels = constants["encoder.latent_tokens"][0], constants["encoder.lvl_embed.weight"]
    token, positions = class_and_grid(constants["encoder.model.cls_token"], constants["encoder.model.pos_embed"])
    branches = len(levels) - 1
    side = math.isqrt(len(latents) // branches)
    queries = latents.unflatten(0, (branches, side, side)) + resize_table(positions, (side, side))
    tokens = {
        "backbone.encoder.patches.class_token": token + levels[0],
        "backbone.encoder.patches.positions": positions + levels[0],
        "backbone.encoder.queries": queries + levels[1:, None, None],
    }
    return tokens, branches


def decoder_tokens(constants: State, latents: tuple[int, ...]) -> State:
    """`latents`: rows and columns."""
    levels = constants["decoder.lvl_embed.weight"]
    token, positions = class_and_grid(constants["decoder.model.cls_token"], constants["decoder.model.pos_embed"])
    return {
        "backbone.decoder.class_token": token + levels[0],
        "backbone.decoder.canvas": constants["decoder.mask_token"][0] + positions + levels[0],
        "backbone.decoder.code_class": token + levels[1],
        "backbone.decoder.code_positions": resize_table(positions, latents) + levels[1],
    }


def class_and_grid(class_token: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """timm's 1 1 c and 1 (1 + n) c -> the class token at its position, c, and the positions of a square grid, h w c."""
    side = math.isqrt(positions.shape[1] - 1)
    return class_token[0, 0] + positions[0, 0], positions[0, 1:].unflatten(0, (side, side))


def semantic_config(published: Mapping[str, Any]) -> ImageFeaturesConfig:
    """The frozen DINOv2 of the semantic loss, which checkpoints hold too."""
    vit = vit_config(published)
    return ImageFeaturesConfig(vit=vit, patch_size=published["patch_size"], grid=patch_grid(published))


def convert_semantic(state: State) -> State:
    """Its parameters, out of a published VQModel's."""
    prefix = "semantic_model."
    return convert_timm({name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)})


def convert_timm(published: State) -> State:
    """Parameters of timm's vision transformers without a classifier, as those of `ImageFeatures`."""
    state = dict(published)
    token, positions = class_and_grid(state.pop("cls_token"), state.pop("pos_embed"))
    rules = [
        *BLOCKS,
        (r"^blocks\.", "vit.blocks."),
        (r"^norm\.", "vit.norm_out."),
        (r"^patch_embed\.proj\.", "patches.project."),
    ]
    return rename(state, rules) | {"patches.class_token": token, "patches.positions": positions}


def published_sizes(codebook_size: int, **changes: Any) -> dict[str, Any]:
    """As of all published models but for `changes`: a ViT-B, 256 tokens for 256 pixels."""
    sizes = {"image_size": 256, "patch_size": 16, "dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    quantizer = {"codebook_size": codebook_size, "codebook_dim": 64, "scales": [16], "num_latent_tokens": 256}
    return sizes | quantizer | {"product_quant": 1} | changes


def preset(
    sizes: Mapping[str, Any], paper: str, repo: str, file: str, rfid: float, note: str = ""
) -> Preset[TokenizerConfig]:
    return Preset(
        config=tokenizer_config(sizes),
        convert=convert_tokenizer,
        paper=paper,
        code=CODE,
        weights=Weights(repo=repo, file=file, licence=LICENCE),
        published={"rfid": rfid} if rfid else {},
        note="; ".join(part for part in (several(sizes["product_quant"]), note) if part),
    )


def several(count: int) -> str:
    return f"{count} codes for each token" if count > 1 else ""


FOLDED = {
    "codebook_dim": 32,
    "scales": [1, 1, 2, 3, 3, 4, 5, 6, 8, 11],
    "num_latent_tokens": 121,
    "product_quant": 2,
}

UNCHECKED = "codes are signs; sizes are those of the published configuration, the weights have not been tried"

PRESETS = {
    "robusttok-f16": preset(published_sizes(4096), ROBUSTTOK, "qiuk6/RobustTok", "main-train.pt", 1.02),
    "robusttok-f16-post": preset(published_sizes(4096), ROBUSTTOK, "qiuk6/RobustTok", "post-train.pt", 0),
    "xqgan-f16-4096": preset(published_sizes(4096), XQGAN, "qiuk6/RobustTok", "XQGAN-4096.pt", 0.91),
    "xqgan-f16-8192": preset(published_sizes(8192, codebook_dim=32), XQGAN, "qiuk6/RobustTok", "XQGAN-8192.pt", 0.81),
    **{
        f"xqgan-f16-vp2-{size}": preset(
            published_sizes(size, codebook_dim=32, product_quant=2),
            XQGAN,
            "qiuk6/XQ-GAN",
            f"vq-{size}/best_ckpt.pt",
            rfid,
        )
        for size, rfid in ((4096, 0.90), (16384, 0.64))
    },
    **{
        f"xqgan-f16-msb-{2**bits}": preset(
            published_sizes(2**bits, **(FOLDED | {"codebook_dim": bits, "binary": True})),
            XQGAN,
            "qiuk6/XQ-GAN",
            f"MSBR10P2-{2**bits}/best_ckpt.pt",
            rfid,
            UNCHECKED,
        )
        for bits, rfid in ((12, 0.86), (14, 0.78))
    },
    **{
        f"imagefolder-{size}": preset(
            published_sizes(size, **FOLDED), IMAGEFOLDER, "qiuk6/XQ-GAN", f"MSVR10P2-{size}/best_ckpt.pt", rfid
        )
        for size, rfid in ((4096, 0.80), (8192, 0.70), (16384, 0.67))
    },
}
