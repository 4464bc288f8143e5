"""Normalisations that always compute in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """(x - mean) / std over the last axis, without weights (arXiv:1607.06450): ... c, in float32, cast back."""
    return F.layer_norm(x, x.shape[-1:], eps=eps).to(x.dtype)  # which computes in float32 by itself


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv:1910.07467): computed in float32, cast back, then scaled."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:  # ... c
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight.to(x.dtype)
