"""Two-stage training of one-dimensional tokenizers (TiTok, arXiv:2406.07550): a teacher's codes first, then pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from imgtok.backbones.cnn import CNN, CNNConfig
from imgtok.backbones.query import CodeHead, CodeHeadConfig, Query, QueryConfig
from imgtok.data import ImageSource
from imgtok.data.transforms import to_float
from imgtok.hub import fingerprint
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig, size_of
from imgtok.train.config import (
    ImageDataConfig,
    LoopConfig,
    OptimizerConfig,
    PictureLossConfig,
    TokenizerLossConfig,
    TokenizerTraining,
)
from imgtok.train.data import ImageBatch
from imgtok.train.tasks import Output, TokenizerTask, train_decoder_alone


@dataclass(frozen=True, kw_only=True)
class ProxyLossConfig:
    """Weights of the named losses; 0 leaves one out."""

    proxy: float = 1.0
    """Of the cross-entropy of the teacher's codes."""
    commitment: float = 0.25
    codebook: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ProxyTraining:
    """The first stage: encoder, codes and decoder learn to tell the codes that a teacher makes of the same pictures."""

    tokenizer: TokenizerConfig
    """Its head, and its range of pixel values, become the teacher's."""
    teacher: str = ""
    """A tokenizer with one codebook on a grid, of as many pixels a side as a patch: a preset or a folder."""
    loop: LoopConfig
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    loss: ProxyLossConfig = field(default_factory=ProxyLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True, kw_only=True)
class DecoderTraining:
    """The second stage: the decoder learns pixels; encoder and codes stay as they are."""

    start: str = ""
    """The tokenizer to begin with: the folder of the first stage."""
    loop: LoopConfig
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    loss: PictureLossConfig = field(default_factory=PictureLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


class ProxyTask(TokenizerTask):
    """A tokenizer with queries learns a frozen teacher's codes by cross-entropy.

    The teacher's codes and decoder are part of it from the beginning, frozen too, so that it decodes pictures.
    """

    def __init__(self, config: ProxyTraining, teacher: Tokenizer, validation: ImageSource | None = None) -> None:
        losses = TokenizerLossConfig(l2=0.0, commitment=config.loss.commitment, codebook=config.loss.codebook)
        student = student_config(config.tokenizer, teacher.config)
        super().__init__(TokenizerTraining(tokenizer=student, loop=config.loop, loss=losses), validation)
        self.origins = {"teacher": fingerprint(teacher)}
        self.proxy = config.loss.proxy
        adopt(self.head, teacher)
        self.companions = (teacher.eval().requires_grad_(False),)

    @property
    def head(self) -> CodeHead:
        head = self.model.backbone.decoder.head
        assert isinstance(head, CodeHead)
        return head

    def networks(self) -> list[nn.Module]:
        query = cast(Query, self.model.backbone)
        return [query.encoder, query.decoder.vit]

    def forward(self, batch: ImageBatch, step: int, generator: torch.Generator) -> Output:
        latents = self.model.latents(batch.images)
        quantized = self.model.quantizer(latents)
        targets = self.targets(batch.images)
        logits = code_logits(self.model, quantized.latents, size_of(batch.images))
        losses = {"proxy": self.proxy * F.cross_entropy(logits.flatten(0, 1), targets.flatten())}
        weights = {name: getattr(self.config.loss, name) for name in quantized.losses}
        losses |= {name: weights[name] * loss for name, loss in quantized.losses.items() if weights[name] > 0}
        right = (logits.argmax(-1) == targets).float().mean()
        kept = (batch.images, logits.detach(), latents.detach(), quantized.indices)
        return Output(losses, {"proxy_accuracy": right}, kept)

    def observe(self, output: Output, generator: torch.Generator) -> dict[str, Tensor]:
        return super().observe(output, generator) | output.numbers

    def targets(self, images: Tensor) -> Tensor:
        """The teacher's codes, b n; with whole precision, so that they are those it always makes."""
        with torch.autocast(images.device.type, enabled=False):
            return cast(Tokenizer, self.companions[0]).encode(images)

    @torch.no_grad()
    def evaluate(self, model: Tokenizer) -> dict[str, float]:
        """As of any tokenizer, its pictures by way of expected codes; and how well it tells the teacher's codes."""
        if self.validation is None:
            return {}
        device, total, right = model.from_codes.weight.device, 0.0, 0.0
        for part in self.validation.split(32):
            images = to_float(part).to(device)
            targets, tokens = self.targets(images), model.quantizer(model.latents(images)).latents
            logits = code_logits(model, tokens, size_of(images))
            total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten())) * len(images)
            right += float((logits.argmax(-1) == targets).float().mean()) * len(images)
        count = len(self.validation)
        return super().evaluate(model) | {"val_proxy": total / count, "val_proxy_accuracy": right / count}


