"""Tokenizer: backbone + quantizer + token layout. Images to indices and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imgtok.backbones.cnn import CNNConfig
from imgtok.nn.resnet import MapConv
from imgtok.quantizers.base import Quantized, Quantizer
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokens import TokenLayout

BackboneConfig = CNNConfig
QuantizerConfig = VectorConfig | ResidualConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    image_size: int
    """Side in pixels of the square images it was trained on; any size divisible by the backbone's reduction works."""
    backbone: BackboneConfig
    quantizer: QuantizerConfig
    code_kernel: int = 1
    """Side, odd, of the convolutions between the backbone's latents and the codes'."""

    def __post_init__(self) -> None:
        if self.code_kernel < 1 or self.code_kernel % 2 == 0:
            raise ValueError(f"code_kernel must be odd and at least 1, got {self.code_kernel}")
        if self.image_size % self.backbone.reduction:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by the backbone's reduction {self.backbone.reduction}"
            )

    @property
    def layout(self) -> TokenLayout:
        """Of a square image of `image_size`."""
        return self.layout_of(self.image_size, self.image_size)

    def layout_of(self, height: int, width: int) -> TokenLayout:
        """Of an image of height x width pixels."""
        return self.quantizer.layout_of(height // self.backbone.reduction, width // self.backbone.reduction)

    def build(self) -> Tokenizer:
        return Tokenizer(self)


class Reconstruction(NamedTuple):
    images: Tensor
    """b 3 h w, about [-1, 1], not clamped, float32."""
    latents: Tensor
    """Channel-last, before quantisation."""
    quantized: Quantized


class Tokenizer(nn.Module):
    """Images (b 3 h w, float, [-1, 1]) to indices (b n, int64) and back.

    Images go in in any float type and come out in float32, whatever the weights are in. On a CPU with bfloat16 units,
    `load(..., dtype=torch.bfloat16).to(memory_format=torch.channels_last)` is several times as fast as float32.
    `layout` says how n tokens lie over the image; it is only needed for images that are not square of `image_size`.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.quantizer: Quantizer = config.quantizer.build()
        channels, codebook_dim = config.backbone.latent_channels, config.quantizer.codebook_dim
        self.to_codes = projection(channels, codebook_dim, config.code_kernel)
        self.from_codes = projection(codebook_dim, channels, config.code_kernel)

    def forward(self, images: Tensor) -> Reconstruction:
        """The whole way, differentiable: for training. Losses are in `quantized.losses` in training mode."""
        latents = self.latents(images)
        quantized = self.quantizer(latents)
        return Reconstruction(self.decode_latents(quantized.latents), latents, quantized)

    def latents(self, images: Tensor) -> Tensor:
        """b 3 h w -> b h' w' d, before quantisation."""
        return self.to_codes(self.backbone.encode(images.to(self.to_codes.weight.dtype)))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Quantised latents b h' w' d -> b 3 h w, not clamped, float32."""
        return self.backbone.decode(self.from_codes(latents.to(self.from_codes.weight.dtype))).float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """b 3 h w in [-1, 1] -> b n indices. ValueError if a side is not divisible by the reduction."""
        return self.layout_of(images).flatten(self.quantizer.nearest(self.latents(images)))

    @torch.no_grad()
    def decode(self, indices: Tensor, layout: TokenLayout | None = None, stages: int | None = None) -> Tensor:
        """b n indices -> b 3 h w, clamped to [-1, 1].

        `stages`: from the first ones only, where there are several; the others' indices keep their places, with any
        values. ValueError for an index outside the codebook, a wrong n, or more stages than there are.
        """
        self.check_indices(indices)
        maps = (layout or self.config.layout).unflatten(indices)
        return self.decode_latents(self.quantizer.codes(maps, stages)).clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode, quantise, decode: b 3 h w -> b 3 h w, clamped to [-1, 1]."""
        return self.decode(self.encode(images), self.layout_of(images))

    def layout_of(self, images: Tensor) -> TokenLayout:
        return self.config.layout_of(images.shape[-2], images.shape[-1])

    def check_indices(self, indices: Tensor) -> None:
        size = self.quantizer.codebook_size
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= size):
            raise ValueError(
                f"indices run from {int(indices.min())} to {int(indices.max())} "
                f"but the codebook has codes 0 to {size - 1}; were they made by another tokenizer?"
            )


def projection(channels: int, out_channels: int, kernel: int) -> nn.Linear | MapConv:
    """b h w c -> b h w c'."""
    return nn.Linear(channels, out_channels) if kernel == 1 else MapConv(channels, out_channels, kernel)
