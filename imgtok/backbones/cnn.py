"""The VQGAN-line convolutional autoencoder: image <-> grid of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.nn.resnet import Downsample, Resample, ResBlock, SpatialAttention, Upsample, group_norm


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
    latent_channels: int = 256
    """Channels between the halves and the 1x1 projections to and from the codes."""
    resample: Resample = "conv"
    """How the resolution changes: "conv" as in VQGAN, "shuffle" cheaper on a CPU."""
    norm_groups: int = 32
    """Groups of every GroupNorm."""
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
    def reduction(self) -> int:
        """Pixels per token along each side."""
        return self.encoder_patch * 2 ** (len(self.encoder_widths) - 1)

    def build(self) -> CNN:
        return CNN(self)


class CNN(nn.Module):
    """Encoder and decoder. Images b 3 h w in about [-1, 1]; latents channel-last b h' w' latent_channels."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.config.reduction or width % self.config.reduction:
            raise ValueError(
                f"an image of {width} x {height} pixels cannot be cut into tokens of {self.config.reduction} pixels; "
                f"crop or resize both sides to multiples of {self.config.reduction}"
            )
        return rearrange(self.encoder(images), "b c h w -> b h w c")

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(rearrange(latents, "b h w c -> b c h w"))

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
        self.patch = config.encoder_patch
        widths, last = config.encoder_widths, len(config.encoder_widths) - 1
        channels = config.stem_width or widths[0]
        self.conv_in = nn.Conv2d(3 * self.patch**2, channels, 3, padding=1)
        levels = []
        for i, (width, blocks) in enumerate(zip(widths, config.encoder_blocks, strict=True)):
            body = stack(config, channels, width, blocks, attention=config.bottleneck and i == last)
            channels = width if i == last or config.resample == "conv" else widths[i + 1]
            levels.append(Level(body, None if i == last else Downsample(width, channels, config.resample)))
        self.levels = nn.Sequential(*levels)
        self.mid = bottleneck(config, channels)
        self.norm_out = group_norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images)
        x = self.mid(self.levels(x))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """`levels` are in order of execution: from the lowest resolution to the highest."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.patch = config.decoder_patch
        widths, last = config.decoder_widths[::-1], len(config.decoder_widths) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = bottleneck(config, widths[0])
        levels, channels = [], widths[0]
        for i, (width, blocks) in enumerate(zip(widths, config.decoder_blocks[::-1], strict=True)):
            body = stack(config, channels, width, blocks, attention=config.bottleneck and i == 0)
            channels = width if i == last or config.resample == "conv" else widths[i + 1]
            levels.append(Level(body, None if i == last else Upsample(width, channels, config.resample)))
        self.levels = nn.Sequential(*levels)
        self.norm_out = group_norm(channels, config.norm_groups)
        self.conv_out = nn.Conv2d(channels, 3 * self.patch**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.levels(self.mid(self.conv_in(latents)))
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch) if self.patch > 1 else x


def stack(config: CNNConfig, channels: int, width: int, blocks: int, attention: bool) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for i in range(blocks):
        parts.append(ResBlock(channels if i == 0 else width, width, config.norm_groups, config.dropout))
        if attention:
            parts.append(SpatialAttention(width, config.norm_groups))
    return parts


def bottleneck(config: CNNConfig, width: int) -> nn.Module:
    if not config.bottleneck:
        return nn.Identity()
    return nn.Sequential(
        ResBlock(width, width, config.norm_groups, config.dropout),
        SpatialAttention(width, config.norm_groups),
        ResBlock(width, width, config.norm_groups, config.dropout),
    )
