"""Which codes are used, counted the same on all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs in `indices` over all processes: int64 [codebook_size]."""
    counts = torch.zeros(codebook_size, dtype=torch.int64, device=indices.device)
    counts.scatter_add_(0, indices.flatten(), torch.ones_like(indices.flatten()))
    return sum_over_processes(counts)


def sum_over_processes(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def from_first_process(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(values, src=0)
    return values


def batch_perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the codes' frequencies: a scalar in [1, codebook_size]."""
    share = counts.float() / counts.sum().clamp_min(1)
    return torch.exp(-(share * torch.log(share.clamp_min(1e-12))).sum())
