"""imgtok rate-distortion: token files beside JPEG, WebP and AVIF."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from imgtok.atomic import replacing, write_text
from imgtok.compression import Compressor
from imgtok.data import UnreadableImage, center_crop
from imgtok.data import load as load_images
from imgtok.sample.codecs import Point, at_rate, format_curve, formats, token_curve
from imgtok.sample.commands.common import (
    Device,
    Flag,
    check_positive,
    check_replaced_place,
    find_device,
    load_tokenizer,
    progress,
    set_threads,
)
from imgtok.sample.commands.tokens import SMALLEST, open_source

logger = logging.getLogger(__name__)

PLOT, NUMBERS = "rate-distortion.png", "rate-distortion.json"
Curves = dict[str, list[Point]]


def rate_distortion(
    *,
    images: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGES ...", help_behavior_hint="(one or more)")
    ],
    model: tyro.conf.UseAppendAction[tuple[str, ...]],
    out: Path,
    num: int = 100,
    size: int | None = None,
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Measure bits a pixel, PSNR and SSIM of token files beside JPEG, WebP and AVIF, for each of IMAGES, and plot them.

    All numbers are means over the pictures and count whole files, headers included. AVIF is left out where Pillow
    cannot write it. What a tokenizer's weights weigh is not counted, nor what the decoders of the formats do.

    Args:
        images: Image files, folders of them, or embedded sets: photos, and emoji64, of which the validation pictures
            are taken.
        model: A tokenizer: a folder or a preset; may be given several times.
        out: Folder for rate-distortion.png and rate-distortion.json.
        num: At most this many pictures of each of IMAGES, evenly spaced.
        size: Scale the short side to this and crop to a square first; None: as they are.
        overwrite: Replace the files of an earlier run in --out.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_positive("num", num)
    check_positive("size", SMALLEST if size is None else size, SMALLEST)
    if not images or not model:
        raise ValueError("give images to measure with (photos, emoji64) and at least one --model")
    check_replaced_place(out, (PLOT, NUMBERS), overwrite)
    compressors = {name: Compressor(load_tokenizer(name, None, find_device(device))) for name in model}
    sets = {name: pictures_of(name, num, size) for name in images}
    found, count = dict[str, Curves](), len(sets) * (len(formats()) + len(compressors))
    with progress("rate-distortion", "curve", count) as bar:
        for name, pictures in sets.items():
            found[name] = {}
            for label, curve in curves_of(pictures, compressors):
                found[name][label] = curve
                bar.update()
    out.mkdir(parents=True, exist_ok=True)
    numbers = {
        name: {
            "pictures": len(sets[name]),
            "curves": {label: [asdict(point) for point in curve] for label, curve in curves.items()},
        }
        for name, curves in found.items()
    }
    write_text(out / NUMBERS, json.dumps(numbers, indent=2) + "\n")
    save_plot(out / PLOT, found, {name: len(pictures) for name, pictures in sets.items()}, list(compressors))
    print("\n".join(line for name, curves in found.items() for line in told(name, curves, list(compressors))))
    print(f"{out}: {PLOT}, {NUMBERS}")


def pictures_of(name: str, num: int, size: int | None) -> list[Tensor]:
    """At most `num` pictures, evenly spaced."""
    source = load_images(name, "val") if name == "emoji64" else open_source(name)  # its split is fixed: no training set
    count, pictures = min(num, len(source)), list[Tensor]()
    for i in range(count):
        try:
            picture = source.image(i * len(source) // count)
        except UnreadableImage as error:
            logger.warning("skipped: %s", error)
            continue
        pictures.append(picture if size is None else center_crop(picture, size))
    pictures = [picture for picture in pictures if min(picture.shape[-2:]) >= SMALLEST]
    if not pictures:
        raise ValueError(
            f"not one of the pictures of {name} can be measured; they are damaged or below {SMALLEST} pixels"
        )
    return pictures


def curves_of(pictures: list[Tensor], compressors: dict[str, Compressor]) -> Iterator[tuple[str, list[Point]]]:
    """Each picture format's, then each tokenizer's."""
    for name in formats():
        yield name, format_curve(name, pictures)
    for name, compressor in compressors.items():
        yield name, token_curve(compressor, pictures)


def told(name: str, curves: Curves, ours: list[str]) -> list[str]:
    """For each point of the tokenizers, how the formats do with as many bytes."""
    lines = []
    for label in ours:
        for point in curves[label]:
            others = [beside(other, curves[other], point) for other in curves if other not in ours]
            text = f"{name}  {label}  {point.bits:.3f} bits a pixel  PSNR {point.psnr:.2f} dB  SSIM {point.ssim:.4f}"
            lines.append(f"{text}  at this rate: {', '.join(others)}")
    return lines


def beside(name: str, curve: list[Point], point: Point) -> str:
    other = at_rate(curve, point.bits)
    if other is not None:
        return f"{name} {other.psnr:.2f} dB {other.ssim:.4f}"
    least = min(each.bits for each in curve)
    return f"{name} none (its smallest: {least:.3f})" if point.bits < least else f"{name} not measured"


def save_plot(path: Path, found: dict[str, Curves], counts: dict[str, int], ours: list[str]) -> None:
    """A column for each set of pictures, PSNR above, SSIM below, over bits a pixel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5 * len(found), 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(found), squeeze=False)
    for column, (name, curves) in enumerate(found.items()):
        for axes, unit in ((panels[0, column], "psnr"), (panels[1, column], "ssim")):
            for label, curve in curves.items():
                style = {"linewidth": 2.2, "marker": "o"} if label in ours else {"linewidth": 1.2, "marker": "."}
                axes.plot([each.bits for each in curve], [getattr(each, unit) for each in curve], label=label, **style)
            axes.set_xscale("log")
            axes.grid(alpha=0.3, which="both")
            axes.set_xlabel("bits a pixel, whole files")
            axes.set_ylabel("PSNR, dB" if unit == "psnr" else "SSIM")
        panels[0, column].set_title(f"{name}: {counts[name]} pictures")
    panels[0, 0].legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
