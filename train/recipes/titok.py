"""TiTok's generators (arXiv:2406.07550), from its published configurations."""

from __future__ import annotations

from imgtok.train.config import LoopConfig, OptimizerConfig, TokenDataConfig
from imgtok.train.generator_config import GeneratorTraining, MaskedSizes


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


GENERATORS = {"titok-maskgit-vit": vit, "titok-maskgit-uvit": uvit}
