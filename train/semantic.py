"""Tokens that tell what a picture shows: codes are drawn to what a frozen teacher sees (RobusTok, arXiv:2503.08354)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from imgtok.quantizers.factorized import ProductConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.train.losses import contrastive
from imgtok.train.teachers import whole_picture_teacher


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """What the semantic loss compares; its weight is `loss.semantic`."""

    teacher: Literal["none", "dinov2-s", "dinov2-b", "dinov2-l", "efficientnet-lite0"] = "none"
    """DINOv2's class token needs its weights. efficientnet-lite0, a classifier in an installed package, stands in for
    it where these are missing."""
    weights: str | None = None
    """A file of the teacher's weights, instead of timm or the installed package."""
    codes: Literal["clean", "read"] = "clean"
    """Where codes are swapped in training: the clean ones, as the paper says, or those that the decoder reads, as in
    the released code."""
    branch: Literal["all", "last"] = "all"
    """Of several codes side by side, all or the last alone (ImageFolder, arXiv:2410.01756)."""
    scale: float = 1.0
    """What products are multiplied by before the softmax."""
    normalize: bool = False
    """Compare unit vectors."""


class SemanticLoss(nn.Module):
    """Which picture has this mean code, and which this code the teacher's feature? (CLIP, arXiv:2103.00020).

    The feature comes to the codes' width by the tokenizer's own projection to codes, where that takes the teacher's
    width; otherwise, and for the last branch alone, by a linear layer that belongs to the training.
    """

    def __init__(self, config: SemanticConfig, tokenizer: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        teacher = whole_picture_teacher(config.teacher, config.weights)
        self.companions = (teacher,)
        self.width, own = compared_width(config, tokenizer), tokenizer.backbone.encoder_channels == teacher.width
        borrowed = own and config.branch == "all" and tokenizer.code_kernel == 1
        self.project = None if borrowed else nn.Linear(teacher.width, self.width)

    def forward(self, images: Tensor, codes: Tensor, to_codes: nn.Module) -> Tensor:
        """Images b 3 h w, codes b ... d, the tokenizer's projection -> a scalar, unweighted."""
        (teacher,) = self.companions
        features = teacher(images).mean((2, 3))
        features = to_codes(features) if self.project is None else self.project(features)
        mean = codes.flatten(1, -2).float().mean(1)[:, -self.width :]
        return contrastive(mean, features, self.config.scale, self.config.normalize)


def compared_width(config: SemanticConfig, tokenizer: TokenizerConfig) -> int:
    """Channels of the codes that take part; ValueError for a last branch where there is but one."""
    quantizer = tokenizer.quantizer
    if config.branch == "all":
        return quantizer.codebook_dim
    if not isinstance(quantizer, ProductConfig):
        raise ValueError(
            f"semantics.branch is last, but {type(quantizer).__name__} has no branches; use all, or a ProductConfig"
        )
    return quantizer.branch.codebook_dim


def clean_codes(tokenizer: Tokenizer, latents: Tensor, read: Tensor) -> Tensor:
    """The values of the nearest codes of `latents`, with the gradient of what is `read` of them."""
    with torch.no_grad():
        clean = tokenizer.quantizer.codes(tokenizer.quantizer.nearest(latents))
    return read + (clean - read).detach()
