"""Token files: the tokens of one picture in a few bytes, with all that is needed to decode them but the tokenizer.

The layout of the bytes is in docs/token-files.md. Every size is checked against a limit before anything of that size is
made: reading takes less than 128 MiB whatever the file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from imgtok.atomic import write_bytes
from imgtok.payload import Laws, bits_of, entropy_code, entropy_decode, pack, predict_code, predict_decode, unpack
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout, TokenLayout

Coding = Literal["auto", "packed", "coded", "predicted"]

MAGIC, VERSION = b"IMTK", 1
GRID, SEQUENCE, SCALES = 0, 1, 2  # of the byte that says which layout and which coding
CODED, PREDICTED = 4, 8

MAX_PIXELS = 1 << 22
MAX_INDICES = 1 << 20
MAX_CODES = 1 << 20
MAX_SCALES = 64
MAX_PER_TOKEN = 64
MAX_LABELS = 64
FIRST_STOP = 16  # tokens
FEWEST_CHECKED = 8  # tokens of coarse maps, for a checksum of their own
MAX_BYTES = 1 << 22  # of a file


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenFile:
    tokenizer: str
    """Fingerprint of the tokenizer's configuration and weights, 16 hexadecimal digits."""
    size: tuple[int, int]
    """Height and width of the picture in pixels."""
    layout: TokenLayout
    """Of all tokens of the picture, those that were left off too."""
    index_shape: tuple[int, ...] = ()
    """Axes of the indices of one token: none for one index, (k,) for k side by side."""
    codebook_size: int
    tokens: Tensor
    """The first tokens of the layout, or all: n, or n k; int64 on the CPU."""

    def __post_init__(self) -> None:
        check_limits(self.size, self.layout, self.index_shape, self.codebook_size)
        count, places = len(self.tokens), self.layout.num_tokens
        if not 1 <= count <= places:
            raise ValueError(f"{count} tokens of a picture that has {places}; a token file holds at least the first")
        if tuple(self.tokens.shape[1:]) != self.index_shape:
            raise ValueError(f"tokens of shape {tuple(self.tokens.shape)}, expected {(count, *self.index_shape)}")
        smallest, largest = map(int, self.tokens.aminmax())
        if smallest < 0 or largest >= self.codebook_size:
            wrong = smallest if smallest < 0 else largest
            raise ValueError(f"token {wrong} is not among the {self.codebook_size} codes; the file may be damaged")


