"""FlexTok (arXiv:2502.13967) and a small sibling for emoji64.

What the published models are (sizes, registers, levels, times, lengths, null condition, alignment) is followed. How
they were optimised is in no released code: AdamW's values, batch and steps here are ours, as are crops and flips. The
paper's learning rates are those of muP; here one falls with the width of the decoder.
"""

from __future__ import annotations

from dataclasses import replace

from imgtok.backbones.flow import FlowConfig
from imgtok.backbones.trunk import TrunkConfig
from imgtok.backbones.vae import CosinesConfig
from imgtok.nn.flow import FlowSolver, FlowTimes
from imgtok.nn.nested import NestedDropout
from imgtok.presets.flextok import released
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.train.config import ImageDataConfig, LoopConfig, OptimizerConfig
from imgtok.train.flow import FlowEvaluation, FlowLossConfig, FlowTraining
from imgtok.train.generator_config import GeneratorTraining, TransformerSizes
from imgtok.train.recipes import quickstart

AUTOENCODER = "EPFL-VILAB/flextok_vae_c16"
KEPT = NestedDropout(law="uniform", per="image")


def published(encoder_depth: int, decoder_depth: int) -> FlowTraining:
    """Logit-normal times, 1 to 256 registers alike, a fifth null, DINOv2-L behind the decoder's second block."""
    return FlowTraining(
        tokenizer=released(encoder_depth, decoder_depth),
        loop=LoopConfig(steps=400_000, batch_size=2048, ema_decay=0.999, checkpoint_every=5000, workers=8),
        data=ImageDataConfig(source=".", crop_scale=(1.0, 1.25)),
        loss=FlowLossConfig(
            alignment=1.0, teacher="dinov2-l", alignment_block=1, times=FlowTimes(), kept=KEPT, null=0.2
        ),
        optimizer=OptimizerConfig(
            lr=4e-4 * 12 / decoder_depth,
            betas=(0.9, 0.99),
            weight_decay=0.02,
            schedule="cosine",
            final_share=0.01,
            warmup_steps=5000,
        ),
        autoencoder=AUTOENCODER,
        evaluation=FlowEvaluation(num_steps=20),
    )


def d12_d12() -> FlowTraining:
    return published(12, 12)


def d18_d18() -> FlowTraining:
    return published(18, 18)


def d18_d28() -> FlowTraining:
    return published(18, 28)


def quickstart_flow() -> FlowTraining:
    """64 x 64 pixels, without an autoencoder, as 1 to 32 tokens of 1000 codes.

    What the decoder draws are the lower frequencies of squares of 8 x 8 pixels: 48 numbers each, with which
    reconstruction is at best 29 dB, and whose noise passes a width of 128. Times are nearer to the noise than the
    paper's, since only there registers tell what patches do not.
    """
    trunk = TrunkConfig(width=128, depth=3, head_dim=32)
    backbone = FlowConfig(
        vae=CosinesConfig(side=8, kept=4, shift=0.585),
        registers=32,
        patch_size=1,
        grid=(8, 8),
        encoder=trunk,
        decoder=TrunkConfig(width=128, depth=4, head_dim=32),
        solver=FlowSolver(num_steps=8),
    )
    return FlowTraining(
        tokenizer=TokenizerConfig(image_size=64, backbone=backbone, quantizer=ScalarConfig(levels=(8, 5, 5, 5))),
        loop=LoopConfig(steps=3000, batch_size=16, ema_decay=0.995, evaluate_every=500, checkpoint_every=500),
        data=ImageDataConfig(source="emoji64", flip=True),
        loss=FlowLossConfig(times=FlowTimes(mean=1.0, stratified=True), kept=KEPT, null=0.1),
        optimizer=OptimizerConfig(lr=1e-3, muon_lr=0.02, weight_decay=0.01, schedule="cosine", warmup_steps=50),
        evaluation=FlowEvaluation(images=32),
    )


def quickstart_generator() -> GeneratorTraining:
    """Of any number of these tokens, which it is told."""
    base = quickstart.generator()
    assert isinstance(base.model, TransformerSizes)
    return replace(base, model=replace(base.model, prefix=KEPT, tell_length=True, drop_length=0.1))


FLOWS = {
    "flextok-d12-d12": d12_d12,
    "flextok-d18-d18": d18_d18,
    "flextok-d18-d28": d18_d28,
    "quickstart-flow": quickstart_flow,
}
GENERATORS = {"quickstart-flow": quickstart_generator}
