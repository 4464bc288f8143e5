"""Small models for emoji64 that learn in minutes on two CPU cores; and for any folder of pictures of 64 x 64 pixels."""

from __future__ import annotations

from imgtok.backbones.cnn import CNNConfig
from imgtok.quantizers.vector import VectorConfig
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

# 64 x 64 pixels to 8 x 8 tokens. No convolution at full resolution: 4 x 4 patches in, 2 x 2 patches out. The encoder is
# local, as what a token says of distant parts of the picture is hard to predict (docs/training.md).
TOKENIZER = TokenizerConfig(
    image_size=64,
    backbone=CNNConfig(
        encoder_widths=(64, 128),
        encoder_blocks=(2, 1),
        encoder_patch=4,
        decoder_widths=(32, 64, 128),
        decoder_blocks=(1, 2, 2),
        decoder_patch=2,
        latent_channels=32,
        bottleneck=False,
        resample="shuffle",
        norm_groups=8,
        encoder_norm_groups=0,
        encoder_kernel=1,
    ),
    quantizer=VectorConfig(codebook_size=512, codebook_dim=8, learning="ema", ema_decay=0.99),
)


def tokenizer() -> TokenizerTraining:
    return TokenizerTraining(
        tokenizer=TOKENIZER,
        loop=LoopConfig(steps=1500, batch_size=16, ema_decay=0.99, evaluate_every=500, checkpoint_every=500),
        data=ImageDataConfig(source="emoji64", flip=True),
        loss=TokenizerLossConfig(l1=1.0, l2=1.0, commitment=0.25, codebook=0.0),
        optimizer=OptimizerConfig(
            lr=2e-3,
            muon_lr=0.02,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            max_grad_norm=1.0,
            schedule="cosine",
            warmup_steps=50,
        ),
    )


def generator() -> GeneratorTraining:
    return GeneratorTraining(
        model=TransformerSizes(
            width=256,
            depth=4,
            num_heads=4,
            mlp_hidden=688,
            embedding_std=0.15,
            dropout=0.1,
            drop_labels={"subcategory": 0.2, "style": 0.1},
        ),
        loop=LoopConfig(steps=2600, batch_size=16, ema_decay=0.995, evaluate_every=500, checkpoint_every=500),
        data=TokenDataConfig(source="emoji64", flip=True, shifts=2, max_shift=2),
        optimizer=OptimizerConfig(
            lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, max_grad_norm=1.0, schedule="cosine", warmup_steps=50
        ),
    )


TOKENIZERS = {"quickstart": tokenizer}
GENERATORS = {"quickstart": generator}
