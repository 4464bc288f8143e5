"""Two vision transformers with queries: an image becomes as many latents as wanted, in a sequence or on a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.backbones.cnn import CNNConfig, Decoder
from imgtok.backbones.vit import PatchTokens, ViT, ViTConfig, table
from imgtok.nn.block import ViTBlock
from imgtok.nn.mask import first_columns
from imgtok.nn.mlp import init_normal
from imgtok.nn.nested import NestedDropout
from imgtok.nn.position import resize_table
from imgtok.quantizers.views import stretched


@dataclass(frozen=True, kw_only=True)
class PixelHeadConfig:
    """Each patch's pixels by a linear layer."""

    kernel: int = 1
    """Side, odd, of a last convolution over the whole picture; 1: none."""

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {self.kernel}")

    def build(self, width: int, patch_size: int) -> PixelHead:
        return PixelHead(width, patch_size, self.kernel)


@dataclass(frozen=True, kw_only=True)
class CodeHeadConfig:
    """Each patch's code of another tokenizer, whose decoder makes the pixels (TiTok, arXiv:2406.07550)."""

    codebook_size: int
    """Of the other tokenizer."""
    cnn: CNNConfig
    """The other tokenizer's backbone, of which the decoder is used; its codes are as long as its latents."""

    def build(self, width: int, patch_size: int) -> CodeHead:
        if self.cnn.reduction != patch_size:
            raise ValueError(
                f"the patches have {patch_size} pixels a side, but the other tokenizer's codes {self.cnn.reduction}; "
                "they must be the same"
            )
        return CodeHead(width, self)


