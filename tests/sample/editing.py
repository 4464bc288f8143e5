"""Pairs to edit with: a tokenizer of pixel patches, fitted to real pictures in a second, and generators for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.backbones.cnn import CNNConfig
from imgtok.data import load, to_float
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.generators.next_scale import NextScaleConfig, NextScaleGenerator
from imgtok.quantizers.residual import ResidualConfig, ResidualQuantizer
from imgtok.quantizers.vector import VectorConfig, VectorQuantizer
from imgtok.quantizers.views import ScalesConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig

CELL, SIDE, CODES = 8, 64, 128
SMALL = CNNConfig(  # unused but for its reduction
    encoder_widths=(8,),
    decoder_widths=(8,),
    encoder_blocks=(1,),
    decoder_blocks=(1,),
    encoder_patch=CELL,
    decoder_patch=CELL,
    latent_channels=8,
    norm_groups=4,
)
STAGE = VectorConfig(codebook_size=CODES, codebook_dim=3 * CELL * CELL, l2_norm=False)
LABELS = LabelConditionConfig(labels=(Label(size=7),))


class PatchTokenizer(Tokenizer):
    """Latents are the pixels of 8 x 8 cells, so a token shows its cell and nothing else."""

    def latents(self, images: Tensor) -> Tensor:
        return rearrange(images.float(), "b c (h y) (w x) -> b h w (c y x)", y=CELL, x=CELL)

    def decode_latents(
        self, latents: Tensor, size: tuple[int, int] | None = None, noise: Tensor | None = None
    ) -> Tensor:
        return rearrange(latents, "b h w (c y x) -> b c (h y) (w x)", y=CELL, x=CELL, c=3)


@dataclass(frozen=True)
class Pair:
    generator: Generator | NextScaleGenerator
    tokenizer: Tokenizer


def pictures(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Emoji b 3 64 64, spread over the whole split, and their labels b 1."""
    source = load("emoji64", split)
    chosen = torch.linspace(0, len(source) - 1, count).long()
    return to_float(torch.stack([source.image(i) for i in chosen.tolist()])), source.labels[chosen, :1]


def make_pair(by_stage: bool) -> Pair:
    """A fitted tokenizer and an untrained generator."""
    torch.manual_seed(0)
    quantizer = ResidualConfig(stage=STAGE, view=ScalesConfig(scales=(1, 2, 4, 8), blends=0), shared=False)
    config = TokenizerConfig(image_size=SIDE, backbone=SMALL, quantizer=quantizer if by_stage else STAGE)
    tokenizer = PatchTokenizer(config).eval()
    fit(tokenizer, pictures("train", 256)[0])
    if by_stage:
        generator = NextScaleConfig(
            layout=config.layout,
            codebook_size=CODES,
            codebook_dim=STAGE.codebook_dim,
            condition=LABELS,
            width=64,
            depth=2,
            num_heads=4,
        ).build()
    else:
        generator = GeneratorConfig(
            layout=config.layout,
            codebook_size=CODES,
            condition=LABELS,
            width=64,
            depth=2,
            num_heads=4,
            embedding_std=0.5,
            dropout=0.0,
        ).build()
    return Pair(generator.eval(), tokenizer)


@torch.no_grad()
def fit(tokenizer: Tokenizer, images: Tensor) -> None:
    """Codes by a few rounds of k-means, stage after stage."""
    latents, quantizer = tokenizer.latents(images), tokenizer.quantizer
    if isinstance(quantizer, VectorQuantizer):
        quantizer.embedding.weight.copy_(means(latents))
        return
    assert isinstance(quantizer, ResidualQuantizer)
    layout, total = tokenizer.layout_of(images), torch.zeros_like(latents)
    for stage in range(quantizer.num_stages):
        rest = quantizer.view.rest(latents, total, stage, layout)
        quantizer.quantizer_of(stage).embedding.weight.copy_(means(rest))
        total = quantizer.accumulate(total, quantizer.nearest_after(latents, total, stage, layout), stage, layout)


def means(latents: Tensor) -> Tensor:
    """CODES vectors that lie amid latents ... d."""
    points, dice = latents.flatten(0, -2), torch.Generator().manual_seed(0)
    codes = points[torch.randperm(len(points), generator=dice)[:CODES]].clone()
    for _ in range(4):
        nearest = torch.cdist(points, codes).argmin(-1)
        sums = torch.zeros_like(codes).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=CODES)[:, None]
        codes = torch.where(counts > 0, sums / counts.clamp_min(1), codes)
    return codes


@torch.no_grad()
def stir(generator: nn.Module) -> None:
    """Random weights that are strong enough for laws that depend on all there is to know."""
    dice = torch.Generator().manual_seed(1)
    for parameter in generator.parameters():
        scale = 0.5 if parameter.ndim == 1 else 1.5 / math.sqrt(parameter.shape[-1])
        parameter.copy_(scale * torch.randn(parameter.shape, generator=dice))


def train(pair: Pair, steps: int, batch: int = 8) -> None:
    """Teaches the generator the emoji, as far as a few seconds go."""
    generator, quantizer = pair.generator, pair.tokenizer.quantizer
    images, labels = pictures("train", 2048)
    tokens, dice = pair.tokenizer.encode(images), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(tokens), (batch,), generator=dice)
        read = tokens[rows]
        if isinstance(quantizer, ResidualQuantizer):
            with torch.no_grad():
                read = quantizer.inputs(tokens[rows], generator.config.layout)  # type: ignore[arg-type]
        logits = generator(read, labels[rows])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    generator.eval()


def seam(images: Tensor, mask: Tensor) -> float:
    """Mean step between neighbouring pixels of which one is in mask b h w."""
    total, count = 0.0, 0
    for axis in (-1, -2):
        length = mask.shape[axis] - 1
        steps = (images.narrow(axis, 0, length) - images.narrow(axis, 1, length)).abs().mean(1)
        crossing = mask.narrow(axis, 0, length) != mask.narrow(axis, 1, length)
        total, count = total + float((steps * crossing).sum()), count + int(crossing.sum())
    return total / count
