"""imgtok rate-distortion: token files beside JPEG, WebP and AVIF."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import Tensor

from imgtok import zoo
from imgtok.atomic import replacing, write_text
from imgtok.compression import Compressor
from imgtok.data import UnreadableImage, center_crop
from imgtok.data import load as load_images
from imgtok.metrics.perceptual import perceptual_distance
from imgtok.sample.codecs import (
    HIGHER,
    Measures,
    Point,
    at_rate,
    bytes_for,
    format_curve,
    formats,
    lost,
    measures,
    token_curves,
)
from imgtok.sample.commands.common import (
    Device,
    Flag,
    check_positive,
    check_replaced_place,
    find_device,
    progress,
    set_threads,
)
from imgtok.sample.commands.compress import Coder, load_coder
from imgtok.sample.commands.tokens import SMALLEST, open_source
from imgtok.tokenfile import Predictor
from imgtok.tokenizer import size_of

logger = logging.getLogger(__name__)

PLOT, DRAWING, NUMBERS = "rate-distortion.png", "rate-distortion.svg", "rate-distortion.json"
USUAL = "efficientnet-lite0"  # of the perceptual distances, the cheapest, which comes with its weights
UNITS = {"psnr": "PSNR, dB", "ssim": "SSIM"}
Curves = dict[str, list[Point]]
Distance = Literal["none", "efficientnet-lite0", "lpips-vgg", "lpips-alex", "vgg-hed"]


def rate_distortion(
    *,
    images: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGES ...", help_behavior_hint="(one or more)")
    ],
    model: tyro.conf.UseAppendAction[tuple[str, ...]],
    out: Path,
    pictures: int = 24,
    size: int | None = None,
    metric: tyro.conf.UseAppendAction[tuple[Distance, ...]] = (),
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Measure bytes, PSNR, SSIM and a perceptual distance of token files beside JPEG, WebP and AVIF, and plot them.

    All numbers are means over the pictures of each of IMAGES, with their standard errors, and count whole files,
    headers included. AVIF is left out where Pillow cannot write it. What a tokenizer's weights weigh is not counted,
    nor what the decoders of the formats do. The end of the printout says where the formats are better.

    Args:
        images: Image files, folders of them, or embedded sets: photos, and emoji64, of which the validation pictures
            are taken.
        model: A tokenizer: a folder or a preset; may be given several times. Or a generator that has its tokenizer
            with it, as those of the zoo: measured without and with its law of the tokens.
        out: Folder for rate-distortion.png, .svg and .json.
        pictures: At most this many pictures of each of IMAGES, evenly spaced; of photos, there are 15.
        size: Scale the short side to this and crop to a square first; None: as they are.
        metric: A perceptual distance; may be given several times. None given: efficientnet-lite0, if it is installed.
        overwrite: Replace the files of an earlier run in --out.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_positive("pictures", pictures)
    check_positive("size", SMALLEST if size is None else size, SMALLEST)
    if not images or not model:
        raise ValueError("give images to measure with (photos, emoji64) and at least one --model")
    check_replaced_place(out, (PLOT, DRAWING, NUMBERS), overwrite)
    by = measures(distances(metric))
    folders = {name: str(zoo.generator_folder(name) or name) for name in model}
    coders = {name: load_coder(folder, None, None, None, (), find_device(device)) for name, folder in folders.items()}
    sets = {name: pictures_of(name, pictures, size) for name in images}
    found, count = dict[str, Curves](), len(sets) * (len(formats()) + len(coders))
    with progress("rate-distortion", "curves", count) as bar:
        for name, chosen in sets.items():
            found[name] = {}
            for curves in curves_of(chosen, coders, by):
                found[name] |= curves
                bar.update()
    counts = {name: len(chosen) for name, chosen in sets.items()}
    out.mkdir(parents=True, exist_ok=True)
    numbers = {
        name: {"pictures": counts[name], "curves": {label: list(map(asdict, curve)) for label, curve in curves.items()}}
        for name, curves in found.items()
    }
    write_text(out / NUMBERS, json.dumps(numbers, indent=2) + "\n")
    save_plots(out, found, counts, list(by))
    print("\n".join(line for name, curves in found.items() for line in [*told(name, curves), *summed_up(name, curves)]))
    print(f"{out}: {PLOT}, {DRAWING}, {NUMBERS}")


def distances(names: tuple[Distance, ...]) -> Measures:
    """Those that were asked for; without any, the usual one if it is there."""
    try:
        found = {name: perceptual_distance(name) for name in names or (USUAL,)}
    except ImportError as error:
        if names:
            raise
        logger.warning("no perceptual distance is measured: %s", error)
        return {}
    return {name: distance for name, distance in found.items() if distance is not None}


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


def curves_of(pictures: list[Tensor], coders: dict[str, Coder], by: Measures) -> Iterator[Curves]:
    """Each picture format's, then each tokenizer's, without and with a generator's law."""
    for name in formats():
        yield {name: format_curve(name, pictures, by)}
    for name, (compressor, predictor) in coders.items():
        law = predictor if predictor and predicts(name, predictor, compressor, pictures) else None
        found = token_curves(compressor, law, pictures, by)
        yield {f"{name} {kind}".strip(): curve for kind, curve in found.items()}


