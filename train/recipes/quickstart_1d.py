"""The quickstart's one-dimensional twin: pictures as sequences of 64 tokens, of which any first ones will do."""

from __future__ import annotations

from dataclasses import replace

from imgtok.backbones.cnn import CNNConfig
from imgtok.backbones.query import CNNHeadConfig, QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.train.config import PictureLossConfig, TokenizerLossConfig, TokenizerTraining
from imgtok.train.proxy import DecoderTraining, ProxyLossConfig, ProxyTraining
from imgtok.train.recipes import quickstart

# Only the decoder of this CNN is used: from the 8 x 8 patches to 16 x 16 and 32 x 32 places of 2 x 2 pixels each.
PIXELS = CNNConfig(
    encoder_widths=(64, 128),
    encoder_blocks=(1, 1),
    encoder_patch=4,
    decoder_widths=(32, 48, 64),
    decoder_blocks=(1, 1, 1),
    decoder_patch=2,
    latent_channels=64,
    bottleneck=False,
    resample="shuffle",
    norm_groups=8,
)
TOKENIZER = TokenizerConfig(
    image_size=64,
    backbone=QueryConfig(
        latents=(64,),
        patch_size=8,
        grid=(8, 8),
        encoder=ViTConfig(width=96, depth=2, num_heads=4, mlp_ratio=4.0),
        decoder=ViTConfig(width=96, depth=3, num_heads=4, mlp_ratio=4.0),
        head=CNNHeadConfig(cnn=PIXELS),
        nested=NestedDropout(law="powers", per="image", share=0.5),
        matched=True,
    ),
    quantizer=ScalarConfig(levels=(8, 8, 8)),  # a learned codebook is given up while attention learns where to look
)


def tokenizer() -> TokenizerTraining:
    """By mean errors alone, from pixels at once; half of the pictures of a batch are decoded from 1, 2, 4, … tokens."""
    base = quickstart.tokenizer()
    return replace(
        base,
        tokenizer=TOKENIZER,
        loop=replace(base.loop, steps=3500),
        loss=TokenizerLossConfig(l1=1.0, l2=1.0),
        optimizer=replace(base.optimizer, warmup_steps=20),
    )


def proxy() -> ProxyTraining:
    """The first of two stages: learns the codes of a trained quickstart tokenizer, --teacher."""
    base = tokenizer()
    return ProxyTraining(
        tokenizer=base.tokenizer,
        loop=replace(base.loop, steps=3000),
        data=base.data,
        loss=ProxyLossConfig(proxy=1.0),
        optimizer=base.optimizer,
    )


def decoder() -> DecoderTraining:
    """The second: goes on with the first, --start, from pixels."""
    base = tokenizer()
    return DecoderTraining(
        loop=replace(base.loop, steps=1000),
        data=base.data,
        loss=PictureLossConfig(l1=1.0, l2=1.0),
        optimizer=replace(base.optimizer, lr=5e-4, muon_lr=0.005),
    )


TOKENIZERS = {"quickstart-1d": tokenizer}
PROXIES = {"quickstart-1d-proxy": proxy}
DECODERS = {"quickstart-1d-decoder": decoder}
