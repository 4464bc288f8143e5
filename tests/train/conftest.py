import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of 24 pictures of two classes: discs and stripes of random colours, 16 x 16."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    for i in range(24):
        kind = ("discs", "stripes")[i % 2]
        shape = (x - 8) ** 2 + (y - 8) ** 2 < draw.integers(9, 50) if i % 2 == 0 else (x // 4) % 2 == 0
        image = np.where(shape[..., None], draw.integers(0, 255, 3), 255).astype(np.uint8)
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / kind / f"{i:02d}.png")
    return root


@pytest.fixture
def tokenizer_training(pictures):
    """A tokenizer of a few thousand parameters: 16 x 16 pixels to 4 x 4 tokens."""
    backbone = CNNConfig(
        encoder_widths=(8, 16),
        decoder_widths=(8, 16),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        encoder_patch=2,
        decoder_patch=2,
        latent_channels=8,
        bottleneck=False,
        norm_groups=4,
        dropout=0.1,
    )
    quantizer = VectorConfig(codebook_size=32, codebook_dim=4, learning="ema")
    return TokenizerTraining(
        tokenizer=TokenizerConfig(image_size=16, backbone=backbone, quantizer=quantizer),
        loop=LoopConfig(steps=8, batch_size=4, precision="no", log_every=2, evaluate_every=4, checkpoint_every=4),
        data=ImageDataConfig(source=str(pictures), shift=1),
        loss=TokenizerLossConfig(l1=1.0, l2=1.0, codebook=0.0),
        optimizer=OptimizerConfig(lr=3e-3, muon_lr=0.02),
    )


@pytest.fixture
def generator_training(pictures):
    return GeneratorTraining(
        model=TransformerSizes(width=16, depth=2, num_heads=2, mlp_hidden=32, dropout=0.1),
        loop=LoopConfig(steps=8, batch_size=4, precision="no", log_every=2, evaluate_every=4, checkpoint_every=4),
        data=TokenDataConfig(source=str(pictures), shifts=1, max_shift=2),
        optimizer=OptimizerConfig(lr=3e-3, schedule="cosine", warmup_steps=2),
    )


@pytest.fixture
def compiled(monkeypatch) -> list[int]:
    """How often each network that a run compiles is called, in their order; nothing is really compiled."""
    calls: list[int] = []

    def counted(function, **options):
        calls.append(0)
        place = len(calls) - 1

        def call(*values, **named):
            calls[place] += 1
            return function(*values, **named)

        return call

    monkeypatch.setattr(torch, "compile", counted)
    return calls
