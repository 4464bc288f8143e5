"""Counter-based Gumbel noise: a function of (image, position, token) alone, so nothing else can change an image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Two multipliers of a 32-bit integer hash with good avalanche, as signed numbers; products wrap around.
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97
_POSITION, _STREAM, _PURPOSE = 0x3C6EF372, 0x1B873593, 0x2545F491
_MASK64, _STEP = (1 << 64) - 1, 0x9E3779B97F4A7C15


def image_keys(seed: int, images: Iterable[int], device: torch.device | str = "cpu") -> Tensor:
    """Two 32-bit keys of each image of a run: n 2, int32. Any integer is a seed, however large."""
    keys = [_split(_mix64(_mix64(_fold(seed)) ^ ((image + 1) * _STEP & _MASK64))) for image in images]
    return torch.tensor(keys, dtype=torch.int64).reshape(-1, 2).to(torch.int32).to(device)


def gumbel(keys: Tensor, positions: Tensor, size: int, purpose: Tensor | int = 0) -> Tensor:
    """Standard Gumbel variables, one for each token of the vocabulary: keys b 2, positions b w -> b w size, float32.

    Argmax of log-probabilities plus this noise is a draw from the law. The exponentials behind it have steps of 2^-32
    where they are small, which decides only between tokens less likely than that. Each `purpose` (a number, or b 1)
    has noise of its own.
    """
    tokens = torch.arange(size, dtype=torch.int32, device=keys.device)
    bits = _mix32(_mix32(tokens * _STREAM ^ _place(keys, positions, purpose)[..., None]) + keys[:, 1:, None])
    return -_exponential(bits).log()


def uniform(keys: Tensor, positions: Tensor, purpose: Tensor | int = 0) -> Tensor:
    """Uniform in (0, 1): keys b 2, positions b w -> b w, float32."""
    bits = _mix32(_place(keys, positions, purpose) + keys[:, 1:] * _STREAM)
    return (bits >> 9 & 0x7FFFFF).float() * 2.0**-23 + 2.0**-24  # exact, so never 1


def _place(keys: Tensor, positions: Tensor, purpose: Tensor | int) -> Tensor:
    """b w: a hash of image, position and purpose."""
    own = keys[:, 1:] + purpose * _PURPOSE
    return _mix32(keys[:, :1] ^ _mix32(positions.to(torch.int32) * _POSITION + own.to(torch.int32)))


def _exponential(bits: Tensor) -> Tensor:
    """Standard exponentials from 32 random bits, in two parts: converted to float32 at once, the low bits would go."""
    high, low = (bits >> 8 & 0xFFFFFF).float(), (bits & 0xFF).float()
    uniform = high * 2.0**-24 + (low + 0.5) * 2.0**-32
    return -torch.log1p(-uniform.clamp_max(1 - 2.0**-24))


def _mix32(x: Tensor) -> Tensor:
    """A bijective hash of int32; the masks make the arithmetic shifts logical."""
    x = (x ^ (x >> 16 & 0xFFFF)) * _FIRST
    x = (x ^ (x >> 15 & 0x1FFFF)) * _SECOND
    return x ^ (x >> 15 & 0x1FFFF)


def _fold(seed: int) -> int:
    """Any integer to 64 bits, so that seeds beyond 2^64 and negative ones differ too."""
    sign, folded, rest = int(seed < 0), 0, abs(seed)
    while rest:
        folded = _mix64(folded ^ (rest & _MASK64)) + _STEP & _MASK64  # the step makes a word of zeros count
        rest >>= 64
    return folded ^ sign


def _mix64(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK64
    return x ^ (x >> 31)


def _split(x: int) -> tuple[int, int]:
    """64 bits to two signed 32-bit numbers."""
    return tuple(half - (1 << 32) if half >= 1 << 31 else half for half in (x & 0xFFFFFFFF, x >> 32))  # type: ignore[return-value]