class Predictor(Protocol):
    """A model of the tokens of one tokenizer, and what it is told; `imgtok.sample.entropy_model` has one."""

    identity: str
    """Of its configuration and weights, 8 hexadecimal digits."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    condition: tuple[int, ...]
    """Numbers that say what it is told when tokens are coded."""

    def check(self, layout: TokenLayout, index_shape: tuple[int, ...], codebook_size: int) -> None:
        """ValueError for tokens that it does not predict."""
        ...

    def laws(self, condition: tuple[int, ...]) -> Laws:
        """Of the tokens of one picture. ValueError for what it cannot be told."""
        ...


def check_limits(size: tuple[int, int], layout: TokenLayout, index_shape: tuple[int, ...], codebook_size: int) -> None:
    """ValueError for what a token file does not hold."""
    per_token = index_shape[0] if index_shape else 1
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"a picture of {size[1]} x {size[0]} pixels: token files hold 1 to {MAX_PIXELS:,} pixels")
    if len(index_shape) > 1 or not 1 <= per_token <= MAX_PER_TOKEN:
        raise ValueError(f"indices of shape {index_shape} for a token: token files hold 1 to {MAX_PER_TOKEN} a token")
    if not 1 <= layout.num_tokens * per_token <= MAX_INDICES:
        raise ValueError(f"{layout.num_tokens * per_token:,} indices: token files hold 1 to {MAX_INDICES:,}")
    if not 1 <= codebook_size <= MAX_CODES:
        raise ValueError(
            f"a codebook of {codebook_size:,} codes: token files hold indices of 1 to {MAX_CODES:,} codes, "
            "and no tokens that are vectors"
        )
    if len(layout.group_sizes) > MAX_SCALES:
        raise ValueError(f"{len(layout.group_sizes)} scales: token files hold at most {MAX_SCALES}")


def save(file: TokenFile, path: str | Path, coding: Coding = "auto", predictor: Predictor | None = None) -> int:
    """Writes `to_bytes` to `path`, whole or not at all; returns the number of bytes."""
    content = to_bytes(file, coding, predictor)
    write_bytes(path, content)
    return len(content)


def load(path: str | Path, predictor: Predictor | None = None) -> TokenFile:
    """ValueError, which names the file, for one that is damaged, cut within its header or no token file."""
    with Path(path).open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    try:
        return from_bytes(content, predictor)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_bytes(file: TokenFile, coding: Coding = "auto", predictor: Predictor | None = None) -> bytes:
    """`packed` may be cut at its end, `coded` may be smaller, `predicted` under the predictor's laws mostly is.

    `auto` is the smallest of those that can be written. Raises ImportError for `coded` and `predicted` without the
    package constriction (`auto` then packs), and ValueError for `predicted` without a predictor and for a predictor
    of other tokens.
    """
    if coding == "predicted" and predictor is None:
        raise ValueError("the coding `predicted` needs a generator that predicts the tokens; give one, or use `auto`")
    if coding == "auto":
        ways = ("packed", "coded", "predicted") if find_spec("constriction") else ("packed",)
        return min((written(file, way, predictor) for way in ways if way != "predicted" or predictor), key=len)
    return written(file, coding, predictor)


def written(file: TokenFile, coding: str, predictor: Predictor | None) -> bytes:
    values = file.tokens.flatten().numpy()
    if coding == "packed":
        return header(file, 0) + pack(values, bits_of(file.codebook_size))
    if coding == "coded":
        payload = entropy_code(values, file.codebook_size)
        return header(file, CODED) + number_bytes(len(payload)) + payload
    assert predictor is not None
    check_tokenizer(predictor, file.tokenizer)
    predictor.check(file.layout, file.index_shape, file.codebook_size)
    payload = predict_code(values, predictor.laws(predictor.condition), stops_of(file.layout))
    numbers = (len(predictor.condition), *predictor.condition, len(payload))
    return header(file, PREDICTED) + bytes.fromhex(predictor.identity) + b"".join(map(number_bytes, numbers)) + payload


def from_bytes(data: bytes, predictor: Predictor | None = None) -> TokenFile:
    """What `to_bytes` wrote. Of a payload that was cut, the tokens that are left: of a packed one all that are whole,
    of a predicted one those up to the last checksum.

    Raises ValueError for anything else, for a predicted payload without its predictor or where its laws come out
    differently here, and ImportError for a coded or predicted payload without the package constriction.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes, which no token file has")
    reader = Reader(data)
    kind = read_start(reader)
    tokenizer = reader.take(8).hex()
    width, height = reader.number(), reader.number()
    codebook_size, per_token, dropped = reader.number(), reader.number(), reader.number()
    layout = read_layout(reader, kind if kind & CODED and kind & PREDICTED else kind & ~(CODED | PREDICTED))
    index_shape = (per_token,) if per_token else ()
    check_limits((height, width), layout, index_shape, codebook_size)
    count, side_by_side = layout.num_tokens - dropped, max(per_token, 1)
    if count < 0:
        raise ValueError(f"{dropped} tokens are left off, but there are {layout.num_tokens}; the file is damaged")
    if kind & CODED:
        values = entropy_decode(read_coded(reader), count * side_by_side, codebook_size)
    elif kind & PREDICTED:
        condition = read_prediction(reader, predictor, tokenizer)
        assert predictor is not None
        predictor.check(layout, index_shape, codebook_size)
        length = reader.number()
        values = predict_decode(reader.rest(), length, count, predictor.laws(condition), stops_of(layout))
    else:
        values = unpack(read_packed(reader, count * side_by_side, codebook_size), bits_of(codebook_size))
        values = values[: min(count, len(values) // side_by_side) * side_by_side]
    return TokenFile(
        tokenizer=tokenizer,
        size=(height, width),
        layout=layout,
        index_shape=index_shape,
        codebook_size=codebook_size,
        tokens=torch.from_numpy(values).reshape(-1, *index_shape),
    )


def header(file: TokenFile, coding: int) -> bytes:
    kind, sides = layout_numbers(file.layout)
    numbers = (
        *(file.size[1], file.size[0], file.codebook_size, file.index_shape[0] if file.index_shape else 0),
        *(file.layout.num_tokens - len(file.tokens), *sides),
    )
    start = MAGIC + bytes([VERSION, kind | coding]) + bytes.fromhex(file.tokenizer)
    return start + b"".join(map(number_bytes, numbers))


def layout_numbers(layout: TokenLayout) -> tuple[int, list[int]]:
    """Which layout it is, and its sizes."""
    if isinstance(layout, GridLayout):
        return GRID, [layout.height, layout.width]
    if isinstance(layout, SequenceLayout):
        return SEQUENCE, [layout.length]
    return SCALES, [len(layout.sizes), *(side for size in layout.sizes for side in size)]


def read_start(reader: Reader) -> int:
    """Magic and version; returns the byte of layout and coding."""
    if reader.take(4) != MAGIC:
        raise ValueError("no token file (it does not begin with IMTK)")
    version, kind = reader.take(2)
    if version != VERSION:
        raise ValueError(f"a token file of version {version}, but version {VERSION} is read; use a newer imgtok")
    return kind


def read_layout(reader: Reader, kind: int) -> TokenLayout:
    if kind == GRID:
        return GridLayout(reader.number(), reader.number())
    if kind == SEQUENCE:
        return SequenceLayout(reader.number())
    if kind != SCALES:
        raise ValueError(f"layout {kind} is unknown; the file is damaged")
    count = reader.number()
    if count > MAX_SCALES:
        raise ValueError(f"{count} scales: token files hold at most {MAX_SCALES}")
    return ScaleLayout(tuple((reader.number(), reader.number()) for _ in range(count)))


def read_packed(reader: Reader, indices: int, codebook_size: int) -> bytes:
    payload, most = reader.rest(), -(-indices * bits_of(codebook_size) // 8)
    if len(payload) > most:
        raise ValueError(f"{len(payload)} bytes of tokens, but there can be {most} at most; the file is damaged")
    return payload


def read_coded(reader: Reader) -> bytes:
    length, payload = reader.number(), reader.rest()
    if len(payload) != length:
        raise ValueError(
            f"the entropy-coded tokens are cut or damaged ({len(payload)} of {length} bytes); "
            "only files written with the coding `packed` can be cut"
        )
    return payload


def read_prediction(reader: Reader, predictor: Predictor | None, tokenizer: str) -> tuple[int, ...]:
    """What the generator is told; ValueError if the predictor is not the one that the tokens were coded under."""
    identity, count = reader.take(4).hex(), reader.number()
    if count > MAX_LABELS:
        raise ValueError(f"{count} labels: token files hold at most {MAX_LABELS}")
    condition = tuple(reader.number() for _ in range(count))
    if predictor is None:
        raise ValueError(
            f"the tokens are coded under the law of the generator {identity}; decode with it (its folder as --model)"
        )
    check_tokenizer(predictor, tokenizer)
    if predictor.identity != identity:
        raise ValueError(
            f"the tokens are coded under the law of the generator {identity}, but this one is {predictor.identity}; "
            "decode with the generator, configuration and weights alike, that they were written with"
        )
    return condition


def check_tokenizer(predictor: Predictor, tokenizer: str) -> None:
    if predictor.tokenizer != tokenizer:
        raise ValueError(
            f"the tokens are those of the tokenizer {tokenizer}, but the generator goes with {predictor.tokenizer}; "
            "take the pair that made them"
        )


def stops_of(layout: TokenLayout) -> tuple[int, ...]:
    """After how many predicted tokens a checksum is due, so that a cut file can be trusted up to there."""
    if isinstance(layout, GridLayout):
        return ()  # which is of no use when cut
    if isinstance(layout, ScaleLayout):
        ends = list(accumulate(layout.group_sizes))
    else:
        ends = [FIRST_STOP << i for i in range(layout.num_tokens.bit_length())]
    return tuple(end for end in ends if FEWEST_CHECKED <= end < layout.num_tokens)


class Reader:
    """Takes a file's header apart, from front to back; ValueError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError("the file ends within its header; it is cut or no token file")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set. Below 2^28."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of the header is too large; the file is damaged")

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


def number_bytes(value: int) -> bytes:
    """As `Reader.number` reads it."""
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + number_bytes(high) if high else bytes([low])
