"""Models of other libraries that are as large as ours and do the same work: what the benchmarks stand beside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imgtok.backbones.cnn import CNNConfig
from imgtok.generators.condition import LabelConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.nn.mlp import swiglu_hidden
from imgtok.sample.guidance import guide
from imgtok.sample.measure import materialize
from imgtok.tokenizer import TokenizerConfig

MISSING = "{0} is not installed, so there is nothing to compare with: pip install 'imgtok[bench]', or add --no-peer"


def find_transformers() -> tuple[Any, Any, Any, Any]:
    """LlamaConfig, LlamaForCausalLM, LogitsProcessorList and StaticCache."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList, StaticCache
    except ImportError as error:
        raise ImportError(MISSING.format("transformers")) from error
    return LlamaConfig, LlamaForCausalLM, LogitsProcessorList, StaticCache


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
        *_, StaticCache = find_transformers()
        slots = 1 if isinstance(config.condition, LabelConditionConfig) else config.condition.num_slots
        length = slots + config.layout.num_tokens
        self.model = llama(config, length, dtype, device)
        if compiled:
            self.model.model.compile()
        self.cache = StaticCache(
            config=self.model.config, max_batch_size=rows, max_cache_len=length, device=device, dtype=dtype
        )
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


class AssistedPeer:
    """transformers' assisted generation: a Llama of the size of `config` checks what one of `draft_config` drafts.

    Its prompt is one token. It draws one image at a time, without guidance: it knows neither batches nor twins.
    As delivered, it drafts no further than a token less likely than 0.4, which is nearly every token of an image; so
    here it always makes the same number of drafts.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        draft_config: GeneratorConfig,
        dtype: torch.dtype,
        device: torch.device,
        drafts: int = 5,
    ) -> None:
        """`drafts`: tokens that a call of the larger model judges.

        ValueError if the two draw from different codebooks; ImportError if transformers is missing.
        """
        if draft_config.codebook_size != config.codebook_size:
            raise ValueError(
                f"the draft model's codebook_size {draft_config.codebook_size} does not match the model's "
                f"{config.codebook_size}; choose a draft model of the same tokenizer"
            )
        length = 1 + config.layout.num_tokens
        self.model = llama(config, length, dtype, device)
        self.draft = llama(draft_config, length, dtype, device)
        settings = self.draft.generation_config
        settings.assistant_confidence_threshold, settings.num_assistant_tokens = 0.0, drafts
        settings.num_assistant_tokens_schedule = "constant"
        self.prompt = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.draws = 0
        self.calls = 0
        self.model.register_forward_hook(self.count)

    def draw(self, num_tokens: int, law: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens 1 n, another image each time; `calls` says how often the larger model was asked."""
        *_, LogitsProcessorList, _ = find_transformers()
        self.calls, device = 0, self.prompt.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # generate knows only the global one
            torch.manual_seed(self.draws)
            self.draws += 1
            drawn = self.model.generate(
                self.prompt,
                attention_mask=torch.ones_like(self.prompt),
                assistant_model=self.draft,
                logits_processor=LogitsProcessorList([lambda _, logits: law(logits)]),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
            )
        return drawn[:, 1:]

    def count(self, *_: Any) -> None:
        self.calls += 1


def llama(config: GeneratorConfig, length: int, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' LlamaForCausalLM of the sizes of `config` for `length` places; no token ends its text."""
    LlamaConfig, LlamaForCausalLM, *_ = find_transformers()
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
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(sizes)
    return materialize(model, device, dtype)


class VQModelPeer:
    """diffusers' VQModel with the widths, blocks, attention, latents and codebook of `config`, float32."""

    def __init__(self, config: TokenizerConfig, device: torch.device) -> None:
        """ValueError if no VQModel is as large; ImportError if diffusers is missing."""
        backbone = check_vqmodel(config)
        VQModel, plain = find_diffusers(), len(backbone.encoder_widths) - 1
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


def check_vqmodel(config: TokenizerConfig) -> CNNConfig:
    """The backbone; ValueError unless a VQModel can have the sizes of `config`."""
    backbone = config.backbone
    if isinstance(backbone, CNNConfig) and is_vqmodel(backbone):
        return backbone
    raise ValueError(
        "diffusers has no VQModel of this tokenizer's sizes (convolutions, equal widths in encoder and decoder, one "
        "block more in the decoder, no patches); add --no-peer, or compare with a preset such as llamagen-vq-f16"
    )


def is_vqmodel(backbone: CNNConfig) -> bool:
    return (
        backbone.encoder_widths == backbone.decoder_widths
        and len(set(backbone.encoder_blocks)) == 1
        and set(backbone.decoder_blocks) == {backbone.encoder_blocks[0] + 1}
        and backbone.encoder_patch == backbone.decoder_patch == 1
        and (backbone.stem_width or backbone.encoder_widths[0]) == backbone.encoder_widths[0]
        and backbone.resample == "conv"
        and backbone.low_attention
    )
