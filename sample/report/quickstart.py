"""A quickstart: two trainings, samples and how long it all took."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

from einops import rearrange
from torch import Tensor

from imgtok.data import UnreadableImage, read_picture, to_float
from imgtok.metrics.image import psnr
from imgtok.sample.report.charts import Chart, figures
from imgtok.sample.report.curves import curves
from imgtok.sample.report.files import dicts, member, read_typed
from imgtok.sample.report.formatting import command_blocks, duration, figure_text, flat, folded, two_columns
from imgtok.sample.report.part import Card, Part, Place, Section
from imgtok.sample.report.pictures import element, inside, sheet_of, tile_width, tiles, without_blanks
from imgtok.sample.report.run import Run
from imgtok.sample.report.timings import timings
from imgtok.sample.report.training import read_training


def quickstart_part(place: Place) -> Part:
    run = read_run(place)
    sections = (explanation(run), reconstructions(run), samples(run), learning(run), timings(run), settings(run))
    trainings = run.trainings.values()
    return Part(
        place=place,
        kind="Quickstart",
        title=headline(run),
        lead=summary(run),
        cards=tuple(headline_numbers(run)),
        row=row(run),
        sections=(*(section for section in sections if section.content.strip()), commands(run)),
        notes=tuple(note for training in trainings for note in training.log.notes),
        footer=footer(run),
    )


def read_run(place: Place) -> Run:
    folder = place.folder
    return Run(
        place=place,
        metrics=read_typed(folder / "metrics.json", dict),
        trainings={name: read_training(folder / name) for name in ("tokenizer", "generator")},
        samples=dicts(read_typed(folder / "pictures" / "samples.json", list)),
    )


def row(run: Run) -> dict[str, str]:
    return {
        "PSNR, dB": figure_text(run.number("tokenizer.val_psnr")),
        "nats per token": figure_text(run.number("generator.val_loss")),
        "time": duration(run.number("total_seconds")),
        "device": str(run.metrics.get("device", "")),
    }


def headline(run: Run) -> str:
    total = run.number("total_seconds")
    if total is None:
        return "Pictures from tokens"
    return f"Pictures from tokens, learned in {total / 60:.{0 if total >= 120 else 1}f} minutes"


def summary(run: Run) -> str:
    tokens = f"{run.tokenizer.layout.num_tokens} tokens" if run.tokenizer else "tokens"
    return (
        f"A tokenizer has learned to turn every picture into {tokens} and back, and a generator has learned to write "
        f"such tokens by itself, one after another{where(run)}."
    )


def where(run: Run) -> str:
    """The device in words; empty if not known."""
    device, threads = str(run.metrics.get("device", "")), run.number("threads")
    if not device:
        return ""
    name = {"cpu": "a CPU", "cuda": "a GPU", "mps": "an Apple GPU"}.get(device.partition(":")[0], device)
    return f", all on {name}" + (f" with {threads:g} threads" if device == "cpu" and threads else "")


def headline_numbers(run: Run) -> Iterator[Card]:
    if (value := run.number("tokenizer.val_psnr")) is not None:
        yield Card(f"{value:.1f}", "dB", "PSNR of pictures rebuilt from tokens, never seen in training")
    if (value := run.number("tokenizer.code_usage")) is not None:
        yield Card(f"{100 * value:.3g}", "%", f"of the {f'{run.codes} ' if run.codes else ''}codes are in use")
    if (value := run.number("generator.val_loss")) is not None:
        size = run.codes
        guess = f"; a blind guess costs {math.log(size):.2f}" if size else ""
        yield Card(f"{value:.2f}", "nats", f"per token, on pictures never seen{guess}")
    if (value := run.number("sample.seconds_per_image")) is not None:
        yield Card(f"{value:.2g}", "s", "to draw one picture")
    if (value := run.number("total_seconds")) is not None:
        yield Card(f"{value / 60:.1f}", "min", "from the first step to this page")


def explanation(run: Run) -> Section:
    steps = (("Tokenizer", about_tokenizer(run)), ("Generator", about_generator(run)), ("Samples", ABOUT_SAMPLES))
    columns = "\n".join(
        f"<div><h3><i>{number}</i>{title}</h3><p>{text}</p></div>" for number, (title, text) in enumerate(steps, 1)
    )
    return Section("What you see", "", f'<div class="steps">\n{columns}\n</div>')


def about_tokenizer(run: Run) -> str:
    config, value = run.tokenizer, run.number("tokenizer.val_psnr")
    text = "The tokenizer cuts a picture into cells and describes each by one code out of a list it made up itself."
    if config:
        size, layout, codes = config.image_size, config.layout, config.quantizer.codebook_size
        shrinkage = 24 * size * size / (layout.num_tokens * math.log2(codes))
        cells = " × ".join(map(str, layout.latent_shape))
        text = (
            f"The tokenizer cuts a picture of {size} × {size} pixels into {cells} cells and "
            f"describes each by one of {codes} codes it made up itself: {shrinkage:.0f} times less data."
        )
    text += " Its second half paints the picture again from these tokens alone."
    if value is not None:
        text += f" A PSNR of {value:.1f} dB is a typical error of {100 * 10 ** (-value / 20):.0f} % of full brightness;"
        text += " 6 dB more would halve it."
    return text


def about_generator(run: Run) -> str:
    loss = run.number("generator.val_loss")
    text = (
        "The generator is a transformer that reads the tokens so far and bets on the next one. Its loss, in nats per "
        "token, is how surprised it is by the true one."
    )
    if loss is not None:
        size = run.codes
        text += f" {loss:.2f} nats is as if it hesitated between {math.exp(min(loss, 99)):.0f} codes"
        text += f" instead of {size}." if size else "."
    return text


def reconstructions(run: Run) -> Section:
    title, path = "Reconstructions", run.pictures / "reconstructions.png"
    cells = cut(path, run)
    if cells is None or len(cells) % 2:
        return Section(title, "Originals above their reconstructions.", sheet_of(path, "reconstructions", run.room))
    before, after = (
        rearrange(rows, "rows columns c h w -> (rows columns) c h w") for rows in (cells[::2], cells[1::2])
    )
    scores = psnr(to_float(after), to_float(before)).tolist()
    pairs = [pair(*values) for values in zip(before, after, scores, strict=True)]
    text = "Pictures held back from training. Left: the original; right: painted from its tokens, with their PSNR."
    return Section(title, text, pair_grids(pairs, tile_width(before.shape[-1])))


def cut(path: Path, run: Run) -> Tensor | None:  # rows columns 3 h w
    """The pictures on a sheet; None if there is none, or if it is not laid out for pictures of the tokenizer."""
    if run.tokenizer is None or not path.is_file():
        return None
    try:
        return tiles(read_picture(path), run.tokenizer.image_size)
    except UnreadableImage:
        return None


def pair_grids(pairs: list[str], style: str) -> str:
    """Up to 16 at once, evenly spread; the others behind a click."""
    step = -(-len(pairs) // 16)
    visible, rest = pairs[::step], [one for number, one in enumerate(pairs) if number % step]
    first, others = (f'<div class="pairs"{style}>\n{"".join(some)}\n</div>' for some in (visible, rest))
    return first + (f"\n<details><summary>{len(rest)} more</summary>\n{others}\n</details>" if rest else "")


def pair(original: Tensor, reconstruction: Tensor, score: float) -> str:
    images = element(original, "original") + element(reconstruction, "reconstruction")
    return f"<figure>{images}<figcaption>{score:.1f} dB</figcaption></figure>\n"


def samples(run: Run) -> Section:
    strips = "\n".join(strip(run, str(row.get("label", "")), str(row.get("file", ""))) for row in run.samples)
    law = (("guidance", "guidance"), ("temperature", "temperature"), ("top_k", "top-k"))
    known = [f"{name} {value:g}" for key, name in law if (value := run.number(f"sample.{key}")) is not None]
    text = "Drawn by the generator, category by category" + (f", with {', '.join(known)}." if known else ".")
    return Section("Samples", text, strips)


def strip(run: Run, label: str, file: str) -> str:
    path = inside(run.pictures, file)
    cells = None if path is None else cut(path, run)
    if cells is not None:
        images = without_blanks(rearrange(cells, "rows columns c h w -> (rows columns) c h w"), keep=cells.shape[1])
        found = "".join(element(image, f"{label}, sample {number}") for number, image in enumerate(images, 1))
        content = f'<div class="tiles"{tile_width(images.shape[-1])}>{found}</div>'
    else:
        content = "" if path is None else sheet_of(path, label, run.room // len(run.samples))
    return f'<div class="strip"><h3>{escape(label)}</h3>\n{content}</div>' if content else ""


def learning(run: Run) -> Section:
    charts = [chart for name in run.trainings for chart in main_curves(run, name)]
    return Section("Learning curves", "", figures(charts, run.place.key))


def main_curves(run: Run, name: str) -> Iterator[Chart]:
    for chart in curves(run.trainings[name].log.rows, run.codes):
        if not chart.minor:
            yield replace(chart, title=f"{name.capitalize()}: {chart.title.lower()}")


def settings(run: Run) -> Section:
    blocks = "\n".join(
        folded(name.capitalize(), f"{name}/train.json", two_columns(flat(training.settings), "settings"))
        for name, training in run.trainings.items()
        if training.settings
    )
    return Section("Exact settings", "Everything the two trainings were told, by name.", blocks)


def commands(run: Run) -> Section:
    generator, tokenizer = (shlex.quote(str(run.place.folder.resolve() / name)) for name in ("generator", "tokenizer"))
    labels = [str(row.get("label", "")) for row in run.samples]
    label = "Food & Drink" if "Food & Drink" in labels else next(iter(labels), "")
    wanted = f" --label category={shlex.quote(label)}" if label else ""
    examples = (
        (
            "Draw more pictures; another seed gives others",
            f"imgtok generate --model {generator}{wanted} --num 16 --seed 1 --out samples",
        ),
        (
            "Send a photo of yours through the tokenizer and back",
            f"imgtok reconstruct photo.jpg --model {tokenizer} --out out",
        ),
        (
            "Train both on a folder of your own pictures; its sub-folders become the categories",
            "imgtok train tokenizer quickstart --data YOUR_FOLDER --out runs/tok\n"
            "imgtok train generator quickstart --tokenizer runs/tok --data YOUR_FOLDER --out runs/gen",
        ),
    )
    return Section("Try next", "", command_blocks(examples))


def footer(run: Run) -> str:
    """Who made the pictures that were learned from."""
    source = member(run.trainings["tokenizer"].settings, "data", dict).get("source", "emoji64")
    return f"<p>{ATTRIBUTION}</p>" if source == "emoji64" else ""


ABOUT_SAMPLES = (
    "A sample starts from labels alone (category, subcategory, style): the generator draws token after token, "
    "the tokenizer paints the result. Models this small, trained this briefly, get colours, shapes and styles, "
    "and lose fine detail; "
    "more steps and larger models sharpen it."
)

ATTRIBUTION = (
    "The pictures learned from are emoji: "
    '<a href="https://github.com/googlefonts/noto-emoji">Noto Color Emoji</a> (Google, Apache-2.0), '
    '<a href="https://github.com/jdecked/twemoji">Twemoji</a> (Twitter and contributors, CC-BY 4.0) and '
    '<a href="https://github.com/microsoft/fluentui-emoji">Fluent Emoji</a> (Microsoft, MIT), scaled to 64 × 64 pixels '
    "on white; see the file NOTICE of imgtok."
)
