"""The VQGAN-line convolutional autoencoder: image <-> grid of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.nn.resnet import Downsample, Resample, ResBlock, SpatialAttention, Upsample, map_norm, norm_silu

MOST_PIXELS = 2**16  # at a time on a CPU: a picture of 256 x 256


class Style(NamedTuple):
    """What the residual blocks of a half have in common."""

    groups: int
    dropout: float
    kernel: int

    def block(self, channels: int, width: int) -> ResBlock:
        return ResBlock(channels, width, self.groups, self.dropout, self.kernel)


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Widths and block counts are given from the highest resolution to the lowest, for encoder and decoder alike."""

    encoder_widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    """Channels of each encoder level; the resolution halves between levels."""
    decoder_widths: tuple[int, ...] = (128, 128, 256, 256, 512)
    """Channels of each decoder level."""
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2, 2)
    """Residual blocks of each encoder level."""
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3, 3)
    """Residual blocks of each decoder level."""
    encoder_patch: int = 1
    """Side of the pixel patches that the encoder folds into channels first (space-to-depth); 1: none."""
    decoder_patch: int = 1
    """Side of the pixel patches that the decoder unfolds last; 1: none."""
    stem_width: int | None = None
    """Channels of the encoder's first convolution; None: those of its first level."""
    bottleneck: bool = True
    """Attention in the lowest level, and residual block, attention, residual block between the halves."""
    attention: bool = True
    """Whether lowest level and bottleneck have their attention; without, they are residual blocks alone."""
    latent_channels: int = 256
    """Channels between the halves and the projections to and from the codes."""
    resample: Resample = "conv"
    """How the resolution changes: "conv" as in VQGAN, "shuffle" cheaper on a CPU, "mean" as in MaskGIT."""
    norm_groups: int = 32
    """Groups of every GroupNorm; 0: normalise each place by itself, over its channels."""
    encoder_norm_groups: int | None = None
    """Of the encoder alone, if other than `norm_groups`."""
    encoder_kernel: Literal[1, 3] = 3
    """Side of the convolutions in the encoder's residual blocks and of its last one. With 1 and `encoder_norm_groups`
    0, a token is about its own patch and its surroundings alone: easier to predict, for hardly worse pictures."""
    dropout: float = 0.0
    """Dropout inside residual blocks."""

    def __post_init__(self) -> None:
        for side in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{side}_widths"), getattr(self, f"{side}_blocks")
            if len(widths) != len(blocks) or not widths:
                raise ValueError(f"{side}_widths {widths} and {side}_blocks {blocks} must be of one length, at least 1")
        down = self.encoder_patch * 2 ** (len(self.encoder_widths) - 1)
        up = self.decoder_patch * 2 ** (len(self.decoder_widths) - 1)
        if down != up:
            raise ValueError(
                f"the encoder reduces by {down} but the decoder enlarges by {up}; change widths or patches"
            )

    @property
    def encoder_style(self) -> Style:
        groups = self.norm_groups if self.encoder_norm_groups is None else self.encoder_norm_groups
        return Style(groups, self.dropout, self.encoder_kernel)

    @property
    def decoder_style(self) -> Style:
        return Style(self.norm_groups, self.dropout, 3)

    @property
    def low_attention(self) -> bool:
        """Whether the lowest level has attention."""
        return self.bottleneck and self.attention

    @property
    def reduction(self) -> int:
        """Pixels per token along each side."""
        return self.encoder_patch * 2 ** (len(self.encoder_widths) - 1)

    @property
    def ordered(self) -> bool:
        """Whether any number of the first latents can be decoded: they lie on a grid."""
        return False

    @property
    def encoder_channels(self) -> int:
        """Of the latents that the encoder makes."""
        return self.latent_channels

    @property
    def decoder_channels(self) -> int:
        """Of the latents that the decoder reads."""
        return self.latent_channels

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Rows and columns of the latents of an image of height x width pixels."""
        return (height // self.reduction, width // self.reduction)

    def build(self) -> CNN:
        return CNN(self)


class CNN(nn.Module):
    """Encoder and decoder. Images b 3 h w in about [-1, 1]; latents channel-last b h' w' latent_channels."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.most_pixels = MOST_PIXELS

    def encode(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.config.reduction or width % self.config.reduction:
            raise ValueError(
                f"an image of {width} x {height} pixels cannot be cut into tokens of {self.config.reduction} pixels; "
                f"crop or resize both sides to multiples of {self.config.reduction}"
            )
        return rearrange(self.in_parts(self.encoder, images, height * width), "b c h w -> b h w c")

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`size`: height and width of the image; it must be that of the latents."""
        if size is not None and latents.shape[1:3] != self.config.latent_shape(*size):
            raise ValueError(
                f"latents of {latents.shape[1]} x {latents.shape[2]} places are not those of an image of "
                f"{size[0]} x {size[1]} pixels; leave size out"
            )
        pixels = latents.shape[1] * latents.shape[2] * self.config.reduction**2
        return self.in_parts(self.decoder, rearrange(latents, "b h w c -> b c h w"), pixels)

    def in_parts(self, half: nn.Module, rows: Tensor, pixels: int) -> Tensor:
        """Encoder or decoder of b c h w, whose images have so many pixels each.

        Without gradients on a CPU, no more images at a time than have `most_pixels`: maps of more leave its caches.
        """
        most = max(1, self.most_pixels // pixels)
        if torch.is_grad_enabled() or rows.device.type != "cpu" or len(rows) <= most:
            return half(rows)
        return torch.cat([half(part) for part in rows.split(most)])

    def hidden_weights(self) -> list[nn.Parameter]:
        """Convolutions from hidden layer to hidden layer, for optimisers that treat them apart."""
        parts = (self.encoder.levels, self.encoder.mid, self.decoder.mid, self.decoder.levels)
        return [parameter for part in parts for parameter in part.parameters() if parameter.ndim >= 2]

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight against which adversarial and reconstruction gradients are balanced (arXiv:2012.09841 eq. 7)."""
        return cast(nn.Parameter, self.decoder.conv_out.weight)


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if wanted, then the change of resolution."""

    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.resample = resample or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(self.blocks(x))


class Encoder(nn.Module):
    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.patch, style = config.encoder_patch, config.encoder_style
        widths, last = config.encoder_widths, len(config.encoder_widths) - 1
        channels = config.stem_width or widths[0]
        self.conv_in = nn.Conv2d(3 * self.patch**2, channels, 3, padding=1)
        levels = []
        for i, (width, blocks) in enumerate(zip(widths, config.encoder_blocks, strict=True)):
            body = stack(style, channels, width, blocks, attention=config.low_attention and i == last)
            channels = width if i == last or config.resample != "shuffle" else widths[i + 1]
            levels.append(Level(body, None if i == last else Downsample(width, channels, config.resample)))
        self.levels = nn.Sequential(*levels)
        self.mid = bottleneck(style, channels, config.attention) if config.bottleneck else nn.Identity()
        self.norm_out = map_norm(channels, style.groups)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, style.kernel, padding=style.kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images)
        x = self.mid(self.levels(x))
        return self.conv_out(norm_silu(self.norm_out, x))


class Decoder(nn.Module):
    """`levels` are in order of execution: from the lowest resolution to the highest."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.patch, style = config.decoder_patch, config.decoder_style
        widths, last = config.decoder_widths[::-1], len(config.decoder_widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = bottleneck(style, widths[0], config.attention) if config.bottleneck else nn.Identity()
        levels, channels = [], widths[0]
        for i, (width, blocks) in enumerate(zip(widths, config.decoder_blocks[::-1], strict=True)):
            body = stack(style, channels, width, blocks, attention=config.low_attention and i == 0)
            channels = width if i == last or config.resample != "shuffle" else widths[i + 1]
            levels.append(Level(body, None if i == last else Upsample(width, channels, config.resample)))
        self.levels = nn.Sequential(*levels)
        self.norm_out = map_norm(channels, style.groups)
        self.conv_out = nn.Conv2d(channels, 3 * self.patch**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.levels(self.mid(self.conv_in(latents)))
        x = self.conv_out(norm_silu(self.norm_out, x))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x


def stack(style: Style, channels: int, width: int, blocks: int, attention: bool) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for i in range(blocks):
        parts.append(style.block(channels if i == 0 else width, width))
        if attention:
            parts.append(SpatialAttention(width, style.groups))
    return parts


def bottleneck(style: Style, width: int, attention: bool) -> nn.Module:
    parts: list[nn.Module] = [style.block(width, width)]
    if attention:
        parts.append(SpatialAttention(width, style.groups))
    return nn.Sequential(*parts, style.block(width, width))
