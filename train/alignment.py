"""A decoder's features aligned to what a teacher sees (REPA, arXiv:2410.06940)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class AlignmentHead(nn.Module):
    """Hidden features b c h w to a teacher's channels, place by place: three layers (REPA, arXiv:2410.06940)."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        layers = (nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return rearrange(self.layers(rearrange(features, "b c h w -> b h w c")), "b h w c -> b c h w")


def alignment_loss(features: Tensor, target: Tensor) -> Tensor:
    """1 minus the mean cosine of b c h w and the target b c h' w', to whose places the former are resized; a scalar."""
    resized = features.float()
    if resized.shape[-2:] != target.shape[-2:]:
        resized = F.interpolate(resized, target.shape[-2:], mode="bilinear", antialias=True)
    return 1 - F.cosine_similarity(resized, target.float(), dim=1).mean()
