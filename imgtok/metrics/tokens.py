"""How a codebook is used, from `counts`: how often each code was chosen, integers of shape [codebook_size]."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class CodebookUse(NamedTuple):
    codes: int
    """Different codes chosen."""
    usage: float
    """The same as a share of the codebook."""
    entropy: float
    """Bits."""
    perplexity: float


class CodeCounts:
    """Counts of codes over a set of pictures, for each group of a layout apart: scales, say, or a single grid."""

    def __init__(self, codebook_size: int, group_sizes: Sequence[int], codebooks: int = 1) -> None:
        """group_sizes: tokens of each group, as `layout.group_sizes`; codebooks: codes side by side for a token."""
        self.group_sizes = tuple(group_sizes)
        self.counts = torch.zeros(codebooks, len(self.group_sizes), codebook_size, dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        """Adds indices b n, or b n k of k codebooks. ValueError if they do not fit or leave the codebook."""
        codebooks, _, size = self.counts.shape
        columns = indices.cpu().reshape(*indices.shape[:2], -1)
        if indices.ndim < 2 or columns.shape[1:] != (sum(self.group_sizes), codebooks):
            expected = f"b x {sum(self.group_sizes)}" + (f" x {codebooks}" if codebooks > 1 else "")
            raise ValueError(f"indices are {tuple(indices.shape)}, expected {expected}")
        if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < size:
            raise ValueError(f"indices {int(columns.min())} to {int(columns.max())} leave the codebook of {size}")
        for counts, column in zip(self.counts, columns.unbind(-1), strict=True):
            for group, part in zip(counts, column.split(self.group_sizes, dim=1), strict=True):
                group += torch.bincount(part.flatten(), minlength=size)

    def use(self) -> list[CodebookUse]:
        """Of each codebook in all groups together, as if they shared it."""
        return [codebook_use(counts.sum(0)) for counts in self.counts]

    def use_by_group(self) -> list[list[CodebookUse]]:
        """Of each codebook, group by group."""
        return [[codebook_use(group) for group in counts] for counts in self.counts]


def codebook_use(counts: Tensor) -> CodebookUse:
    return CodebookUse(int((counts > 0).sum()), code_usage(counts), entropy_bits(counts), perplexity(counts))


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
