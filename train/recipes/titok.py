"""TiTok's recipes (arXiv:2406.07550), from its published configurations: two stages, one stage, generators.

Precision is bfloat16, which needs no scaling of losses, in place of float16. Squared errors are those of pixels in
[0, 1].
"""

from __future__ import annotations

from dataclasses import replace

from imgtok.presets.titok import single_stage, two_stage
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.train.config import (
    ImageDataConfig,
    LoopConfig,
    OptimizerConfig,
    PictureLossConfig,
    TokenDataConfig,
    TokenizerLossConfig,
    TokenizerTraining,
)
from imgtok.train.discriminators import BlurredPatchGANConfig
from imgtok.train.generator_config import GeneratorTraining, MaskedSizes
from imgtok.train.proxy import DecoderTraining, ProxyLossConfig, ProxyTraining

TEACHER = "maskgit-vqgan-f16"
DATA = ImageDataConfig(source=".", crop_scale=(1.0, 1.0), flip=True)
# What weight decay leaves alone, besides biases and norms: One-D-Piece has the first, TiTok both.
TABLES = ("positions", "class_token", "queries", "canvas", "embedding", "codebook")
TABLES_AND_EMBEDDINGS = (*TABLES, "patches.project", "from_codes")
UNIT_RANGE = 0.25  # what squared errors of our pixels, in [-1, 1], are of those of the same pixels in [0, 1]


def optimizer(
    beta: float, warmup_steps: int, start: int = 0, undecayed: tuple[str, ...] = TABLES_AND_EMBEDDINGS
) -> OptimizerConfig:
    """To 1e-4, then a cosine to 1e-5."""
    return OptimizerConfig(
        lr=1e-4,
        betas=(0.9, beta),
        weight_decay=1e-4,
        undecayed=undecayed,
        max_grad_norm=1.0,
        schedule="cosine",
        final_share=0.1,
        warmup_steps=warmup_steps,
        start=start,
    )


def loop(steps: int, batch_size: int) -> LoopConfig:
    return LoopConfig(steps=steps, batch_size=batch_size, ema_decay=0.999, checkpoint_every=5000, workers=8)


def first_stage(
    tokenizer: TokenizerConfig, batch_size: int = 256, undecayed: tuple[str, ...] = TABLES_AND_EMBEDDINGS
) -> ProxyTraining:
    """A million steps of cross-entropy of the teacher's codes; unused codes are left where they are."""
    assert isinstance(tokenizer.quantizer, VectorConfig)
    return ProxyTraining(
        tokenizer=replace(tokenizer, quantizer=replace(tokenizer.quantizer, reseed_below=0.0)),
        teacher=TEACHER,
        loop=loop(1_000_000, batch_size),
        data=DATA,
        loss=ProxyLossConfig(proxy=1.0, commitment=0.25, codebook=1.0),
        optimizer=optimizer(0.99, 10_000, undecayed=undecayed),
    )


def second_stage(batch_size: int = 256, undecayed: tuple[str, ...] = TABLES_AND_EMBEDDINGS) -> DecoderTraining:
    """500,000 steps of pixels, with a discriminator after 20,000; encoder and codes stay. No LPIPS."""
    return DecoderTraining(
        loop=loop(500_000, batch_size),
        data=DATA,
        loss=PictureLossConfig(
            l2=UNIT_RANGE,
            classifier=0.1,
            adversarial=0.01,
            adversarial_start=20_000,
            adversarial_loss="hinge",
            adaptive=False,
            lecam=0.001,
            lecam_form="means",
            discriminator=BlurredPatchGANConfig(),
        ),
        optimizer=optimizer(0.999, 5_000, undecayed=undecayed),
        discriminator_optimizer=optimizer(0.999, 5_000, start=20_000, undecayed=()),
    )


def one_stage(tokenizer: TokenizerConfig) -> TokenizerTraining:
    """A million steps of pixels at once, a discriminator after 200,000; unused codes move to latents.

    No such configuration of TiTok was published: the numbers are those of its successor (arXiv:2501.07730).
    """
    return TokenizerTraining(
        tokenizer=tokenizer,
        loop=loop(1_000_000, 256),
        data=DATA,
        loss=TokenizerLossConfig(
            l2=UNIT_RANGE,
            perceptual=1.0,
            perceptual_network="lpips-vgg",
            classifier=0.1,
            commitment=0.25,
            codebook=1.0,
            kl=1e-6,
            adversarial=0.1,
            adversarial_start=200_000,
            adversarial_loss="hinge",
            adaptive=False,
            lecam=0.001,
            lecam_form="means",
            discriminator=BlurredPatchGANConfig(),
        ),
        optimizer=optimizer(0.999, 10_000),
        discriminator_optimizer=optimizer(0.999, 10_000, start=200_000, undecayed=()),
    )


def l32() -> ProxyTraining:
    return first_stage(two_stage("l", 32))


def b64() -> ProxyTraining:
    return first_stage(two_stage("b", 64))


def s128() -> ProxyTraining:
    return first_stage(two_stage("s", 128))


def bl64() -> TokenizerTraining:
    return one_stage(single_stage("b", "l", 64))


def bl128() -> TokenizerTraining:
    return one_stage(single_stage("b", "l", 128))


def sl256() -> TokenizerTraining:
    return one_stage(single_stage("s", "l", 256))


def ll32_vae() -> TokenizerTraining:
    return one_stage(single_stage("l", "l", 32, continuous=True))


def bl64_vae() -> TokenizerTraining:
    return one_stage(single_stage("b", "l", 64, continuous=True))


def bl128_vae() -> TokenizerTraining:
    return one_stage(single_stage("b", "l", 128, continuous=True))


def generator(model: MaskedSizes) -> GeneratorTraining:
    """500,000 steps at batch 2048: a warm-up of 10,000 to 2e-4, then a cosine to 1e-5; decay 0.03, flips."""
    return GeneratorTraining(
        model=model,
        loop=LoopConfig(steps=500_000, batch_size=2048, ema_decay=0.999, checkpoint_every=5000, workers=4),
        data=TokenDataConfig(source=".", flip=True),
        optimizer=OptimizerConfig(
            lr=2e-4,
            betas=(0.9, 0.96),
            weight_decay=0.03,
            max_grad_norm=1.0,
            schedule="cosine",
            final_share=0.05,
            warmup_steps=10_000,
        ),
    )


def vit() -> GeneratorTraining:
    """Of the tokenizers of 32 and 64 tokens."""
    return generator(
        MaskedSizes(width=768, depth=24, num_heads=16, norm="after", dropout=0.1, attention_dropout=0.1),
    )


def uvit() -> GeneratorTraining:
    """Of the tokenizer of 128 tokens."""
    return generator(MaskedSizes(width=1024, depth=21, num_heads=16, skips=True))


TOKENIZERS = {
    "titok-bl64-vq8k": bl64,
    "titok-bl128-vq8k": bl128,
    "titok-sl256-vq8k": sl256,
    "titok-ll32-vae": ll32_vae,
    "titok-bl64-vae": bl64_vae,
    "titok-bl128-vae": bl128_vae,
}
PROXIES = {"titok-l32-stage1": l32, "titok-b64-stage1": b64, "titok-s128-stage1": s128}
DECODERS = {"titok-stage2": second_stage}
GENERATORS = {"titok-maskgit-vit": vit, "titok-maskgit-uvit": uvit}
