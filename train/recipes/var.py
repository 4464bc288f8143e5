"""VAR (arXiv:2404.02905), from its paper and scripts.

How its tokenizer was trained is unpublished: the recipe follows what its authors released for a plain one, but for
their balanced consistency of the discriminator, whose heads normalise over 8 pictures here and over all there. Of
generators, the learning rate falls as a cosine, theirs linearly.
"""

from __future__ import annotations

from dataclasses import replace

from imgtok.backbones.cnn import CNNConfig
from imgtok.presets.var import VQ16
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.train.config import (
    ImageDataConfig,
    LoopConfig,
    OptimizerConfig,
    TokenDataConfig,
    TokenizerLossConfig,
    TokenizerTraining,
)
from imgtok.train.discriminators import FrozenFeaturesConfig
from imgtok.train.generator_config import GeneratorTraining, NextScaleSizes
from imgtok.train.recipes.llamagen import IMAGENET


def tokenizer() -> TokenizerTraining:
    """250 epochs at batch 768: 0.2 L1 + L2 + LPIPS, and the hinge loss of heads on frozen DINO features.

    The latter from 22 % on, at 0.4 times the adaptive weight.
    """
    steps = 250 * IMAGENET // 768
    begin = round(0.22 * steps)
    assert isinstance(VQ16.backbone, CNNConfig)
    assert isinstance(VQ16.quantizer, ResidualConfig) and isinstance(VQ16.quantizer.view, ScalesConfig)
    assert isinstance(VQ16.quantizer.stage, VectorConfig)
    stage = replace(VQ16.quantizer.stage, begin="latents")
    view = replace(VQ16.quantizer.view, other_scales=())
    optimizer = OptimizerConfig(
        lr=3e-4,
        betas=(0.5, 0.9),
        weight_decay=0.005,
        max_grad_norm=10.0,
        schedule="cosine",
        final_share=0.3,
        warmup_steps=1000,
    )
    return TokenizerTraining(
        tokenizer=replace(
            VQ16,
            backbone=replace(VQ16.backbone, dropout=0.05),
            quantizer=replace(VQ16.quantizer, stage=stage, view=view),
        ),
        loop=LoopConfig(steps=steps, batch_size=768, ema_decay=0.9999, checkpoint_every=5000, workers=8),
        data=ImageDataConfig(source=".", crop_scale=(1.125, 1.125)),
        loss=TokenizerLossConfig(
            l1=0.2,
            l2=1.0,
            perceptual=1.0,
            perceptual_network="lpips-vgg",
            commitment=0.25,
            codebook=1.0,
            adversarial=0.4,
            adversarial_start=begin,
            discriminator=FrozenFeaturesConfig(),
        ),
        optimizer=optimizer,
        discriminator_optimizer=replace(optimizer, weight_decay=0.0005, start=begin, warmup_steps=round(0.02 * steps)),
    )


def generator(depth: int, epochs: int, base_lr: float = 1e-4, gate_init: float = 1e-3) -> GeneratorTraining:
    """At batch 768, lr `base_lr` per 256 images; decay 0.05, labels dropped with 0.1, no flips."""
    batch, steps = 768, epochs * IMAGENET // 768
    return GeneratorTraining(
        model=NextScaleSizes(
            width=64 * depth, depth=depth, num_heads=depth, drop_path=0.1 * depth / 24, gate_init=gate_init
        ),
        loop=LoopConfig(steps=steps, batch_size=batch, ema_decay=0.0, checkpoint_every=5000, workers=4),
        data=TokenDataConfig(source=".", flip=False, shifts=4, max_shift=16),
        optimizer=OptimizerConfig(
            lr=base_lr * batch / 256,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            max_grad_norm=2.0,
            schedule="cosine",
            final_share=0.1,
            warmup_steps=steps // 50,
        ),
    )


def d16() -> GeneratorTraining:
    return generator(16, 200)


def d20() -> GeneratorTraining:
    return generator(20, 250)


def d24() -> GeneratorTraining:
    return generator(24, 350, base_lr=8e-5, gate_init=1e-4)


TOKENIZERS = {"var-vq-f16": tokenizer}
GENERATORS = {"var-d16": d16, "var-d20": d20, "var-d24": d24}
