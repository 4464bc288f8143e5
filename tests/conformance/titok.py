"""TiTok and One-D-Piece: tokenizers of a sequence of tokens; and the MaskGIT-VQGAN behind them."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from imgtok.generators.masked import MaskedGenerator
from imgtok.hub import build_from_state
from imgtok.presets import maskgit, onedpiece, titok
from imgtok.quantizers.gaussian import LOG_VARIANCES
from imgtok.tokenizer import Tokenizer

from . import titok_generator
from .runner import Call, Case, Family, gap_to_second


def build(case: Case) -> Tokenizer | MaskedGenerator:
    if "image_seq_len" in case.config:
        return titok_generator.build(case)
    module = titok if "num_latent_tokens" in case.config else maskgit
    config, state = module.tokenizer_config(case.config), module.convert_tokenizer(case.state())
    return build_from_state(config, state, case.name).eval()


def build_one_d_piece(case: Case) -> Tokenizer:
    config, state = onedpiece.tokenizer_config(case.config), onedpiece.convert_tokenizer(case.state())
    return build_from_state(config, state, case.name).eval()


def latents_of(tokenizer: Tokenizer, image: Tensor, call: Call) -> Tensor:
    """The published picture is in [0, 1], ours in [-1, 1]."""
    low, high = call["arguments"]["value_range"]
    return tokenizer.latents((image - low) * (2 / (high - low)) - 1)


def in_published_range(picture: Tensor) -> Tensor:
    return (picture + 1) / 2


def encode_latent(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (image,) = case.inputs(call)
    (latent,) = case.outputs(call, known=1)
    case.compare(call, latent, rearrange(latents_of(tokenizer, image, call), "b n d -> b d n"))


def quantize(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (latent,) = case.inputs(call)
    indices, quantized = case.outputs(call, known=2)
    latents, quantizer = rearrange(latent, "b d n -> b n d"), tokenizer.quantizer
    ours = quantizer(latents)
    gap = gap_to_second(-quantizer.distances(quantizer.normalize(latents)))
    assert not case.compare_choices(indices, ours.indices, gap).any()
    case.compare(call, quantized, rearrange(ours.latents, "b n d -> b d n"))


def codes_of(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    return tokenizer.quantizer.codes(tokens.long())


def proxy_logits(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """b v h w over the codes of the MaskGIT-VQGAN."""
    decoder: Any = tokenizer.backbone.decoder
    features = decoder.patch_features(tokenizer.from_codes(codes), tokenizer.config.backbone.grid)
    return rearrange(decoder.head.logits(features), "b h w v -> b v h w")


def decode_proxy_logits(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (tokens,) = case.inputs(call)
    stored, stats, chosen = case.outputs(call, known=3)
    assert call["arguments"]["order"] == "raster"
    logits = proxy_logits(tokenizer, codes_of(tokenizer, tokens))
    case.compare(call, stored, logits)
    case.compare_stats(call, stats, logits)
    places = rearrange(logits, "b v h w -> b (h w) v")
    case.compare_choices(chosen, places.argmax(-1), gap_to_second(places))


def compare_picture(case: Case, call: Call, picture: str | None, stats: str | None, decoded: Tensor) -> None:
    assert call["arguments"]["clamp"] is None
    case.compare(call, picture, in_published_range(decoded))
    case.compare_stats(call, stats, in_published_range(decoded))


def decode_tokens(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (tokens,) = case.inputs(call)
    picture, stats = case.outputs(call, known=2)
    assert call["arguments"]["softmax_temperature"] in (None, 1.0)
    compare_picture(case, call, picture, stats, tokenizer.decode_latents(codes_of(tokenizer, tokens)))


def decode_prefix(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (tokens,) = case.inputs(call)
    stored, logit_stats, picture, stats = case.outputs(call, known=4)
    assert tokens.shape[1] == call["arguments"]["keep"]
    codes = codes_of(tokenizer, tokens)
    logits = proxy_logits(tokenizer, codes)
    case.compare(call, stored, logits)
    case.compare_stats(call, logit_stats, logits)
    compare_picture(case, call, picture, stats, tokenizer.decode_latents(codes))


def reconstruct(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (image,) = case.inputs(call)
    picture, stats = case.outputs(call, known=2)
    indices = tokenizer.quantizer.nearest(latents_of(tokenizer, image, call))
    codes = codes_of(tokenizer, indices[:, : call["arguments"].get("keep")])
    compare_picture(case, call, picture, stats, tokenizer.decode_latents(codes))


def encode_moments(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (image,) = case.inputs(call)
    stored = case.outputs(call, known=2)
    assert call["arguments"]["logvar_clamp"] == list(LOG_VARIANCES)
    gaussian: Any = tokenizer.quantizer
    for name, moment in zip(stored, gaussian.moments(latents_of(tokenizer, image, call)), strict=True):
        case.compare(call, name, rearrange(moment, "b n d -> b d n"))


def kl_loss(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    moments = case.inputs(call)
    (stored,) = case.outputs(call, known=1)
    assert call["arguments"]["factor"] == 0.5 and call["arguments"]["sum_axes"] == [1, 2]  # of b d 1 n
    gaussian: Any = tokenizer.quantizer
    case.compare(call, stored, gaussian.divergence(rearrange(torch.cat(moments, dim=1), "b d n -> b n d")))


def decode_latent(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (mean,) = case.inputs(call)
    picture, stats = case.outputs(call, known=2)
    compare_picture(case, call, picture, stats, tokenizer.decode_latents(rearrange(mean, "b d n -> b n d")))


def vqgan_encode_latent(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (image,) = case.inputs(call)
    latent, stats = case.outputs(call, known=2)
    latents = rearrange(latents_of(tokenizer, image, call), "b h w d -> b d h w")
    case.compare(call, latent, latents)
    case.compare_stats(call, stats, latents)


def vqgan_encode_indices(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (image,) = case.inputs(call)
    (indices,) = case.outputs(call, known=1)
    assert call["arguments"]["order"] == "raster"
    latents = latents_of(tokenizer, image, call).flatten(1, 2)
    gap = gap_to_second(-tokenizer.quantizer.distances(latents))
    case.compare_choices(indices, tokenizer.quantizer.nearest(latents), gap)


def vqgan_decode_tokens(case: Case, tokenizer: Tokenizer, call: Call) -> None:
    (tokens,) = case.inputs(call)
    picture, stats, clamped = case.outputs(call, known=3)
    assert call["arguments"]["order"] == "raster" and call["arguments"]["clamped_stats_range"] == [0, 1]
    layout = tokenizer.config.layout
    decoded = tokenizer.decode_latents(codes_of(tokenizer, layout.unflatten(tokens)))
    compare_picture(case, call, picture, stats, decoded)
    case.compare_stats(call, clamped, in_published_range(tokenizer.decode(tokens.long())))


CALLS = {
    "encode_latent": encode_latent,
    "quantize": quantize,
    "decode_proxy_logits": decode_proxy_logits,
    "decode_tokens": decode_tokens,
    "reconstruct": reconstruct,
}
FAMILY = Family(
    build=build,
    calls={
        **CALLS,
        **titok_generator.CALLS,
        "encode_moments": encode_moments,
        "kl_loss": kl_loss,
        "decode_latent": decode_latent,
        "vqgan_encode_latent": vqgan_encode_latent,
        "vqgan_encode_indices": vqgan_encode_indices,
        "vqgan_decode_tokens": vqgan_decode_tokens,
    },
)
ONE_D_PIECE = Family(build=build_one_d_piece, calls={**CALLS, "decode_prefix": decode_prefix})
