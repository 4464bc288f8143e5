"""Post-training of a decoder on what a generator makes of its codes (RobusTok, arXiv:2509.12474, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from imgtok.backbones.flow import Flow
from imgtok.data import ImageSource
from imgtok.data.transforms import center_crop, to_float, to_uint8
from imgtok.metrics.image import psnr
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig
from imgtok.sample.law import Law
from imgtok.sample.masked import Unmasking
from imgtok.tokencache import TokenCache
from imgtok.tokenizer import Tokenizer
from imgtok.train.config import LoopConfig, OptimizerConfig, PictureLossConfig
from imgtok.train.data import ALONE, Share, batch_positions
from imgtok.train.tasks import Output, PictureAdversary, PictureLosses, pairs, spread, train_decoder_alone, used


@dataclass(frozen=True, kw_only=True)
class PictureDataConfig:
    source: str = "emoji64"
    """An embedded set (emoji64, photos) or a folder of images; with the labels that the generator is told."""
    val_share: float = 0.1
    """Share of a folder that is held out for validation."""
    pictures: int | None = None
    """Training pictures that tokens are made for, spread evenly over the data; None: all."""
    val_pictures: int = 1000
    """Validation pictures, at most."""

    def __post_init__(self) -> None:
        if (self.pictures is not None and self.pictures < 1) or self.val_pictures < 1:
            raise ValueError(
                f"pictures and val_pictures must be at least 1, got {self.pictures} and {self.val_pictures}"
            )


@dataclass(frozen=True, kw_only=True)
class PostTraining:
    loop: LoopConfig
    preservation: float = 0.7
    """Sigma: the probability that a token is the picture's own and not drawn. 1: reconstruction; 0: generation."""
    reencode: bool = True
    """Decode the tokens and encode what is seen, as published; otherwise learn from the tokens as they were drawn."""
    clean_share: float = 0.0
    """Share of a batch with the pictures' own tokens, so that reconstructions do not suffer."""
    guidance: Guidance = field(default_factory=Guidance)
    law: Law = field(default_factory=Law)
    unmasking: Unmasking = field(default_factory=Unmasking)
    """Of masked generators alone."""
    draw_batch: int = 64
    """Pictures drawn together; changes none of them."""
    patience: int = 0
    """Evaluations without gain after which the run stops; 0: it never does. The best one is saved in any case."""
    data: PictureDataConfig = field(default_factory=PictureDataConfig)
    loss: PictureLossConfig = field(default_factory=PictureLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.preservation <= 1:
            raise ValueError(
                f"preservation must be between 0 (all tokens drawn) and 1 (none), got {self.preservation}; "
                "0.7 to 0.95 were best in the paper"
            )
        if not 0 <= self.clean_share < 1:
            raise ValueError(f"clean_share must be at least 0 and below 1, got {self.clean_share}")
        if self.draw_batch < 1 or self.patience < 0:
            raise ValueError(
                f"draw_batch must be at least 1 and patience at least 0, got {self.draw_batch} and {self.patience}"
            )

    @property
    def sampler(self) -> SamplerConfig:
        return SamplerConfig(law=self.law, guidance=self.guidance, unmasking=self.unmasking, batch_size=self.draw_batch)


class PairBatch(NamedTuple):
    tokens: Tensor
    """b n"""
    images: Tensor
    """b 3 h w in [-1, 1], what they are to become."""


@dataclass(frozen=True)
class PairSet:
    """Pictures, their own tokens and mixed ones, row by row."""

    source: ImageSource
    """Of the rows alone, in their order."""
    own: TokenCache
    mixed: TokenCache
    image_size: int

    def images(self, rows: Tensor) -> Tensor:
        """As they were encoded: uint8 b 3 s s."""
        return cropped(self.source, rows, self.image_size)

    def parts(self, size: int = 32) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All rows in order: images as above, their own tokens b n, mixed tokens b n."""
        for rows in torch.arange(len(self.own)).split(size):
            yield self.images(rows), self.own.rows(rows)[0], self.mixed.rows(rows)[0]


class PairBatches(Dataset[PairBatch]):
    """Mixed tokens with their pictures, as they are; in the first rows of a batch the pictures' own tokens."""

    def __init__(self, pairs: PairSet, clean_share: float, loop: LoopConfig, share: Share = ALONE) -> None:
        share.of(loop, 0)
        self.pairs, self.loop, self.share = pairs, loop, share
        self.clean = round(clean_share * loop.batch_size)

    def __len__(self) -> int:
        return self.loop.steps * self.loop.accumulate

    def __getitem__(self, index: int) -> PairBatch:
        step, micro = divmod(index, self.loop.accumulate)
        part = self.share.of(self.loop, micro)
        rows = batch_positions(len(self.pairs.own), self.loop.batch_size, self.loop.seed, step)[part]
        clean = torch.arange(part.start, part.stop) < self.clean
        tokens = torch.where(clean[:, None], self.pairs.own.rows(rows)[0], self.pairs.mixed.rows(rows)[0])
        return PairBatch(tokens, to_float(self.pairs.images(rows)))


class DecoderPostTraining(nn.Module):
    """A decoder learns to make pictures of tokens that a generator has drawn in part.

    Encoder and codes stay as they are, so that the generator's tokens keep their meaning.
    """

    def __init__(self, config: PostTraining, tokenizer: Tokenizer, validation: PairSet | None = None) -> None:
        super().__init__()
        check_decoder(tokenizer)
        self.model = tokenizer.to(memory_format=torch.channels_last)  # quicker, on CPUs too
        train_decoder_alone(self.model)
        self.pictures = PictureLosses(config.loss)
        self.companions = self.pictures.companions
        self.validation = validation

    @property
    def adversary(self) -> PictureAdversary | None:
        return self.pictures.adversary

    def hidden_weights(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.backbone.hidden_weights() if weight.requires_grad]

    def networks(self) -> list[nn.Module]:
        return [self.model.backbone.decoder]

    def forward(self, batch: PairBatch, step: int, generator: torch.Generator) -> Output:
        output = self.model.decode_latents(codes(self.model, batch.tokens)).float()
        losses = self.pictures(output, batch.images, step, self.model.backbone.last_layer, generator)
        return Output(used(losses, self.pictures.config), {}, (batch.images, output.detach()))

    def observe(self, output: Output, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def evaluate(self, model: Tokenizer) -> dict[str, float]:
        """val_loss: the losses of mixed tokens but for the adversary's, by which the best model is chosen.

        mixed_psnr, and mixed_perceptual if there is a network for it: of mixed tokens. val_psnr: of the own tokens.
        """
        if self.validation is None:
            return {}
        device, config, totals = model.from_codes.weight.device, self.pictures.config, dict[str, float]()
        for part, own, mixed in self.validation.parts():
            images = to_float(part).to(device)
            seen = model.decode(mixed.to(device))
            losses = used(self.pictures.distances(seen, images), config)
            numbers = {"val_loss": sum(losses.values(), images.new_zeros(())), "mixed_psnr": psnr(seen, images).mean()}
            if "perceptual" in losses:
                numbers["mixed_perceptual"] = losses["perceptual"] / config.perceptual
            numbers["val_psnr"] = psnr(model.decode(own.to(device)), images).mean()
            for name, number in numbers.items():
                totals[name] = totals.get(name, 0.0) + float(number) * len(images)
        return {name: total / len(self.validation.own) for name, total in totals.items()}

    @torch.no_grad()
    def preview(self, model: Tokenizer) -> Tensor | None:
        """Validation pictures over what their mixed tokens become."""
        if self.validation is None:
            return None
        rows = spread(len(self.validation.own), 12)
        tokens = self.validation.mixed.rows(rows)[0].to(model.from_codes.weight.device)
        return pairs(self.validation.images(rows), to_uint8(model.decode(tokens)).cpu())


def cropped(source: ImageSource, rows: Tensor, size: int) -> Tensor:
    """The middles of the pictures at `rows`: uint8 b 3 size size."""
    return torch.stack([center_crop(source.image(row), size) for row in rows.tolist()])


@torch.no_grad()
def codes(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    """b n -> b ... d, what the decoder reads."""
    return tokenizer.quantizer.codes(tokenizer.config.layout.unflatten(tokens))


def check_decoder(tokenizer: Tokenizer) -> None:
    """ValueError for decoders that are not trained by their pictures."""
    if isinstance(tokenizer.backbone, Flow):
        raise ValueError(
            "this tokenizer's decoder draws pictures by a flow, which is not trained by comparing pictures; "
            "post-train one that decodes in a single pass"
        )
