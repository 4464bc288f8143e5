"""Rate and distortion of token files beside those of picture formats: bytes, PSNR, SSIM, perceptual distances."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from imgtok.compression import Compressor
from imgtok.data import to_float
from imgtok.data.pictures import from_pillow, to_pillow
from imgtok.flexible import prefixes
from imgtok.metrics.image import psnr, ssim
from imgtok.tokenfile import Predictor, to_bytes


class Format(NamedTuple):
    """A picture format, and over which of its qualities a curve goes: from its worst on."""

    qualities: tuple[int, ...]
    options: dict[str, Any]


FORMATS = {
    "JPEG": Format((1, 5, 10, 20, 35, 50, 65, 80, 95), {"optimize": True}),
    "WebP": Format((0, 5, 10, 20, 35, 50, 65, 80, 95), {"method": 6}),
    "AVIF": Format((0, 5, 10, 20, 35, 50, 65, 80, 95), {"speed": 6}),
}
MOST_LENGTHS = 8
MOST_DECIBELS = 100.0  # what equal pictures count as
HIGHER = ("psnr", "ssim")
"""Which measures are better the higher they are; of all others, the lower."""

Measures = dict[str, Callable[[Tensor, Tensor], Tensor]]
"""By name: pictures and originals, b 3 h w in [-1, 1] -> b."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Means over pictures, by name: bytes and bits (a pixel) of whole files, and each measure."""

    label: str
    """A format's quality, or how many tokens."""
    means: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    """Standard errors of the means: how far they would differ with other pictures; none of a single picture."""


def formats() -> list[str]:
    """Those of FORMATS that this Pillow can write."""
    Image.init()
    return [name for name in FORMATS if name.upper() in Image.SAVE]


def measures(distances: Measures | None = None) -> Measures:
    """PSNR in dB and SSIM, and these."""
    return {"psnr": lambda *pair: psnr(*pair).clamp_max(MOST_DECIBELS), "ssim": ssim} | (distances or {})


def format_curve(name: str, pictures: Sequence[Tensor], by: Measures) -> list[Point]:
    """At each of the format's qualities."""
    return [
        mean(f"quality {quality}", (scores(picture, *through(name, quality, picture), by) for picture in pictures))
        for quality in FORMATS[name].qualities
    ]


def through(name: str, quality: int, picture: Tensor) -> tuple[int, Tensor]:
    """The number of bytes of a picture's file, uint8 3 h w, and what is decoded from it."""
    buffer = io.BytesIO()
    to_pillow(picture).save(buffer, format=name, quality=quality, **FORMATS[name].options)
    with Image.open(buffer, formats=[name.upper()]) as image:
        return len(buffer.getvalue()), from_pillow(image.convert("RGB"))


def token_curves(
    compressor: Compressor, predictor: Predictor | None, pictures: Sequence[Tensor], by: Measures
) -> dict[str, list[Point]]:
    """At all numbers of tokens that can be decoded, or some of them if there are many; the last point is all tokens.

    One curve of the files that need the tokenizer alone, "", and one of those under the predictor's law, "+ law".
    """
    files = [compressor.encode(picture) for picture in pictures]
    numbers = [prefixes(compressor.tokenizer.config, compressor.filled(file.size)) for file in files]
    kinds: dict[str, Predictor | None] = {"": None} | ({"+ law": predictor} if predictor else {})
    rows: dict[str, dict[int, list[dict[str, float]]]] = {kind: {} for kind in kinds}
    for picture, file, possible in zip(pictures, files, numbers, strict=True):
        for place in reversed(places(len(numbers[0]))):  # all tokens first: the predictor remembers their laws
            kept = compressor.shortened(file, possible[place])
            quality = scores(picture, 0, compressor.decode(kept), by)
            for kind, law in kinds.items():
                row = quality | rate(picture, len(to_bytes(kept, "auto", law)))
                rows[kind].setdefault(place, []).append(row)
    labels = {place: tokens_text([number[place] for number in numbers]) for place in places(len(numbers[0]))}
    return {kind: [mean(labels[place], found[place]) for place in labels] for kind, found in rows.items()}


def tokens_text(counts: list[int]) -> str:
    """Of pictures of several sizes, which have several numbers of tokens."""
    few, many = min(counts), max(counts)
    return f"{many} tokens" if few == many else f"{few} to {many} tokens"


def places(count: int) -> list[int]:
    """All of 0 to count - 1, or MOST_LENGTHS of them, ever further apart; the last is count - 1."""
    if count <= MOST_LENGTHS:
        return list(range(count))
    numbers = torch.logspace(0, math.log10(count), MOST_LENGTHS, dtype=torch.float64).round().int()
    return (numbers.unique() - 1).tolist()


@torch.no_grad()
def scores(picture: Tensor, length: int, decoded: Tensor, by: Measures) -> dict[str, float]:
    """The rate of a file of `length` bytes, and the measures of what is decoded from it."""
    images, originals = to_float(decoded)[None], to_float(picture)[None]
    return rate(picture, length) | {name: float(measure(images, originals)) for name, measure in by.items()}


def rate(picture: Tensor, length: int) -> dict[str, float]:
    return {"bytes": float(length), "bits": 8 * length / (picture.shape[-2] * picture.shape[-1])}


def mean(label: str, rows: Iterable[dict[str, float]]) -> Point:
    found = list(rows)
    columns = {name: torch.tensor([row[name] for row in found], dtype=torch.float64) for name in found[0]}
    errors = {name: float(column.std() / len(found) ** 0.5) for name, column in columns.items()} if found[1:] else {}
    return Point(label=label, means={name: float(column.mean()) for name, column in columns.items()}, errors=errors)


def at_rate(curve: Sequence[Point], bits: float) -> Point | None:
    """Between the points of a curve, along the logarithm of the rate; None outside of it."""
    for low, high in pairwise(curve):
        few, many = low.means["bits"], high.means["bits"]
        if few <= bits <= many and few < many:
            share = math.log(bits / few) / math.log(many / few)
            between = {name: value + share * (high.means[name] - value) for name, value in low.means.items()}
            return Point(label=f"{low.label} to {high.label}", means=between | {"bits": bits})
    return None


def bytes_for(curve: Sequence[Point], name: str, value: float) -> float | None:
    """How many bytes a curve needs for this value of a measure; None if it is better from its first point on, or never
    so good."""
    sign = 1 if name in HIGHER else -1
    for low, high in pairwise(curve):
        bad, good = sign * low.means[name], sign * high.means[name]
        if bad < sign * value <= good:
            share = (sign * value - bad) / (good - bad)
            return low.means["bytes"] * (high.means["bytes"] / low.means["bytes"]) ** share
    return None


def lost(point: Point, other: Point) -> list[str]:
    """By which measures a point is worse than another."""
    return [
        name
        for name, value in point.means.items()
        if name not in ("bytes", "bits")
        and (value < other.means[name]) == (name in HIGHER)
        and value != other.means[name]
    ]
