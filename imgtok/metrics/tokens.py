"""How a codebook is used, from `counts`: how often each code was chosen, integers of shape [codebook_size]."""

import torch
from torch import Tensor


def code_usage(counts: Tensor) -> float:  # v -> share
    """Share of the codes that were chosen at least once, in [0, 1]. Over an evaluation set, not over recent batches."""
    return (checked(counts) > 0).double().mean().item()


def entropy_bits(counts: Tensor) -> float:  # v -> bits
    """Entropy -sum p log2 p of the chosen codes, in bits, between 0 and log2(codebook_size).

    The plain estimate: with few choices a code it is biased low. Raises ValueError if nothing was counted.
    """
    counts = checked(counts).double()
    if counts.sum() == 0:
        raise ValueError("counts are all zero: the entropy of no choice at all is undefined")
    p = counts / counts.sum()
    return -torch.special.xlogy(p, p).sum().item() / torch.log(p.new_tensor(2.0)).item()


def perplexity(counts: Tensor) -> float:  # v -> codes
    """2 ** entropy: the number of equally likely codes with the same entropy, between 1 and codebook_size."""
    return 2.0 ** entropy_bits(counts)


def checked(counts: Tensor) -> Tensor:
    """The counts on the CPU, where float64 always exists. Raises ValueError if they are not counts of a codebook."""
    if counts.ndim != 1 or counts.numel() == 0 or counts.is_floating_point() or counts.dtype == torch.bool:
        raise ValueError(f"counts must be integers of shape [codebook_size], got {counts.dtype} {tuple(counts.shape)}")
    if counts.min() < 0:
        raise ValueError(f"counts must not be negative, got {counts.min().item()}")
    return counts.cpu()
