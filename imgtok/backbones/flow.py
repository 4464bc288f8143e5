"""FlexTok's two transformers: images to ordered registers, and pictures drawn from any number of the first ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.backbones.trunk import NORM_EPS, SetBlock, TrunkConfig, zero_linear
from imgtok.backbones.vae import CosinesConfig, KLConfig, PixelsConfig
from imgtok.backbones.vit import table
from imgtok.nn.flow import FlowGuidance, FlowSolver, TimeEmbedding, noised, velocity_target
from imgtok.nn.mask import group_causal
from imgtok.nn.norm import layer_norm
from imgtok.nn.position import waves_2d

TIME_PERIOD, NOISE_SEED = 256.0, 0


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Frozen autoencoder, encoder to registers, and decoder by rectified flow (FlexTok, arXiv:2502.13967)."""

    vae: KLConfig | PixelsConfig | CosinesConfig = field(default_factory=KLConfig)
    """Whose latents are read and drawn."""
    registers: int = 256
    """Latents of an image, in order of importance; any number of the first ones can be decoded."""
    patch_size: int = 2
    """Side in places of the autoencoder's latents."""
    grid: tuple[int, int] = (16, 16)
    """Rows and columns of patches in the images it was trained on; other sizes work."""
    encoder: TrunkConfig = field(default_factory=TrunkConfig)
    decoder: TrunkConfig = field(default_factory=TrunkConfig)
    solver: FlowSolver = field(default_factory=FlowSolver)
    """How pictures are drawn; may be changed afterwards, on the backbone."""
    guidance: FlowGuidance = field(default_factory=FlowGuidance)
    """Likewise."""

    def __post_init__(self) -> None:
        if self.registers < 1 or self.patch_size < 1:
            raise ValueError(f"registers and patch_size must be at least 1, got {self.registers} and {self.patch_size}")

    @property
    def reduction(self) -> int:
        """What the sides of images must be divisible by."""
        return self.vae.reduction * self.patch_size

    @property
    def ordered(self) -> bool:
        """Whether any number of the first latents can be decoded."""
        return True

    @property
    def encoder_channels(self) -> int:
        """Of the latents that the encoder makes."""
        return self.encoder.width

    @property
    def decoder_channels(self) -> int:
        """Of the latents that the decoder reads."""
        return self.decoder.width

    @property
    def patch_channels(self) -> int:
        return self.vae.latent_channels * self.patch_size**2

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of the latents of an image, whatever its size."""
        return (self.registers,)

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the noise that an image of height x width pixels is drawn from."""
        if height % self.reduction or width % self.reduction:
            raise ValueError(
                f"an image of {width} x {height} pixels cannot be cut into patches of {self.reduction} pixels; "
                f"crop or resize both sides to multiples of {self.reduction}"
            )
        return (self.vae.latent_channels, height // self.vae.reduction, width // self.vae.reduction)

    def build(self) -> Flow:
        return Flow(self)


class Flow(nn.Module):
    """Images b 3 h w to latents b n c; and images drawn from latents b k c, k at most n, by following a flow.

    Pictures are drawn without gradients; training is by `loss`, of the velocity.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = config.vae.build()
        self.encoder = FlowEncoder(config)
        self.decoder = FlowDecoder(config)
        self.solver, self.guidance = config.solver, config.guidance

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(self.maps(images))

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """The autoencoder's latents of images b 3 h w: b c h' w'."""
        self.config.noise_shape(images.shape[-2], images.shape[-1])  # which refuses what cannot be cut
        return self.vae.encode(images)

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None, noise: Tensor | None = None) -> Tensor:
        """`size`: height and width of the image; None: the trained one. `noise`: b c h' w', standard normal; None: the
        same for all images, so that equal tokens are equal pictures.
        """
        rows, columns = self.config.grid
        height, width = size or (rows * self.config.reduction, columns * self.config.reduction)
        shape = self.config.noise_shape(height, width)
        if self.training and torch.is_grad_enabled():
            raise ValueError(
                "a flow is not trained by the pictures that are drawn with it, but by its velocity (`loss`)"
            )
        if noise is None:
            noise = fixed_noise(shape).to(latents.device).expand(len(latents), -1, -1, -1)
        if tuple(noise.shape) != (len(latents), *shape):
            raise ValueError(f"noise must be of shape {(len(latents), *shape)}, got {tuple(noise.shape)}")
        return self.vae.decode(self.draw(self.decoder.registers(latents), noise).to(latents.dtype))

    @torch.no_grad()
    def draw(self, registers: Registers, noise: Tensor) -> Tensor:
        """Autoencoder's latents b c h w from noise of that shape, in float32."""
        null, guide = self.decoder.null_registers(len(noise)), self.guidance.build()

        def velocity(x: Tensor, time: float) -> Tensor:
            times = x.new_full((len(x),), time)
            conditional = self.decoder(x, times, registers)
            if self.guidance.scale == 1:
                return conditional
            return guide(conditional, self.decoder(x, times, null))

        return self.solver.solve(velocity, noise.float())

    def loss(self, maps: Tensor, latents: Tensor, noise: Tensor, times: Tensor, kept: Tensor) -> Tensor:
        """Mean squared error of the velocity, a scalar, for the autoencoder's latents `maps` b c h w.

        latents b n c as the decoder reads them; noise like maps; times b in [0, 1]; kept b, how many registers each
        image is drawn from, 0: none, by the null condition (nested and condition dropout).
        """
        return self.watched_loss(maps, latents, noise, times, kept)[0]

    def watched_loss(
        self, maps: Tensor, latents: Tensor, noise: Tensor, times: Tensor, kept: Tensor, block: int = 0
    ) -> tuple[Tensor, Tensor]:
        """`loss`, and what patches are behind `block` of the decoder, b c h' w'."""
        registers = self.decoder.registers(latents, kept)
        velocity, patches = self.decoder.watched(noised(maps, noise, times), times, registers, block)
        return F.mse_loss(velocity, velocity_target(maps, noise)), patches

    def hidden_weights(self) -> list[nn.Parameter]:
        """Matrices from hidden layer to hidden layer, for optimisers that treat them apart."""
        halves = (self.encoder.blocks, self.decoder.blocks)
        return [weight for half in halves for name, weight in half.named_parameters() if "modulation" not in name]

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight next to the velocity."""
        return cast(nn.Parameter, self.decoder.to_patches.weight)


def fixed_noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED))


class FlowEncoder(nn.Module):
    """Autoencoder's latents b c h w -> registers b n c. Patches see patches; a register sees them and those before."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.project = nn.Linear(config.patch_channels, config.encoder.width)
        self.registers = table(config.registers, config.encoder.width)
        self.blocks = nn.ModuleList(config.encoder.block() for _ in range(config.encoder.depth))

    def forward(self, maps: Tensor) -> Tensor:
        patches = patch_tokens(maps, self.project, self.patch_size)
        count, registers = patches.shape[1], self.registers.expand(len(maps), -1, -1)
        mask = group_causal((count, *[1] * len(self.registers)), maps.device)
        x = torch.cat([patches, registers], dim=1)
        for block in self.blocks:
            x = block(x, mask)
        return layer_norm(x[:, count:], NORM_EPS)


