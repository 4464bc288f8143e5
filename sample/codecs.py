"""Rate and distortion of token files beside those of picture formats: bits a pixel, PSNR, SSIM."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imgtok.compression import Compressor
from imgtok.data import to_float
from imgtok.data.pictures import from_pillow, to_pillow
from imgtok.flexible import prefixes
from imgtok.metrics.image import psnr, ssim
from imgtok.tokenfile import to_bytes

QUALITIES = (1, 5, 10, 20, 35, 50, 65, 80, 92)
FORMATS: dict[str, dict[str, Any]] = {"JPEG": {"optimize": True}, "WebP": {"method": 6}, "AVIF": {"speed": 6}}
MOST_LENGTHS = 8


@dataclass(frozen=True, kw_only=True)
class Point:
    """Means over pictures."""

    bits: float
    """Per pixel, of the whole file."""
    psnr: float
    ssim: float


def formats() -> list[str]:
    """Those of FORMATS that this Pillow can write."""
    Image.init()
    return [name for name in FORMATS if name.upper() in Image.SAVE]


def format_curve(name: str, pictures: Sequence[Tensor]) -> list[Point]:
    """At each of QUALITIES."""
    return [mean(scores(picture, *through(name, quality, picture)) for picture in pictures) for quality in QUALITIES]


def through(name: str, quality: int, picture: Tensor) -> tuple[int, Tensor]:
    """The number of bytes of a picture's file, uint8 3 h w, and what is decoded from it."""
    buffer = io.BytesIO()
    to_pillow(picture).save(buffer, format=name, quality=quality, **FORMATS[name])
    with Image.open(buffer, formats=[name.upper()]) as image:
        return len(buffer.getvalue()), from_pillow(image.convert("RGB"))


def token_curve(compressor: Compressor, pictures: Sequence[Tensor]) -> list[Point]:
    """At all numbers of tokens that can be decoded, or some of them if there are many; the last point is all tokens."""
    files = [compressor.encode(picture) for picture in pictures]
    numbers = [prefixes(compressor.tokenizer.config, compressor.filled(file.size)) for file in files]
    curve = []
    for place in places(len(numbers[0])):
        kept = [compressor.shortened(file, number[place]) for file, number in zip(files, numbers, strict=True)]
        rows = zip(pictures, kept, strict=True)
        curve.append(mean(scores(picture, len(to_bytes(file)), compressor.decode(file)) for picture, file in rows))
    return curve


def places(count: int) -> list[int]:
    """All of 0 to count - 1, or MOST_LENGTHS of them, ever further apart; the last is count - 1."""
    if count <= MOST_LENGTHS:
        return list(range(count))
    numbers = torch.logspace(0, math.log10(count), MOST_LENGTHS, dtype=torch.float64).round().int()
    return (numbers.unique() - 1).tolist()


def scores(picture: Tensor, length: int, decoded: Tensor) -> tuple[float, float, float]:
    """Bits a pixel, PSNR, SSIM."""
    images, originals = to_float(decoded)[None], to_float(picture)[None]
    bits = 8 * length / (picture.shape[-2] * picture.shape[-1])
    return bits, float(psnr(images, originals)), float(ssim(images, originals))


def mean(rows: Iterable[tuple[float, float, float]]) -> Point:
    columns = list(zip(*rows, strict=True))
    bits, decibels, similarity = (sum(column) / len(column) for column in columns)
    return Point(bits=bits, psnr=decibels, ssim=similarity)


def at_rate(curve: Sequence[Point], bits: float) -> Point | None:
    """Between the points of a curve, along the logarithm of the rate; None outside of it."""
    for low, high in pairwise(curve):
        if low.bits <= bits <= high.bits and low.bits < high.bits:
            share = math.log(bits / low.bits) / math.log(high.bits / low.bits)
            return Point(
                bits=bits,
                psnr=low.psnr + share * (high.psnr - low.psnr),
                ssim=low.ssim + share * (high.ssim - low.ssim),
            )
    return None
