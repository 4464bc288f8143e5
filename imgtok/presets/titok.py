"""TiTok (arXiv:2406.07550): images as 32 to 256 tokens that lie on no grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from imgtok.backbones.query import CodeHeadConfig, PixelHeadConfig, QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.convert import State, rename
from imgtok.preset import Preset, Weights
from imgtok.presets.maskgit import cnn_config, convert_half
from imgtok.presets.taming import as_linear
from imgtok.quantizers.gaussian import GaussianConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import QuantizerConfig, TokenizerConfig

PAPER = "arXiv:2406.07550"
CODE = "bytedance/1d-tokenizer (Apache-2.0)"

RULES = [
    (r"^(encoder|decoder)\.transformer\.(\d+)\.", r"backbone.\1.vit.blocks.\2."),
    (r"^(encoder|decoder)\.ln_pre\.", r"backbone.\1.vit.norm_in."),
    (r"^(encoder|decoder)\.ln_post\.", r"backbone.\1.vit.norm_out."),
    (r"\.ln_1\.", ".attention_norm."),
    (r"\.ln_2\.", ".mlp_norm."),
    (r"\.attn\.in_proj_", ".attention.qkv."),
    (r"\.attn\.out_proj\.", ".attention.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^encoder\.patch_embed\.", "backbone.encoder.patches.project."),
    (r"^encoder\.conv_out\.", "to_codes."),
    (r"^decoder\.decoder_embed\.", "from_codes."),
    (r"^decoder\.conv_out\.", "backbone.decoder.head.conv_out."),
    (r"^decoder\.ffn\.2\.", "backbone.decoder.head.to_logits."),
    (r"^quantize\.", "quantizer."),
    (r"^pixel_quantize\.embedding\.weight$", "backbone.decoder.head.codebook"),
]


def vit_config(published: Mapping[str, Any]) -> ViTConfig:
    return ViTConfig(
        width=published["width"],
        depth=published["layers"],
        num_heads=published["heads"],
        mlp_ratio=published["mlp_ratio"],
        norm_eps=1e-5,
        norm_first=True,
    )


def tokenizer_config(published: Mapping[str, Any]) -> TokenizerConfig:
    """Our configuration for the hyper-parameters of the published `TiTok`, under their published names.

    With a `pixel_decoder` it is one of two stages, whose decoder predicts another tokenizer's codes.
    """
    pixels = published["pixel_decoder"]
    side = published["image_size"] // published["patch_size"]
    two_stages = CodeHeadConfig(codebook_size=pixels["num_embeddings"], cnn=cnn_config(pixels)) if pixels else None
    backbone = QueryConfig(
        latents=(published["num_latent_tokens"],),
        patch_size=published["patch_size"],
        grid=(side, side),
        encoder=vit_config(published["encoder"]),
        decoder=vit_config(published["decoder"]),
        head=two_stages or PixelHeadConfig(kernel=3),
        scrambled=published["is_legacy"],
    )
    return TokenizerConfig(
        image_size=published["image_size"],
        backbone=backbone,
        quantizer=quantizer_config(published),
        pixel_range=(0.0, 1.0),
    )


def quantizer_config(published: Mapping[str, Any]) -> QuantizerConfig:
    if published["quantize_mode"] == "vae":
        return GaussianConfig(dim=published["token_size"])
    return VectorConfig(
        codebook_size=published["codebook_size"],
        codebook_dim=published["token_size"],
        l2_norm=published["use_l2_norm"],
    )


def convert_tokenizer(state: State) -> State:
    """Published TiTok parameters to ours. Sums of constants become one: a token's position, a mask token."""
    cnn = convert_half(state, "pixel_decoder", "backbone.decoder.head.cnn")
    state = {name: tensor for name, tensor in state.items() if not name.startswith("pixel_decoder.")}
    grids = {half: tokens_of(state, half) for half in ("encoder", "decoder")}
    tokens = {
        "backbone.encoder.patches.class_token": grids["encoder"][0],
        "backbone.encoder.patches.positions": grids["encoder"][1],
        "backbone.encoder.queries": (
            state.pop("latent_tokens") + state.pop("encoder.latent_token_positional_embedding")
        )[None],
        "backbone.decoder.class_token": grids["decoder"][0],
        "backbone.decoder.canvas": grids["decoder"][1] + state.pop("decoder.mask_token")[0],
        "backbone.decoder.code_positions": state.pop("decoder.latent_token_positional_embedding"),
    }
    first = "hidden" if "decoder.ffn.2.weight" in state else "to_pixels"
    rules = [*RULES, (r"^decoder\.ffn\.0\.", f"backbone.decoder.head.{first}.")]
    renamed = {name: as_linear(tensor) for name, tensor in rename(state, rules).items()}
    return renamed | tokens | cnn


