"""Indices of codes as bytes: packed bit by bit, or range-coded under their histogram or under a model's laws."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
WORD = np.dtype("<u4")  # of the range coder
HIGHEST_LEVEL = 32
CHECK_DIGITS = 1 << 16
SPARE = 12  # zero bytes behind a stream: more than the range coder reads ahead


class Laws(Protocol):
    """The law of each index given those before it, asked from front to back, group after group."""

    def __call__(self, before: Integers) -> Integers:
        """The indices of the group asked for last (none at first) -> weights m v of the next m: 1 to 2^24."""
        ...


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


def predict_code(values: Integers, laws: Laws, stops: Collection[int]) -> bytes:
    """The values under `laws`, by a range coder, and checksums: of 16 bits after so many values, of 32 after all.

    Raises ImportError without the package constriction.
    """
    coder, even = coders().queue.RangeEncoder(), coders().model.Uniform(CHECK_DIGITS)
    for at, predicted in predictions(values, laws):
        coder.encode(int(values[at]), predicted)
        for digit in check_digits(values, at + 1, stops):
            coder.encode(digit, even)
    return coder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


def predict_decode(data: bytes, length: int, count: int, laws: Laws, stops: Collection[int]) -> Integers:
    """The `count` values of `predict_code`, whose bytes were `length`.

    If fewer are left: the first values, up to the last stop whose checksum is right. ValueError where none is, where
    that of all values is wrong, or where there are more bytes.
    """
    if len(data) > length:
        raise ValueError(f"{len(data)} bytes of predicted tokens, but there are {length}; the file is damaged")
    words = np.frombuffer(data + bytes(SPARE + -len(data) % 4), ">u4").astype(np.uint32)
    decoder, even = coders().queue.RangeDecoder(words), coders().model.Uniform(CHECK_DIGITS)
    values, sure = np.zeros(count, np.int64), 0
    try:
        for at, predicted in predictions(values, laws):
            values[at] = decoder.decode(predicted)
            digits = check_digits(values, at + 1, stops)
            if any(decoder.decode(even) != digit for digit in digits):
                break
            sure = at + 1 if digits else sure
    except AssertionError:  # what constriction raises for bytes that no encoder writes
        pass
    if sure == count or (sure and len(data) < length):
        return values[:sure]
    if len(data) < length:
        raise ValueError(
            f"too few of the predicted tokens are left to be told from chance ({len(data)} of {length} bytes), "
            "or this machine predicts otherwise than the one that wrote them"
        )
    raise ValueError(
        "the predicted tokens do not agree with their checksum: the file is damaged, or this machine's arithmetic "
        "predicts otherwise than that of the one that wrote it; decode there, or write the file with --coding packed"
    )


def predictions(values: Integers, laws: Laws) -> Iterator[tuple[int, Any]]:
    """Place and law of each value, one after the other; a value must be there when the next is asked for."""
    at, group = 0, values[:0]
    while at < len(values):
        weights = laws(group)
        group = values[at : at + len(weights)]
        for row in weights[: len(group)]:
            yield at, law(row)
            at += 1


def check_digits(values: Integers, count: int, stops: Collection[int]) -> list[int]:
    """What is coded after the first `count` values, in digits of 16 bits: often nothing."""
    if count < len(values) and count not in stops:
        return []
    checksum = crc32(values[:count].astype(WORD).tobytes())
    return [checksum % CHECK_DIGITS, checksum // CHECK_DIGITS][: 2 if count == len(values) else 1]


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
