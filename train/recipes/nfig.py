"""NFIG (arXiv:2503.07076): VAR's recipes over frequency bands, and the quickstart's.

Losses, batch, epochs and learning rate are the paper's, the rest is VAR's. The encoder begins at random, not as DINOv2.
"""

from __future__ import annotations

from dataclasses import replace

from imgtok.presets.nfig import QUANTIZER
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import BandsConfig
from imgtok.train.config import TokenizerTraining
from imgtok.train.generator_config import GeneratorTraining
from imgtok.train.recipes import quickstart_var, var


def tokenizer() -> TokenizerTraining:
    """L2 + LPIPS + 0.5 hinge. Optimiser, steps, the discriminator and its start are those of VAR's recipe."""
    base = var.tokenizer()
    assert isinstance(QUANTIZER.stage, VectorConfig)
    quantizer = replace(QUANTIZER, stage=replace(QUANTIZER.stage, begin="latents"))
    return replace(
        base,
        tokenizer=replace(base.tokenizer, quantizer=quantizer),
        loss=replace(base.loss, l1=0.0, adversarial=0.5),
    )


def d16() -> GeneratorTraining:
    """The paper's rate of 8e-5 is taken as VAR's scripts count theirs: for 256 of the 768 images of a step."""
    return var.generator(16, 350, base_lr=8e-5)


def d20() -> GeneratorTraining:
    return var.generator(20, 350, base_lr=8e-5)


def quickstart() -> TokenizerTraining:
    """That of quickstart-var, its maps as bands."""
    return quickstart_var.tokenizer(BandsConfig(scales=quickstart_var.SCALES))


TOKENIZERS = {"quickstart-nfig": quickstart, "nfig-vq-f16": tokenizer}
GENERATORS = {"quickstart-nfig": quickstart_var.generator, "nfig-d16": d16, "nfig-d20": d20}
