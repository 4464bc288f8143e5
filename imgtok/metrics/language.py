"""Tokens of pictures looked at as a language, after "Analyzing The Language of Visual Tokens" (arXiv:2411.05001).

Everything takes `tokens`, integers N x L: a picture a row, in the order in which a generator would write them. An
n-gram lies within a picture. All estimates are the plain ones: entropies of many n-grams from few pictures are low.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imgtok.metrics.tokens import entropy_bits


class PowerLaw(NamedTuple):
    """y = scale * x ** exponent, fitted as a straight line to the logarithms."""

    exponent: float
    scale: float
    fit: float
    """R²: the share of the variance of log y that the line explains."""


class Growth(NamedTuple):
    """How many types (different tokens) were seen after each picture."""

    types: Tensor
    """int64 N; its differences are the new types that each picture brought."""
    tokens: Tensor
    """int64 N, the tokens read by then."""


def ngram_counts(tokens: Tensor, n: int) -> Tensor:
    """How often each n-gram that occurs does, most frequent first: int64. ValueError if rows are shorter than n."""
    words = checked(tokens)
    if not 1 <= n <= words.shape[1]:
        raise ValueError(f"n-grams of {n} do not fit into rows of {words.shape[1]} tokens")
    width = words.shape[1] - n + 1
    numbers = words[:, :width]
    for shift in range(1, n):  # numbers of n-grams, small again after each step, so that none overflows
        following = words[:, shift : shift + width]
        numbers = numbered(numbers.astype(np.int64) * (int(words.max()) + 1) + following)
    return torch.from_numpy(np.unique(numbers, return_counts=True)[1]).sort(descending=True).values


def numbered(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Equal values get equal numbers, 0 to how many there are."""
    return np.unique(values, return_inverse=True)[1].reshape(values.shape)


def zipf(counts: Tensor, ranks: int | None = None) -> PowerLaw:
    """Frequency against rank over the first `ranks` ranks (None: all); a text has an exponent near -1.

    Every rank weighs the same, so the many rare types decide: name `ranks` beside the number.
    """
    frequencies = counts[:ranks].double() / counts.sum()
    return power_law(torch.arange(1, len(frequencies) + 1, dtype=torch.float64), frequencies)


def growth(tokens: Tensor) -> Growth:
    """The vocabulary, picture by picture. Depends on the order of the pictures: shuffle what is sorted by class."""
    words = checked(tokens)
    first = np.unique(words, return_index=True)[1]
    new = torch.bincount(torch.from_numpy(first // words.shape[1]), minlength=len(words))
    return Growth(new.cumsum(0), torch.arange(1, len(words) + 1) * words.shape[1])


def heaps(tokens: Tensor, points: int = 100, saturated: float = 0.9) -> PowerLaw:
    """Types against tokens read, V(n) = K n^β: at `points` places evenly spaced in log n, in the order of the tokens.

    Places where more than the share `saturated` of the final vocabulary is known are left out: the law is that of
    growth, and a codebook has an end.
    """
    words = checked(tokens)
    first = torch.from_numpy(np.sort(np.unique(words, return_index=True)[1]))
    places = torch.logspace(0, math.log10(words.size), points, dtype=torch.float64).round().long().unique()
    types = torch.searchsorted(first, places)  # of those first seen at positions below n
    kept = types <= saturated * len(first)
    return power_law(places[kept].double(), types[kept].double())


def conditional_entropy(tokens: Tensor, n: int = 2) -> float:
    """Entropy in bits of a token when the n - 1 before it are known: H_n less H_(n-1) of what comes before."""
    return entropy_bits(ngram_counts(tokens, n)) - entropy_bits(ngram_counts(tokens[:, :-1], n - 1))


def huffman_bits(counts: Tensor) -> float:
    """Mean length in bits of a token in the best code that has a word for each type (Huffman 1952); of one type 0."""
    heap = [count for count in counts.tolist() if count > 0]
    total, bits = sum(heap), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        bits += joined  # each token below this node has one bit more
        heapq.heappush(heap, joined)
    return bits / total


def huffman_saving(counts: Tensor, codebook_size: int) -> float:
    """What Huffman's code saves against words of ceil(log2 codebook_size) bits: a share; texts 35 %, pictures 3 %."""
    return 1 - huffman_bits(counts) / math.ceil(math.log2(codebook_size))


def power_law(x: Tensor, y: Tensor) -> PowerLaw:
    """Through positive x and y. ValueError for fewer than two places."""
    if len(x) < 2:
        raise ValueError(f"a line needs at least 2 points, got {len(x)}")
    x, y = x.log(), y.log()
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx * dy).sum() / dx.square().sum())
    spread = float(dy.square().sum())
    left = float((dy - slope * dx).square().sum())
    return PowerLaw(slope, math.exp(float(y.mean()) - slope * float(x.mean())), 1 - left / spread if spread else 1.0)


def checked(tokens: Tensor) -> npt.NDArray[np.int64]:
    if tokens.ndim != 2 or tokens.numel() == 0 or tokens.is_floating_point() or tokens.min() < 0:
        raise ValueError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}, expected integers from 0 up, N x L")
    return tokens.cpu().long().numpy()