def predicts(name: str, predictor: Predictor, compressor: Compressor, pictures: list[Tensor]) -> bool:
    """Whether the generator's law is one of these pictures' tokens; tells why not."""
    config = compressor.tokenizer.config
    try:
        for size in {compressor.filled(size_of(picture)) for picture in pictures}:
            predictor.check(config.layout_of(*size), config.quantizer.index_shape, config.quantizer.codebook_size)
    except ValueError as error:
        logger.warning("%s is measured without its law: %s", name, error)
        return False
    return True


def told(name: str, curves: Curves) -> list[str]:
    """For each point of the tokenizers, how the formats do with as many bytes."""
    lines = []
    for label in ours(curves):
        for point in curves[label]:
            others = [beside(other, curves[other], point) for other in formats()]
            values = ", ".join(value_text(each, value) for each, value in qualities(point).items())
            rate = f"{point.means['bytes']:.0f} bytes, {point.means['bits']:.3f} bits a pixel"
            lines.append(f"{name}  {label}  {point.label}: {rate}, {values}; at this rate {', '.join(others)}")
    return lines


def beside(name: str, curve: list[Point], point: Point) -> str:
    other = at_rate(curve, point.means["bits"])
    if other is not None:
        worse = lost(point, other)
        values = " ".join(value_text(each, value) for each, value in qualities(other).items())
        return f"{name} {values} ({f'better in {len(worse)} of {len(qualities(point))}' if worse else 'worse in all'})"
    least = min(curve, key=lambda each: each.means["bits"]).means
    return (
        f"{name} none (its smallest: {least['bytes']:.0f} bytes)"
        if point.means["bits"] < least["bits"]
        else f"{name} not measured"
    )


def summed_up(name: str, curves: Curves) -> list[str]:
    """Where each tokenizer loses to each format, and what the best picture of either costs."""
    lines = []
    for label in ours(curves):
        for other in formats():
            pairs = [(point, at_rate(curves[other], point.means["bits"])) for point in curves[label]]
            met = [(point, rival) for point, rival in pairs if rival is not None]
            losses = {
                each: sum(each in lost(point, rival) for point, rival in met) for each in qualities(curves[label][-1])
            }
            parts = ", ".join(f"{count} in {each}" for each, count in losses.items())
            text = (
                f"of {len(met)} points at a rate of {other}, it loses {parts}"
                if met
                else f"{other} has no files so small"
            )
            lines.append(f"{name}  {label} beside {other}: {text}; {dearest(curves[label][-1], other, curves[other])}")
    return lines


def dearest(last: Point, other: str, curve: list[Point]) -> str:
    """What the format needs for the quality of all tokens."""
    needs = bytes_for(curve, "psnr", last.means["psnr"])
    reached = f"for the {last.means['psnr']:.1f} dB of its {last.means['bytes']:.0f} bytes"
    if needs is None and curve[0].means["psnr"] >= last.means["psnr"]:
        least = curve[0].means
        return (
            f"{reached} {other} has none: its smallest files, {least['bytes']:.0f} bytes, have {least['psnr']:.1f} dB"
        )
    if needs is None:
        return f"{reached} {other} has none: its best files have {curve[-1].means['psnr']:.1f} dB"
    return f"{reached} {other} needs {needs:.0f}"


def ours(curves: Curves) -> list[str]:
    return [label for label in curves if label not in formats()]


def qualities(point: Point) -> dict[str, float]:
    return {name: value for name, value in point.means.items() if name not in ("bytes", "bits")}


def value_text(name: str, value: float) -> str:
    return f"{value:.2f} dB" if name == "psnr" else f"{'SSIM' if name == 'ssim' else name} {value:.3f}"


def save_plots(out: Path, found: dict[str, Curves], counts: dict[str, int], names: list[str]) -> None:
    """A column for each set of pictures, a row for each measure, over bytes a picture; bars are standard errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5.5 * len(found), 1 + 3.2 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels, shown = figure.subplots(len(names), len(found), squeeze=False), dict[str, Any]()
    labels = list(dict.fromkeys(label for curves in found.values() for label in curves))
    colours = {label: f"C{place}" for place, label in enumerate(labels)}  # the same in every panel
    for column, (name, curves) in enumerate(found.items()):
        for row, measure in enumerate(names):
            shown |= draw_curves(panels[row, column], curves, measure, colours)
        panels[0, column].set_title(f"{name}: mean of {counts[name]} pictures")
        panels[-1, column].set_xlabel("bytes a picture, headers included")
    panels[0, 0].legend([shown[label] for label in labels], labels, fontsize="small")
    for path in (out / PLOT, out / DRAWING):
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=110)


def draw_curves(axes: Any, curves: Curves, measure: str, colours: dict[str, str]) -> dict[str, Any]:
    """What the legend shows, by label."""
    drawn = {}
    for label, curve in curves.items():
        is_format = label not in ours(curves)
        style = {"linewidth": 1.2, "marker": ".", "linestyle": "--"} if is_format else {"linewidth": 2.2, "marker": "o"}
        drawn[label] = axes.errorbar(
            [point.means["bytes"] for point in curve],
            [point.means[measure] for point in curve],
            [point.errors.get(measure, 0.0) for point in curve],
            [point.errors.get("bytes", 0.0) for point in curve],
            elinewidth=0.8,
            color=colours[label],
            **style,
        )
    axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")
    better = "higher" if measure in HIGHER else "lower"
    axes.set_ylabel(f"{UNITS.get(measure, measure)} ({better} is better)")
    return drawn