@dataclass(frozen=True, kw_only=True)
class CNNHeadConfig:
    """Each patch's pixels, and its neighbours' part in them, by the decoder of a CNN: no seams between patches."""

    cnn: CNNConfig
    """Of which the decoder is used; its latents are made of the patches, one of each."""

    def build(self, width: int, patch_size: int) -> CNNHead:
        if self.cnn.reduction != patch_size:
            raise ValueError(f"the patches have {patch_size} pixels a side, but the CNN's latents {self.cnn.reduction}")
        return CNNHead(width, self)


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    latents: tuple[int, ...] = (32,)
    """Number of latents of an image, (n,), whatever its size; or rows and columns of a grid of them, (h, w), for
    images of the trained size, in proportion for others."""
    branches: int = 1
    """Queries for each latent; what they find is joined along the channels."""
    patch_size: int = 16
    """Pixels a side."""
    grid: tuple[int, int] = (16, 16)
    """Rows and columns of patches in the images it was trained on. For others, learned positions are resized."""
    encoder: ViTConfig = field(default_factory=ViTConfig)
    decoder: ViTConfig = field(default_factory=ViTConfig)
    head: PixelHeadConfig | CNNHeadConfig | CodeHeadConfig = field(default_factory=PixelHeadConfig)
    """What makes pixels of the decoder's patches."""
    scrambled: bool = False
    """Read the encoder's n latents of c channels as c rows of n in memory, so that each mixes them all: how TiTok's
    two-stage weights were trained, by mistake."""
    code_class: bool = False
    """A class token before the codes too, as in RobustTok's decoder."""
    nested: NestedDropout | None = None
    """In training, the decoder reads only the first latents, of a random number (One-D-Piece, arXiv:2501.10064), so
    that any number will do and the first matter most. None: it always reads all."""
    matched: bool = False
    """Training from scratch begins with each query looking at one patch, and each patch of the decoder at one code, in
    order: otherwise it takes long until attention has found out what belongs together."""

    def __post_init__(self) -> None:
        if len(self.latents) not in (1, 2) or min(self.latents) < 1:
            raise ValueError(f"latents must be (number,) or (rows, columns), each at least 1, got {self.latents}")
        if self.branches < 1:
            raise ValueError(f"branches must be at least 1, got {self.branches}")
        if len(self.latents) == 2 and (self.scrambled or self.nested or self.matched):
            raise ValueError(
                f"scrambled, nested and matched are for latents in a sequence, not for a grid {self.latents}"
            )
        if self.nested:
            self.nested.lengths(self.latents[0])  # which refuses too few

    @property
    def reduction(self) -> int:
        """What the sides of images must be divisible by."""
        return self.patch_size

    @property
    def ordered(self) -> bool:
        """Whether any number of the first latents can be decoded."""
        return self.nested is not None

    @property
    def encoder_channels(self) -> int:
        """Of the latents that the encoder makes."""
        return self.branches * self.encoder.width

    @property
    def decoder_channels(self) -> int:
        """Of the latents that the decoder reads."""
        return self.decoder.width

    def patches_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of height x width pixels; ValueError if it cannot be cut so."""
        size = self.patch_size
        if height % size or width % size:
            raise ValueError(
                f"an image of {width} x {height} pixels cannot be cut into patches of {size} pixels; "
                f"crop or resize both sides to multiples of {size}"
            )
        return (height // size, width // size)

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of the latents of an image of height x width pixels."""
        if len(self.latents) == 1:
            return self.latents
        sides = (height // self.patch_size, width // self.patch_size)
        return tuple(stretched(*each) for each in zip(self.latents, sides, self.grid, strict=True))

    def patch_shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Rows and columns of patches of the image that these are the latents of, as far as they tell."""
        if len(self.latents) == 1:
            return self.grid
        return tuple(stretched(*each) for each in zip(self.grid, latent_shape, self.latents, strict=True))

    def build(self) -> Query:
        return Query(self)


class Query(nn.Module):
    """Encoder and decoder (TiTok, arXiv:2406.07550; on a grid ImageFolder, arXiv:2410.01756, and RobustTok).

    Images b 3 h w of any size; latents b n c, or b h' w' c on a grid. Unlike published code, every token has one
    learned vector that holds all constants added to it (its position, its level, a mask token): they are the same sums.
    """

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = QueryEncoder(config)
        self.decoder = QueryDecoder(config)
        if config.matched:
            match(self.encoder.patches.positions, self.encoder.queries, self.encoder.vit)
            match(self.decoder.canvas, self.decoder.code_positions, self.decoder.vit)

    def encode(self, images: Tensor) -> Tensor:
        self.config.patches_of(images.shape[-2], images.shape[-1])  # which refuses what cannot be cut
        return self.encoder(images)

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`size`: height and width of the image; None: the trained one, or on a grid what the latents tell.

        Of latents in a sequence, the first alone will do, if trained for it (`nested`).
        """
        return self.decoder(latents, self.patches(latents, size))

    def code_logits(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Of another tokenizer's codes, b h w v. ValueError if the head makes pixels without them."""
        head = self.decoder.head
        if not isinstance(head, CodeHead):
            raise ValueError(f"only a head of codes has logits of them, but this one is a {type(head).__name__}")
        return head.logits(self.decoder.patch_features(latents, self.patches(latents, size)))

    def patches(self, latents: Tensor, size: tuple[int, int] | None) -> tuple[int, ...]:
        """Rows and columns of patches of the image to decode."""
        told = self.config.patch_shape(tuple(latents.shape[1:-1]))
        return told if size is None else self.config.patches_of(*size)

    def hidden_weights(self) -> list[nn.Parameter]:
        """Matrices from hidden layer to hidden layer, for optimisers that treat them apart."""
        return (
            self.encoder.vit.hidden_weights() + self.decoder.vit.hidden_weights() + self.decoder.head.hidden_weights()
        )

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight against which adversarial and reconstruction gradients are balanced (arXiv:2012.09841 eq. 7)."""
        return self.decoder.head.last_layer


class QueryEncoder(nn.Module):
    """Class token, patches and queries attend to each other; the queries stay: b 3 h w -> b n c or b h' w' c."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = PatchTokens(config.encoder.width, config.patch_size, config.grid)
        self.queries = table(config.branches, *config.latents, config.encoder.width)
        self.vit = config.encoder.build()
        self.vit.apply(init_normal)

    def forward(self, images: Tensor) -> Tensor:
        shape = self.config.latent_shape(images.shape[-2], images.shape[-1])
        tokens = self.patches(images)
        queries = torch.cat([resized(branch, shape) for branch in self.queries])
        x = self.vit(torch.cat([tokens, queries.expand(len(images), -1, -1)], dim=1))
        found = rearrange(x[:, tokens.shape[1] :], "b (p n) c -> b n (p c)", p=self.config.branches)
        if self.config.scrambled:
            found = found.reshape(len(images), -1, found.shape[1]).transpose(1, 2)
        return found.unflatten(1, shape)


class QueryDecoder(nn.Module):
    """Class token, one token per patch and the codes attend to each other; the patches become pixels."""

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.nested = config.nested
        self.class_token = table(width)
        self.canvas = table(*config.grid, width)
        self.code_class = table(width) if config.code_class else None
        self.code_positions = table(*config.latents, width)
        self.vit = config.decoder.build()
        self.head = config.head.build(width, config.patch_size)
        self.vit.apply(init_normal)

    def forward(self, latents: Tensor, patches: tuple[int, ...]) -> Tensor:
        """b n c or b h' w' c, and rows and columns of patches -> b 3 h w."""
        return self.head(self.patch_features(latents, patches))

    def patch_features(self, latents: Tensor, patches: tuple[int, ...]) -> Tensor:
        """What the head makes pixels of: b h w c."""
        kept = self.nested.draw(*latents.shape[:2]) if self.training and self.nested else None
        return self.prefix_features(latents, patches, kept)

    def prefix_features(self, latents: Tensor, patches: tuple[int, ...], kept: Tensor | None) -> Tensor:
        """The same from the first `kept` latents of each row (b, on the CPU) alone; None: from all."""
        if kept is not None:
            latents = latents[:, : int(kept.max())]
        positions = resized(self.code_positions, tuple(latents.shape[1:-1]))
        codes = latents.flatten(1, -2) + positions
        constants = [self.class_token[None], resized(self.canvas, patches)]
        if self.code_class is not None:
            constants.append(self.code_class[None])
        x = torch.cat([*(each.expand(len(codes), -1, -1) for each in constants), codes], dim=1)
        count = patches[0] * patches[1]
        return self.vit(x, self.mask(kept, x, codes.shape[1]))[:, 1 : 1 + count].unflatten(1, patches)

    @staticmethod
    def mask(kept: Tensor | None, x: Tensor, codes: int) -> Tensor | None:
        """Hides the codes, last of the tokens x, after the first `kept` of each row; None if no row has such."""
        if kept is None or int(kept.min()) == codes:
            return None
        lengths = kept.to(x.device, non_blocking=True) + (x.shape[1] - codes)
        return first_columns(lengths, x.shape[1])


class PixelHead(nn.Module):
    """b h w c -> b 3 H W; within a patch, values are in the order row, column, colour."""

    def __init__(self, width: int, patch_size: int, kernel: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.to_pixels = nn.Linear(width, 3 * patch_size**2)
        self.conv_out = nn.Conv2d(3, 3, kernel, padding=kernel // 2) if kernel > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        size = self.patch_size
        return self.conv_out(rearrange(self.to_pixels(x), "b h w (p q c) -> b c (h p) (w q)", p=size, q=size))

    def hidden_weights(self) -> list[nn.Parameter]:
        return []

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, (self.to_pixels if isinstance(self.conv_out, nn.Identity) else self.conv_out).weight)


class CNNHead(nn.Module):
    """b h w c -> b 3 H W."""

    def __init__(self, width: int, config: CNNHeadConfig) -> None:
        super().__init__()
        self.to_latents = nn.Linear(width, config.cnn.latent_channels)
        self.cnn = Decoder(config.cnn)

    def forward(self, x: Tensor) -> Tensor:
        return self.cnn(rearrange(self.to_latents(x), "b h w d -> b d h w"))

    def hidden_weights(self) -> list[nn.Parameter]:
        parts = (self.cnn.mid, self.cnn.levels)
        return [parameter for part in parts for parameter in part.parameters() if parameter.ndim >= 2]

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.cnn.conv_out.weight)


class CodeHead(nn.Module):
    """b h w c -> b 3 H W by way of the expected code of each patch. Training may compare `logits` with true codes."""

    def __init__(self, width: int, config: CodeHeadConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.to_logits = nn.Linear(2 * width, config.codebook_size)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.cnn.latent_channels))
        self.cnn = Decoder(config.cnn)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.logits(x).softmax(-1)
        return self.cnn(rearrange(shares @ self.codebook, "b h w d -> b d h w"))

    def logits(self, x: Tensor) -> Tensor:
        """b h w v, over the other tokenizer's codes."""
        return self.to_logits(F.tanh(self.hidden(x)))

    def hidden_weights(self) -> list[nn.Parameter]:
        return []

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(nn.Parameter, self.cnn.conv_out.weight)


@torch.no_grad()
def match(places: Tensor, others: Tensor, vit: ViT) -> None:
    """Gives each of `others`, ... n c, the vector of one of the `places`, h w c, in order; and lets `vit` begin with
    looking at tokens that are alike. Positions are as large as what they are added to.
    """
    nn.init.normal_(places, std=0.6)
    flat, count = places.flatten(0, 1), others.shape[-2]
    others.copy_(flat[torch.arange(count) * len(flat) // count])
    attention = cast(ViTBlock, vit.blocks[0]).attention
    q, k, v = attention.qkv.weight.chunk(3)
    nn.init.orthogonal_(q, gain=1.4)  # sharp, but not blind for others
    k.copy_(q)
    for weight in (v, attention.proj.weight):
        nn.init.orthogonal_(weight)


def resized(vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Learned vectors of a sequence or grid for one of another shape, in a row: n' c. Of a sequence, the first ones."""
    if len(shape) == 2:
        return resize_table(vectors, shape).flatten(0, 1)
    if shape[0] > len(vectors):
        raise ValueError(f"{shape[0]} latents were given, but there are positions for {len(vectors)} at most")
    return vectors[: shape[0]]
