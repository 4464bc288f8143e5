"""Indices of codes as bytes: packed bit by bit, or range-coded under a histogram that goes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
WORD = np.dtype("<u4")  # of the range coder
HIGHEST_LEVEL = 32


def bits_of(codebook_size: int) -> int:
    """Bits of one packed index."""
    return max((codebook_size - 1).bit_length(), 1)


def pack(values: Integers, bits: int) -> bytes:
    """The lowest `bits` bits of each value, the highest first, one after the other; zeros fill the last byte."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits(((values[:, None] >> shifts) & 1).astype(np.uint8)).tobytes()


def unpack(data: bytes, bits: int) -> Integers:
    """All values that `data` holds in full; up to 7 / bits of them may be the zeros that filled the last byte."""
    count = 8 * len(data) // bits
    digits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    values = np.zeros(count, np.int64)
    for digit in digits.T:
        values = (values << 1) | digit
    return values


def entropy_code(values: Integers, codebook_size: int) -> bytes:
    """A histogram of the values, rounded to powers of 2, and the values under it, by a range coder.

    Level 0 stands for a code that does not occur, level k for one that occurs about 2^(k - 1) times. First come the
    number of codes of each level, then the level of each code and the values (among codes that occur) in one stream.
    Raises ImportError without the package constriction.
    """
    counts = np.bincount(values, minlength=codebook_size)
    levels = np.where(counts > 0, 1 + np.rint(np.log2(counts.clip(1))), 0).astype(np.int32)
    sizes = np.bincount(levels)
    ranks = np.cumsum(levels > 0)[values] - 1
    coder = coders().queue.RangeEncoder()
    if len(sizes) > 1 and sizes.max() < codebook_size:
        coder.encode(levels, law(sizes))
    weights = 2.0 ** (levels[levels > 0] - 1)
    if len(weights) > 1:
        coder.encode(ranks.astype(np.int32), law(weights))
    head = bytes([len(sizes)]) + b"".join(int(size).to_bytes(3, "little") for size in sizes)
    return head + coder.get_compressed().astype(WORD).tobytes()


def entropy_decode(data: bytes, count: int, codebook_size: int) -> Integers:
    """The `count` values of `entropy_code`. ValueError if `data` is nothing that it could have written."""
    kinds = data[0] if data else 0
    start = 1 + 3 * kinds
    sizes = [int.from_bytes(data[at : at + 3], "little") for at in range(1, start, 3)]
    if not 2 <= kinds <= HIGHEST_LEVEL + 1 or len(data) < start or (len(data) - start) % 4:
        raise ValueError("the entropy-coded payload is damaged: its length or its number of levels cannot be")
    if sum(sizes) != codebook_size or sizes[0] == codebook_size:
        raise ValueError(f"the entropy-coded payload is damaged: its histogram is not one of {codebook_size} codes")
    decoder = coders().queue.RangeDecoder(np.frombuffer(data, WORD, offset=start).astype(np.uint32))
    try:
        if max(sizes) < codebook_size:
            levels = decoder.decode(law(np.array(sizes)), codebook_size)
        else:
            levels = np.full(codebook_size, sizes.index(codebook_size))
        (there,) = np.nonzero(levels)
        if len(there) < 2:
            return np.full(count, there[0] if len(there) else 0, np.int64)
        ranks = decoder.decode(law(2.0 ** (levels[there] - 1)), count)
    except AssertionError as error:  # what constriction raises for bytes that no encoder writes
        raise ValueError("the entropy-coded payload is damaged: the range coder cannot follow it") from error
    return there[ranks].astype(np.int64)


def law(weights: npt.NDArray[Any]) -> Any:
    """The range coder's law in proportion to `weights`; whole numbers, which no machine rounds otherwise."""
    return coders().model.Categorical(weights.astype(np.float32), perfect=False)


def coders() -> Any:
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "entropy-coded token files need the package constriction: pip install 'imgtok[compress]'"
        ) from error
    return constriction.stream