def tokens_of(state: State, half: str) -> tuple[Tensor, Tensor]:
    """The class token at its position, c, and the positions of a square grid, h w c; out of `state`."""
    positions = state.pop(f"{half}.positional_embedding")
    side = round((len(positions) - 1) ** 0.5)
    class_token = state.pop(f"{half}.class_embedding")[0] + positions[0]
    return class_token, positions[1:].unflatten(0, (side, side))


SIZES = {
    "s": {"width": 512, "layers": 8, "heads": 8, "mlp_ratio": 4.0},
    "b": {"width": 768, "layers": 12, "heads": 12, "mlp_ratio": 4.0},
    "l": {"width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4.0},
}
PIXEL_DECODER = {
    "channel_mult": [1, 1, 2, 2, 4],
    "hidden_channels": 128,
    "num_res_blocks": 2,
    "z_channels": 256,
    "num_embeddings": 1024,
}


def two_stage(size: str, tokens: int) -> TokenizerConfig:
    return tokenizer_config(
        {
            "image_size": 256,
            "patch_size": 16,
            "num_latent_tokens": tokens,
            "token_size": 12,
            "codebook_size": 4096,
            "use_l2_norm": True,
            "quantize_mode": "vq",
            "encoder": SIZES[size],
            "decoder": SIZES[size],
            "is_legacy": True,
            "pixel_decoder": PIXEL_DECODER,
        }
    )


def single_stage(encoder: str, decoder: str, tokens: int, continuous: bool = False) -> TokenizerConfig:
    return tokenizer_config(
        {
            "image_size": 256,
            "patch_size": 16,
            "num_latent_tokens": tokens,
            "token_size": 16 if continuous else 64,
            "codebook_size": 8192,
            "use_l2_norm": False,
            "quantize_mode": "vae" if continuous else "vq",
            "encoder": SIZES[encoder],
            "decoder": SIZES[decoder],
            "is_legacy": False,
            "pixel_decoder": None,
        }
    )


def preset(config: TokenizerConfig, name: str, rfid: float) -> Preset[TokenizerConfig]:
    return Preset(
        config=config,
        convert=convert_tokenizer,
        paper=PAPER,
        code=CODE,
        weights=Weights(
            repo=f"yucornetto/tokenizer_titok_{name}_imagenet", file="model.safetensors", licence="Apache-2.0"
        ),
        published={"rfid": rfid},
    )


PRESETS = {
    "titok-l32": preset(two_stage("l", 32), "l32", 2.21),
    "titok-b64": preset(two_stage("b", 64), "b64", 1.70),
    "titok-s128": preset(two_stage("s", 128), "s128", 1.71),
    "titok-bl64-vq8k": preset(single_stage("b", "l", 64), "bl64_vq8k", 2.06),
    "titok-bl128-vq8k": preset(single_stage("b", "l", 128), "bl128_vq8k", 1.49),
    "titok-sl256-vq8k": preset(single_stage("s", "l", 256), "sl256_vq8k", 1.03),
    "titok-ll32-vae": preset(single_stage("l", "l", 32, continuous=True), "ll32_vae_c16", 1.61),
    "titok-bl64-vae": preset(single_stage("b", "l", 64, continuous=True), "bl64_vae_c16", 1.25),
    "titok-bl128-vae": preset(single_stage("b", "l", 128, continuous=True), "bl128_vae_c16", 0.84),
}