class Registers(NamedTuple):
    """What a picture is drawn from. Equal registers have equal keys in every layer, so that one stands for many."""

    tokens: Tensor
    """b m c"""
    counts: list[int]
    """How many registers each stands for, m."""

    def attention_bias(self, patches: int, like: Tensor) -> Tensor | None:
        """1 1 1 (patches + m), added to the products with keys: the logarithms of the counts; None if all are 1.

        Of the type of `like`: bfloat16 rounds counts by up to a percent or two.
        """
        if set(self.counts) == {1}:
            return None
        bias = [0.0] * patches + [math.log(count) for count in self.counts]
        return like.new_tensor(bias)[None, None, None]


class FlowDecoder(nn.Module):
    """Velocity of noised latents of the autoencoder, b c h w, at times b, given registers: b c h w."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.patch_size = config.patch_size
        self.project = nn.Linear(config.patch_channels, width)
        self.positions = table(config.registers, width)
        self.dropped, self.null = table(width), table(width)
        self.time = TimeEmbedding(width, period=TIME_PERIOD)
        self.blocks = nn.ModuleList(config.decoder.set_block() for _ in range(config.decoder.depth))
        self.modulation = zero_linear(width, 2 * width)
        self.to_patches = zero_linear(width, config.patch_channels)

    def forward(self, x: Tensor, times: Tensor, registers: Registers) -> Tensor:
        return self.watched(x, times, registers)[0]

    def watched(self, x: Tensor, times: Tensor, registers: Registers, block: int = 0) -> tuple[Tensor, Tensor]:
        """The velocity, and what patches are behind `block`, b c h' w'."""
        x = x.to(self.project.weight.dtype)
        patches = patch_tokens(x, self.project, self.patch_size)
        sizes, bias = [patches.shape[1], len(registers.counts)], registers.attention_bias(patches.shape[1], patches)
        condition = F.silu(self.time(times))
        tokens = torch.cat([patches, registers.tokens], dim=1)
        seen = tokens
        for number, each in enumerate(self.blocks):
            tokens = each(tokens, cast(SetBlock, each).modulate(condition, sizes), bias)
            seen = tokens if number == block else seen
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        out = self.to_patches(layer_norm(tokens[:, : sizes[0]], NORM_EPS) * (1 + scale) + shift)
        side, rows = self.patch_size, x.shape[-2] // self.patch_size
        velocity = rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=side, q=side)
        return velocity, rearrange(seen[:, : sizes[0]], "b (h w) c -> b c h w", h=rows)

    def registers(self, latents: Tensor, kept: Tensor | None = None) -> Registers:
        """b k c: the first k. `kept`, b: of each image only so many (None: all), for 0 the null condition.

        The rest is dropped: one learned vector in the place of each, which stands in once for all after the k-th.
        """
        count, total = latents.shape[1], len(self.positions)
        if not 1 <= count <= total:
            raise ValueError(f"{count} latents were given, but there are registers for 1 to {total}")
        tokens, counts = latents + self.positions[:count], [1] * count
        if count < total:
            tokens = torch.cat([tokens, self.dropped.expand(len(tokens), 1, -1)], dim=1)
            counts.append(total - count)
        if kept is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device)
            tokens = torch.where((places < kept[:, None])[..., None], tokens, self.dropped)
            tokens = torch.where((kept == 0)[:, None, None], self.null, tokens)
        return Registers(tokens, counts)

    def null_registers(self, batch: int) -> Registers:
        """All registers are the null condition."""
        return Registers(self.null.expand(batch, 1, -1), [len(self.positions)])


def patch_tokens(maps: Tensor, project: nn.Linear, side: int) -> Tensor:
    """b c h w -> b n c', one for each patch in raster order, with its position."""
    patches = project(rearrange(maps, "b c (h p) (w q) -> b h w (p q c)", p=side, q=side))
    positions = waves_2d(patches.shape[1], patches.shape[2], patches.shape[3], patches.device)
    return (patches + positions.to(patches.dtype)).flatten(1, 2)