class DecoderTask(TokenizerTask):
    """The decoder of a trained tokenizer learns from its pixels; what comes before it does not change in any bit."""

    def __init__(self, config: DecoderTraining, start: Tokenizer, validation: ImageSource | None = None) -> None:
        losses = TokenizerLossConfig(**vars(config.loss))
        super().__init__(TokenizerTraining(tokenizer=start.config, loop=config.loop, loss=losses), validation)
        self.origins = {"start": fingerprint(start)}
        self.model.load_state_dict(start.state_dict())
        train_decoder_alone(self.model)

    def train(self, mode: bool = True) -> DecoderTask:
        """Encoder and quantizer stay in evaluation mode: they make no losses."""
        super().train(mode)
        for part in (self.model.backbone.encoder, self.model.to_codes, cast(nn.Module, self.model.quantizer)):
            part.eval()
        return self

    def hidden_weights(self) -> list[nn.Parameter]:
        return [weight for weight in super().hidden_weights() if weight.requires_grad]

    def observe(self, output: Output, generator: torch.Generator) -> dict[str, Tensor]:
        """No upkeep: the codes stay."""
        return {}


def student_config(config: TokenizerConfig, teacher: TokenizerConfig) -> TokenizerConfig:
    """With the teacher's codes and decoder as its head. ValueError if the two do not go together."""
    if not isinstance(config.backbone, QueryConfig):
        raise ValueError(f"a teacher's codes are learned by a QueryConfig alone, got {type(config.backbone).__name__}")
    one_grid = isinstance(teacher.backbone, CNNConfig) and isinstance(teacher.quantizer, VectorConfig)
    if not one_grid or teacher.code_kernel > 1:
        raise ValueError("the teacher must be a CNN with one codebook and code_kernel 1, as maskgit-vqgan-f16 is")
    assert isinstance(teacher.backbone, CNNConfig) and isinstance(teacher.quantizer, VectorConfig)
    head = CodeHeadConfig(codebook_size=teacher.quantizer.codebook_size, cnn=teacher.backbone)
    return replace(config, backbone=replace(config.backbone, head=head), pixel_range=teacher.pixel_range)


@torch.no_grad()
def adopt(head: CodeHead, teacher: Tokenizer) -> None:
    """The teacher's codes, as its decoder reads them, and its decoder; both frozen."""
    assert isinstance(teacher.backbone, CNN)
    codes = torch.arange(len(head.codebook), device=teacher.from_codes.weight.device)
    head.codebook.copy_(teacher.from_codes(teacher.quantizer.codes(codes)))
    head.cnn.load_state_dict(teacher.backbone.decoder.state_dict())
    head.codebook.requires_grad_(False)
    head.cnn.requires_grad_(False)


def code_logits(tokenizer: Tokenizer, latents: Tensor, size: tuple[int, int]) -> Tensor:
    """Of the teacher's codes in raster order, b n v, float32, from quantised latents b m d of pictures of `size`."""
    assert isinstance(tokenizer.backbone, Query)
    read = tokenizer.from_codes(latents.to(tokenizer.from_codes.weight.dtype))
    return rearrange(tokenizer.backbone.code_logits(read, size).float(), "b h w v -> b (h w) v")


def check_source(config: ProxyTraining | DecoderTraining) -> str:
    """The teacher, or the tokenizer to begin with; ValueError if it was not said."""
    if isinstance(config, ProxyTraining):
        if not config.teacher:
            raise ValueError("this recipe learns a teacher's codes: add --teacher with a preset or a folder")
        return config.teacher
    if not config.start:
        raise ValueError("this recipe goes on with a trained tokenizer: add --start with the folder of the first stage")
    return config.start
