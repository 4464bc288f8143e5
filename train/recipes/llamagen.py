"""LlamaGen's published recipes (arXiv:2406.06525), with the defaults of its training scripts."""

from __future__ import annotations

from dataclasses import replace

from imgtok.presets.llamagen import VQ8, VQ16
from imgtok.tokenizer import TokenizerConfig
from imgtok.train.config import (
    ImageDataConfig,
    LoopConfig,
    OptimizerConfig,
    TokenDataConfig,
    TokenizerLossConfig,
    TokenizerTraining,
)
from imgtok.train.generator_config import GeneratorTraining, TransformerSizes

IMAGENET = 1_281_167


def tokenizer(config: TokenizerConfig) -> TokenizerTraining:
    """40 epochs at batch 128 and a constant 1e-4; L2 + LPIPS, and from step 20,000 on PatchGAN hinge at weight 0.5."""
    return TokenizerTraining(
        tokenizer=config,
        loop=LoopConfig(steps=40 * IMAGENET // 128, batch_size=128, ema_decay=0.9999, checkpoint_every=5000, workers=8),
        data=ImageDataConfig(source=".", crop_scale=(1.0, 1.25)),
        loss=TokenizerLossConfig(
            l2=1.0,
            perceptual=1.0,
            perceptual_network="lpips-vgg",
            commitment=0.25,
            adversarial=0.5,
            adversarial_start=20000,
            adaptive=False,
        ),
        optimizer=OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), max_grad_norm=1.0),
        discriminator_optimizer=OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), max_grad_norm=1.0),
    )


def generator(width: int, depth: int, num_heads: int) -> GeneratorTraining:
    """300 epochs at batch 256, constant 1e-4, decay 0.05; dropout 0.1, labels dropped with 0.1."""
    return GeneratorTraining(
        model=TransformerSizes(width=width, depth=depth, num_heads=num_heads, dropout=0.1, drop_condition=0.1),
        loop=LoopConfig(
            steps=300 * IMAGENET // 256, batch_size=256, ema_decay=0.9999, checkpoint_every=5000, workers=4
        ),
        data=TokenDataConfig(source=".", flip=True, shifts=4, max_shift=12),
        optimizer=OptimizerConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, max_grad_norm=1.0),
    )


def tokenizer_f16() -> TokenizerTraining:
    return tokenizer(VQ16)


def tokenizer_f8() -> TokenizerTraining:
    return tokenizer(VQ8)


def tokenizer_f16_t2i() -> TokenizerTraining:
    """The text-to-image tokenizer: fine-tuned with the discriminator from the first step."""
    recipe = tokenizer(VQ16)
    return replace(recipe, loss=replace(recipe.loss, adversarial_start=0))


def gpt_b() -> GeneratorTraining:
    return generator(768, 12, 12)


def gpt_l() -> GeneratorTraining:
    return generator(1024, 24, 16)


def gpt_xl() -> GeneratorTraining:
    return generator(1280, 36, 20)


TOKENIZERS = {
    "llamagen-vq-f16": tokenizer_f16,
    "llamagen-vq-f8": tokenizer_f8,
    "llamagen-vq-f16-t2i": tokenizer_f16_t2i,
}
GENERATORS = {"llamagen-gpt-b": gpt_b, "llamagen-gpt-l": gpt_l, "llamagen-gpt-xl": gpt_xl}
