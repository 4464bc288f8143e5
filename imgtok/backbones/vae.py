"""Images to maps of numbers and back: frozen autoencoders, by diffusers' AutoencoderKL, or what needs no training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """An autoencoder of the Stable Diffusion line (arXiv:2112.10752)."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    """Channels of each level; the resolution halves between levels."""
    blocks: int = 2
    """Residual blocks of each level of the encoder; the decoder has one more."""
    latent_channels: int = 16
    norm_groups: int = 32
    attention: bool = True
    """In the lowest level."""
    latent_convs: bool = True
    """1 x 1 convolutions of the latents, after the encoder and before the decoder."""
    scale: float = 1.0
    """What latents are multiplied by, after the shift, so that their variance is about 1."""
    shift: float = 0.0
    """What is taken from latents first."""

    @classmethod
    def from_diffusers(cls, published: Mapping[str, Any]) -> KLConfig:
        """Of the config.json of any AutoencoderKL; ValueError for one with other parts."""
        if set(published.get("down_block_types", ())) - {"DownEncoderBlock2D"} or published.get("act_fn") not in (
            None,
            "silu",
        ):
            raise ValueError(
                f"the autoencoder has the blocks {published.get('down_block_types')} and the activation "
                f"{published.get('act_fn')!r}; only DownEncoderBlock2D and 'silu' are known here"
            )
        return cls(
            widths=tuple(published["block_out_channels"]),
            blocks=published["layers_per_block"],
            latent_channels=published["latent_channels"],
            norm_groups=published.get("norm_num_groups", 32),
            attention=published.get("mid_block_add_attention", True),
            latent_convs=published.get("use_quant_conv", True),
            scale=published.get("scaling_factor", 0.18215),
            shift=published.get("shift_factor") or 0.0,
        )

    @property
    def reduction(self) -> int:
        """Pixels per place of the latents along each side."""
        return 2 ** (len(self.widths) - 1)

    def build(self) -> KL:
        return KL(self)


class KL(nn.Module):
    """Images b 3 h w in [-1, 1] -> the means of their latents, b c h' w', shifted and scaled; and back.

    Frozen: its parameters want no gradient. ImportError if diffusers is missing.
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.model = autoencoder(config).requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        moments: Any = self.model.encode(images).latent_dist
        return (moments.mean - self.config.shift) * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents / self.config.scale + self.config.shift).sample

    def read(self, source: str | Path) -> None:
        """Takes the weights of an autoencoder that diffusers saved: a folder, or a repository of the hub.

        ValueError if there is none, or one of other sizes or with another scale or shift.
        """
        published = published_autoencoder(source)
        found = KLConfig.from_diffusers(published.config)
        other = [name for name in KLConfig.__dataclass_fields__ if getattr(found, name) != getattr(self.config, name)]
        if other:
            told = "; ".join(f"{name} {getattr(found, name)}, not {getattr(self.config, name)}" for name in other)
            raise ValueError(f"the autoencoder {source} has {told}; set what the tokenizer's vae says to that")
        self.model.load_state_dict(published.state_dict())


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """Pixels in place of latents, a square of them in each place: nothing is learnt, and nothing lost."""

    side: int = 4
    """Pixels of the square's side."""
    scale: float = 1.0
    """What pixels in [-1, 1] are multiplied by, after the shift, so that their variance is about 1."""
    shift: float = 0.0
    """What is taken from pixels first."""

    def __post_init__(self) -> None:
        if self.side < 1 or self.scale <= 0:
            raise ValueError(f"side must be at least 1 and scale above 0, got {self.side} and {self.scale}")

    @property
    def reduction(self) -> int:
        """Pixels per place of the latents along each side."""
        return self.side

    @property
    def latent_channels(self) -> int:
        return 3 * self.side**2

    def build(self) -> Pixels:
        return Pixels(self)


class Pixels(nn.Module):
    """Images b 3 h w in [-1, 1] -> b c h' w', and back, exactly up to rounding. It has no parameters."""

    def __init__(self, config: PixelsConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle((images - self.config.shift) * self.config.scale, self.config.side)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, self.config.side) / self.config.scale + self.config.shift


@dataclass(frozen=True, kw_only=True)
class CosinesConfig:
    """The lowest spatial frequencies of each square of pixels, in place of latents: few numbers, and nothing is learnt.

    A flow needs this where `PixelsConfig` gives a patch as many numbers as the transformer is wide: their noise would
    not pass through it.
    """

    side: int = 8
    """Pixels of the square's side."""
    kept: int = 4
    """Frequencies along each axis, of a discrete cosine transform (DCT-II); what is above is lost."""
    shift: float = 0.0
    """What is taken from pixels in [-1, 1] first."""
    scale: float = 0.25
    """What the mean of a square, times its side, is multiplied by, so that its variance is about 1."""
    decay: float = 1.65
    """Frequency k, l is multiplied by (1 + k + l) to this power besides, as pictures have less of it."""

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= self.side or self.scale <= 0:
            raise ValueError(
                f"kept must be 1 to side and scale above 0, got {self.kept} of {self.side} and {self.scale}"
            )

    @property
    def reduction(self) -> int:
        """Pixels per place of the latents along each side."""
        return self.side

    @property
    def latent_channels(self) -> int:
        return 3 * self.kept**2

    def build(self) -> Cosines:
        return Cosines(self)


class Cosines(nn.Module):
    """Images b 3 h w in [-1, 1] -> b c h' w', and back without what is above the kept frequencies. No parameters."""

    def __init__(self, config: CosinesConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, images: Tensor) -> Tensor:
        side, waves = self.config.side, self.waves(images)
        squares = rearrange(images - self.config.shift, "b c (h p) (w q) -> b c h w p q", p=side, q=side)
        return rearrange(waves @ squares @ waves.T * self.gains(images), "b c h w k l -> b (c k l) h w")

    def decode(self, latents: Tensor) -> Tensor:
        kept, waves = self.config.kept, self.waves(latents)
        numbers = rearrange(latents, "b (c k l) h w -> b c h w k l", k=kept, l=kept) / self.gains(latents)
        return rearrange(waves.T @ numbers @ waves, "b c h w p q -> b c (h p) (w q)") + self.config.shift

    def waves(self, like: Tensor) -> Tensor:
        """k p, rows of unit length, of the type of `like`."""
        frequencies, places = self.frequencies(like), torch.arange(self.config.side, device=like.device) + 0.5
        return F.normalize((math.pi * frequencies * places / self.config.side).cos(), dim=1).to(like.dtype)

    def gains(self, like: Tensor) -> Tensor:
        """k l, of the type of `like`."""
        frequencies = self.frequencies(like)
        return (self.config.scale * (1.0 + frequencies + frequencies.T) ** self.config.decay).to(like.dtype)

    def frequencies(self, like: Tensor) -> Tensor:
        """k 1"""
        return torch.arange(self.config.kept, device=like.device)[:, None]


def published_autoencoder(source: str | Path) -> Any:
    """diffusers' AutoencoderKL as it was saved. ValueError if there is none."""
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(source, use_safetensors=True)
    except OSError as error:
        raise ValueError(
            f"{source} holds no autoencoder that could be read; give a folder that diffusers saved one to, with "
            f"safetensors weights, or a repository of the hub ({error})"
        ) from error


def autoencoder(config: KLConfig) -> Any:
    """diffusers' AutoencoderKL of these sizes."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError("continuous autoencoders need diffusers: pip install diffusers") from error
    levels = len(config.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.attention,
        use_quant_conv=config.latent_convs,
        use_post_quant_conv=config.latent_convs,
    )
