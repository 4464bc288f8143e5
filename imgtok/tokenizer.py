"""Tokenizer: backbone + quantizer + token layout. Images to indices and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imgtok.backbones.cnn import CNNConfig
from imgtok.backbones.flow import Flow, FlowConfig
from imgtok.backbones.query import QueryConfig
from imgtok.nn.resnet import MapConv
from imgtok.quantizers.base import Quantized, Quantizer
from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.gaussian import GaussianConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.quantizers.sign import SignConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokens import SequenceLayout, TokenLayout

BackboneConfig = CNNConfig | QueryConfig | FlowConfig
QuantizerConfig = VectorConfig | ResidualConfig | ProductConfig | GaussianConfig | ScalarConfig | SignConfig


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    image_size: int
    """Side in pixels of the square images it was trained on; any size divisible by the backbone's reduction works."""
    backbone: BackboneConfig
    quantizer: QuantizerConfig
    code_kernel: int = 1
    """Side, odd, of the convolutions between the backbone's latents and the codes'."""
    pixel_range: tuple[float, float] = (-1.0, 1.0)
    """Black and white as the backbone knows them; images outside are [-1, 1] whatever it is."""

    def __post_init__(self) -> None:
        if self.code_kernel < 1 or self.code_kernel % 2 == 0:
            raise ValueError(f"code_kernel must be odd and at least 1, got {self.code_kernel}")
        if self.pixel_range[0] >= self.pixel_range[1]:
            raise ValueError(f"pixel_range must rise from black to white, got {self.pixel_range}")
        if self.image_size % self.backbone.reduction:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by the backbone's reduction {self.backbone.reduction}"
            )
        if len(self.layout.latent_shape) == 1 and self.code_kernel > 1:
            raise ValueError(f"code_kernel must be 1 for latents in a sequence, got {self.code_kernel}")

    @property
    def layout(self) -> TokenLayout:
        """Of a square image of `image_size`."""
        return self.layout_of(self.image_size, self.image_size)

    def layout_of(self, height: int, width: int) -> TokenLayout:
        """Of an image of height x width pixels."""
        return self.quantizer.layout_of(*self.backbone.latent_shape(height, width))

    def layout_of_first(self, count: int, size: tuple[int, int] | None = None) -> TokenLayout:
        """Of the first `count` tokens of an image of `size` if they can be decoded alone, otherwise of all."""
        layout = self.layout if size is None else self.layout_of(*size)
        return SequenceLayout(count) if self.backbone.ordered and 0 < count < layout.num_tokens else layout

    def check_prefix(self, count: int, layout: TokenLayout) -> None:
        """ValueError unless the first `count` of an image's tokens can be decoded alone."""
        if not self.backbone.ordered:
            raise ValueError(
                f"num_tokens {count} was given, but this tokenizer needs all {layout.num_tokens} tokens of an image; "
                "leave it out, or use one whose first tokens matter most (One-D-Piece, FlexTok)"
            )
        if not 1 <= count <= layout.num_tokens:
            raise ValueError(f"num_tokens must be 1 to {layout.num_tokens}, the tokens of an image, got {count}")

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
    `layout` says how n tokens lie over the latents and `size` how large an image is, height and width; for images that
    are not square of `image_size` either will do if latents lie on a grid like the image's, otherwise give the size.
    Where several codes stand side by side for a token (`ProductConfig`), indices are b n k; tokens without codes
    (`GaussianConfig`) are vectors b n d in their place.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = config.backbone.build()
        self.quantizer: Quantizer = config.quantizer.build()
        backbone, quantizer, kernel = config.backbone, config.quantizer, config.code_kernel
        self.to_codes = projection(backbone.encoder_channels, quantizer.latent_dim, kernel)
        self.from_codes = projection(quantizer.codebook_dim, backbone.decoder_channels, kernel)
        low, high = config.pixel_range
        self.pixel_scale, self.pixel_shift = (high - low) / 2, (high + low) / 2

    def forward(self, images: Tensor, quantize: Callable[[Tensor], Quantized] | None = None) -> Reconstruction:
        """The whole way, differentiable: for training. Losses are in `quantized.losses` in training mode.

        `quantize`: in place of the quantizer, as `imgtok.quantizers.perturb.perturbed` is, which swaps its codes.
        """
        latents = self.latents(images)
        quantized = self.quantizer(latents) if quantize is None else quantize(latents)
        decoded = self.decode_latents(quantized.latents, size_of(images))
        return Reconstruction(decoded, latents, quantized)

    def latents(self, images: Tensor) -> Tensor:
        """b 3 h w -> b h' w' d, or b n d in a sequence, before quantisation."""
        return self.to_codes(self.backbone.encode(self.pixels(images)))

    def pixels(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] in the backbone's range, and of its type."""
        return (images * self.pixel_scale + self.pixel_shift).to(self.to_codes.weight.dtype)

    def decode_latents(
        self, latents: Tensor, size: tuple[int, int] | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Quantised latents b h' w' d or b n d -> b 3 h w, not clamped, float32. `noise` as in `decode`."""
        latents = self.from_codes(latents.to(self.from_codes.weight.dtype))
        if noise is None:
            pixels = self.backbone.decode(latents, size)
        elif isinstance(self.backbone, Flow):
            pixels = self.backbone.decode(latents, size, noise)
        else:
            raise ValueError(f"noise was given, but {type(self.backbone).__name__} decodes without; leave it out")
        return (pixels.float() - self.pixel_shift) / self.pixel_scale

    @torch.no_grad()
    def encode(self, images: Tensor, num_tokens: int | None = None) -> Tensor:
        """b 3 h w in [-1, 1] -> b n indices, or the first `num_tokens` of them, in the order of importance.

        ValueError if a side is not divisible by the reduction, or if the first tokens alone cannot be decoded.
        """
        layout = self.layout_of(images)
        if num_tokens is not None:
            self.config.check_prefix(num_tokens, layout)
        return layout.flatten(self.quantizer.nearest(self.latents(images)))[:, :num_tokens]

    @torch.no_grad()
    def decode(
        self,
        indices: Tensor,
        layout: TokenLayout | None = None,
        stages: int | None = None,
        size: tuple[int, int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """b n indices -> b 3 h w, clamped to [-1, 1].

        `stages`: from the first ones only, where there are several; the others' indices keep their places, with any
        values. `noise`: what pictures are drawn from, b c h' w', where the backbone is a flow; None: the same for all,
        so that equal indices are equal pictures. Without a layout, fewer indices than an image has are its first ones,
        if these can be decoded alone (1-D tokens in order). ValueError for an index outside the codebook, a wrong n,
        more stages than there are, or noise for a backbone that draws nothing.
        """
        self.check_indices(indices)
        if layout is None:
            layout = self.config.layout_of_first(indices.shape[1], size)
        return self.decode_latents(self.quantizer.codes(layout.unflatten(indices), stages), size, noise).clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode, quantise, decode: b 3 h w -> b 3 h w, clamped to [-1, 1]."""
        return self.decode(self.encode(images), size=size_of(images))

    def layout_of(self, images: Tensor) -> TokenLayout:
        return self.config.layout_of(*size_of(images))

    def check_indices(self, indices: Tensor) -> None:
        size = self.quantizer.codebook_size
        if size and indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= size):
            raise ValueError(
                f"indices run from {int(indices.min())} to {int(indices.max())} "
                f"but the codebook has codes 0 to {size - 1}; were they made by another tokenizer?"
            )


def size_of(images: Tensor) -> tuple[int, int]:
    """Height and width."""
    return (images.shape[-2], images.shape[-1])


def projection(channels: int, out_channels: int, kernel: int) -> nn.Linear | MapConv:
    """b ... c -> b ... c', of a map if `kernel` is above 1."""
    return nn.Linear(channels, out_channels) if kernel == 1 else MapConv(channels, out_channels, kernel)
