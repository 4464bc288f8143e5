"""Models of other libraries that are as large as ours and do the same work: what the benchmarks stand beside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imgtok.generators.condition import LabelConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.nn.mlp import swiglu_hidden
from imgtok.sample.guidance import guide
from imgtok.sample.measure import materialize
from imgtok.tokenizer import TokenizerConfig

MISSING = "{0} is not installed, so there is nothing to compare with: pip install 'imgtok[bench]', or add --no-peer"


def find_transformers() -> tuple[Any, Any, Any]:
    """LlamaConfig, LlamaForCausalLM and StaticCache."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
    except ImportError as error:
        raise ImportError(MISSING.format("transformers")) from error
    return LlamaConfig, LlamaForCausalLM, StaticCache


def find_diffusers() -> Any:
    """VQModel"""
    try:
        from diffusers import VQModel
    except ImportError as error:
        raise ImportError(MISSING.format("diffusers")) from error
    return VQModel


class LlamaPeer:
    """transformers' Llama with its StaticCache: width, depth, heads, MLP and vocabulary of `config`.

    Its prompt is as many slots as our condition has; its rotations are one-dimensional, which costs the same.
    """

    def __init__(
        self, config: GeneratorConfig, rows: int, dtype: torch.dtype, device: torch.device, compiled: bool = False
    ) -> None:
        """`rows`: images and their unconditional twins. ImportError if transformers is missing."""
        LlamaConfig, LlamaForCausalLM, StaticCache = find_transformers()
        slots = 1 if isinstance(config.condition, LabelConditionConfig) else config.condition.num_slots
        length = slots + config.layout.num_tokens
        sizes = LlamaConfig(
            vocab_size=config.codebook_size,
            hidden_size=config.width,
            intermediate_size=config.mlp_hidden or swiglu_hidden(config.width),
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads or config.num_heads,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=length,
            tie_word_embeddings=False,
        )
        with torch.device("meta"):
            model = LlamaForCausalLM(sizes)
        self.model = materialize(model, device, dtype)
        if compiled:
            self.model.model.compile()
        self.cache = StaticCache(config=sizes, max_batch_size=rows, max_cache_len=length, device=device, dtype=dtype)
        named = inspect.signature(type(self.model.model).forward).parameters
        self.cache_name = "cache" if "cache" in named else "past_key_values"  # its name until version 5.24
        self.prompt = torch.zeros(rows, slots, config.width, dtype=dtype, device=device)
        self.places = torch.arange(length, device=device)

    @torch.no_grad()
    def draw(self, num_tokens: int, scale: float, guided: bool, law: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens b n, by guidance outside of the model, our law and torch.multinomial."""
        self.cache.reset()
        dice = torch.Generator(self.prompt.device).manual_seed(0)
        slots, tokens = self.prompt.shape[1], []
        logits = self.logits(self.places[:slots], inputs_embeds=self.prompt)
        for i in range(num_tokens):
            probs = law(guide(logits, scale) if guided else logits.float()).exp()
            tokens.append(torch.multinomial(probs, 1, generator=dice))
            if i + 1 < num_tokens:
                rows = tokens[-1].repeat(2 if guided else 1, 1)
                logits = self.logits(self.places[slots + i : slots + i + 1], input_ids=rows)
        return torch.cat(tokens, dim=1)

    def logits(self, places: Tensor, **inputs: Tensor) -> Tensor:
        """Of the token after the last: b v."""
        given = {self.cache_name: self.cache, "cache_position": places, "use_cache": True}
        out = self.model.model(**inputs, **given)
        return self.model.lm_head(out.last_hidden_state[:, -1])


class VQModelPeer:
    """diffusers' VQModel with the widths, blocks, attention, latents and codebook of `config`, float32."""

    def __init__(self, config: TokenizerConfig, device: torch.device) -> None:
        """ValueError if no VQModel is as large; ImportError if diffusers is missing."""
        check_vqmodel(config)
        VQModel = find_diffusers()
        backbone, plain = config.backbone, len(config.backbone.encoder_widths) - 1
        with torch.device("meta"):
            model = VQModel(
                down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
                up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
                block_out_channels=backbone.encoder_widths,
                layers_per_block=backbone.encoder_blocks[0],
                latent_channels=backbone.latent_channels,
                num_vq_embeddings=config.quantizer.codebook_size,
                vq_embed_dim=config.quantizer.codebook_dim,
                norm_num_groups=backbone.norm_groups,
                lookup_from_codebook=True,
            )
        self.config = config
        self.model = materialize(model, device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """b 3 h w -> indices b*n."""
        return self.model.quantize(self.model.encode(images).latents)[2][2]

    @torch.no_grad()
    def decode(self, indices: Tensor, height: int, width: int) -> Tensor:
        """b n -> b 3 h w, for a grid of height x width."""
        shape = (len(indices), height, width, self.config.quantizer.codebook_dim)
        return self.model.decode(indices.flatten(), force_not_quantize=True, shape=shape).sample


def check_vqmodel(config: TokenizerConfig) -> None:
    """ValueError unless a VQModel can have the sizes of `config`."""
    backbone: Any = config.backbone
    blocks = backbone.encoder_blocks[0]
    same = (
        backbone.encoder_widths == backbone.decoder_widths
        and set(backbone.encoder_blocks) == {blocks}
        and set(backbone.decoder_blocks) == {blocks + 1}
        and backbone.encoder_patch == backbone.decoder_patch == 1
        and (backbone.stem_width or backbone.encoder_widths[0]) == backbone.encoder_widths[0]
        and backbone.resample == "conv"
        and backbone.bottleneck
    )
    if not same:
        raise ValueError(
            "diffusers has no VQModel of this tokenizer's sizes (equal widths in encoder and decoder, one block more "
            "in the decoder, no patches); add --no-peer, or compare with a preset such as llamagen-vq-f16"
        )
