"""The pairs that come with the package (`imgtok.zoo`): the quickstart's, smaller and trained for longer.

Tokenizers learn with swapped codes and are post-trained on what their generators draw (docs/zoo.md).
"""

from __future__ import annotations

from dataclasses import replace

from imgtok.backbones.cnn import CNNConfig
from imgtok.nn.nested import NestedDropout
from imgtok.train.config import PerturbConfig, TokenizerTraining
from imgtok.train.generator_config import GeneratorTraining, NextScaleSizes, TransformerSizes
from imgtok.train.recipes import quickstart, quickstart_1d, quickstart_var


def smaller(base: TokenizerTraining) -> TokenizerTraining:
    """0.8 million parameters, 2400 steps, a tenth of the pictures with swapped codes."""
    assert isinstance(base.tokenizer.backbone, CNNConfig)
    backbone = replace(base.tokenizer.backbone, decoder_widths=(32, 64, 96))
    return replace(
        base,
        tokenizer=replace(base.tokenizer, backbone=backbone),
        loop=replace(base.loop, steps=2400, evaluate_every=800, checkpoint_every=800),
        perturb=PerturbConfig(share=0.1),
    )


def gpt_tokenizer() -> TokenizerTraining:
    return smaller(quickstart.tokenizer())


def var_tokenizer() -> TokenizerTraining:
    return smaller(quickstart_var.tokenizer())


def gpt() -> GeneratorTraining:
    """2.1 million parameters, 29 epochs."""
    base = quickstart.generator()
    assert isinstance(base.model, TransformerSizes)
    return replace(
        base,
        model=replace(base.model, width=176, depth=5, mlp_hidden=480),
        loop=replace(base.loop, steps=6000, ema_decay=0.998, evaluate_every=1000, checkpoint_every=1000),
    )


def var() -> GeneratorTraining:
    """1.0 million parameters, 15 epochs."""
    base = quickstart_var.generator()
    assert isinstance(base.model, NextScaleSizes)
    return replace(
        base,
        model=replace(base.model, width=128, depth=5),
        loop=replace(base.loop, steps=3000, ema_decay=0.998, evaluate_every=1000, checkpoint_every=1000),
    )


def one_tokenizer() -> TokenizerTraining:
    """0.8 million parameters, 3500 steps; half of the pictures are decoded from 1, 2, 4, … tokens."""
    return replace(quickstart_1d.tokenizer(), perturb=PerturbConfig(share=0.1))


def one() -> GeneratorTraining:
    """0.5 million parameters, 12 epochs; half of the pictures are learned up to 1, 2, 4, … tokens, and it is told."""
    base = quickstart.generator()
    assert isinstance(base.model, TransformerSizes)
    prefix = NestedDropout(law="powers", per="image", share=0.5)
    return replace(
        base,
        model=replace(base.model, width=88, depth=4, mlp_hidden=240, prefix=prefix, tell_length=True),
        loop=replace(base.loop, steps=2500, ema_decay=0.998, evaluate_every=1250, checkpoint_every=1250),
    )


TOKENIZERS = {"emoji64-gpt": gpt_tokenizer, "emoji64-var": var_tokenizer, "emoji64-1d": one_tokenizer}
GENERATORS = {"emoji64-gpt": gpt, "emoji64-var": var, "emoji64-1d": one}
