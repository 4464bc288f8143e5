"""The quickstart's next-scale twin: a multi-scale tokenizer and a generator that draws an image in five calls."""

from __future__ import annotations

from dataclasses import replace

from imgtok.quantizers.residual import ResidualConfig, ViewConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.train.config import TokenizerLossConfig, TokenizerTraining
from imgtok.train.generator_config import GeneratorTraining, MistakesConfig, NextScaleSizes
from imgtok.train.recipes import quickstart

SCALES = ScalesConfig(scales=(1, 2, 3, 5, 8), blends=3)


def tokenizer(view: ViewConfig = SCALES) -> TokenizerTraining:
    """The quickstart's, but for the quantizer: maps of 1, 4, 9, 25 and 64 tokens with one codebook."""
    base = quickstart.tokenizer()
    quantizer = ResidualConfig(
        stage=VectorConfig(codebook_size=512, codebook_dim=16, l2_norm=False, learning="ema", begin="latents"),
        view=view,
    )
    return replace(
        base,
        tokenizer=replace(base.tokenizer, quantizer=quantizer),
        loss=TokenizerLossConfig(l1=1.0, l2=1.0, commitment=0.25, codebook=0.0, blend=1.0),
    )


def generator() -> GeneratorTraining:
    base = quickstart.generator()
    model = NextScaleSizes(
        width=256,
        depth=4,
        num_heads=4,
        mlp_ratio=2.7,
        shared_modulation=True,
        dropout=0.1,
        gate_init=0.1,
        drop_labels={"subcategory": 0.2, "style": 0.1},
        mistakes=MistakesConfig(share=0.3, neighbours=32),
    )
    return replace(base, model=model)


TOKENIZERS = {"quickstart-var": tokenizer}
GENERATORS = {"quickstart-var": generator}
