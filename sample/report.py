"""The page that a quickstart ends with: one HTML file that holds its pictures, curves and settings."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor

from imgtok.atomic import write_text
from imgtok.config import from_dict, read_json
from imgtok.data import png_bytes, read_picture, to_float
from imgtok.metrics.image import psnr
from imgtok.tokenizer import TokenizerConfig

PADDING = 2  # of the sheets that imgtok.data.grid lays out
PAGE_WIDTH = 1100  # in pixels, of what the page shows


@dataclass(frozen=True)
class Run:
    """What a quickstart folder holds; a missing piece is empty."""

    folder: Path
    metrics: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    """Of the trainings "tokenizer" and "generator"."""
    logs: dict[str, list[dict[str, Any]]]
    samples: list[dict[str, Any]]
    """Label and file of each category's strip."""

    def number(self, name: str) -> float | None:
        """A finite number of the metrics by its dotted name."""
        value: Any = self.metrics
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value if is_number(value) else None

    @property
    def tokenizer(self) -> TokenizerConfig | None:
        try:
            return from_dict(TokenizerConfig, self.settings["tokenizer"]["tokenizer"])
        except (KeyError, ValueError):  # not there, or written by another version
            return None


def write_report(folder: Path) -> Path:
    """Writes `folder`/report.html about the quickstart in `folder`; it needs nothing but itself. Pieces that are
    missing leave their section out.

    Raises ValueError if metrics.json is missing, and for broken files.
    """
    folder = Path(folder)
    run = read_run(folder)
    sections = (explanation, reconstructions, samples, curves, timings, settings, commands)
    body = "\n".join(part for part in (header(run), *(make(run) for make in sections), footer(run)) if part)
    path = folder / "report.html"
    write_text(path, PAGE.format(title=escape(headline(run)), style=STYLE, body=body))
    return path


def read_run(folder: Path) -> Run:
    if not (folder / "metrics.json").is_file():
        raise ValueError(f"{folder} has no metrics.json, so it is no finished quickstart; run imgtok quickstart first")
    names = ("tokenizer", "generator")
    return Run(
        folder=folder,
        metrics=read_typed(folder / "metrics.json", dict),
        settings={name: read_typed(folder / name / "train.json", dict) for name in names},
        logs={name: read_log(folder / name / "log.jsonl") for name in names},
        samples=[row for row in read_typed(folder / "pictures" / "samples.json", list) if isinstance(row, dict)],
    )


def read_typed(path: Path, kind: type) -> Any:
    """The JSON in a file, which must be a `kind`; an empty one if there is no file."""
    if not path.is_file():
        return kind()
    content = read_json(path)
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def read_log(path: Path) -> list[dict[str, Any]]:
    """Up to the first line that is no JSON: one cut short by a crash."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [row for row in rows if isinstance(row, dict)]


# Sections: each is HTML, or empty if there is nothing to show.


def headline(run: Run) -> str:
    total = run.number("total_seconds")
    if total is None:
        return "Pictures from tokens"
    return f"Pictures from tokens, learned in {total / 60:.{0 if total >= 120 else 1}f} minutes"


def header(run: Run) -> str:
    cards = "\n".join(
        f'<div class="card"><b>{value}<small>{unit}</small></b><span>{caption}</span></div>'
        for value, unit, caption in headline_numbers(run)
    )
    return f"""<header>
<p class="eyebrow">imgtok quickstart</p>
<h1>{escape(headline(run))}</h1>
<p class="lead">{summary(run)}</p>
<div class="cards">
{cards}
</div>
</header>"""


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
    name = {"cpu": "a CPU", "cuda": "a GPU", "mps": "an Apple GPU"}.get(device.partition(":")[0], escape(device))
    return f", all on {name}" + (f" with {threads:g} threads" if device == "cpu" and threads else "")


def headline_numbers(run: Run) -> Iterator[tuple[str, str, str]]:
    """Value, unit and meaning, of what was measured."""
    if (value := run.number("tokenizer.val_psnr")) is not None:
        yield f"{value:.1f}", "dB", "PSNR of pictures rebuilt from tokens, never seen in training"
    if (value := run.number("tokenizer.code_usage")) is not None:
        yield f"{100 * value:.3g}", "%", f"of the {codebook(run)}codes are in use"
    if (value := run.number("generator.val_loss")) is not None:
        size = codebook_size(run)
        guess = f"; a blind guess costs {math.log(size):.2f}" if size else ""
        yield f"{value:.2f}", "nats", f"per token, on pictures never seen{guess}"
    if (value := run.number("sample.seconds_per_image")) is not None:
        yield f"{value:.2g}", "s", "to draw one picture"
    if (value := run.number("total_seconds")) is not None:
        yield f"{value / 60:.1f}", "min", "from the first step to this page"


def explanation(run: Run) -> str:
    steps = (("Tokenizer", about_tokenizer(run)), ("Generator", about_generator(run)), ("Samples", ABOUT_SAMPLES))
    columns = "\n".join(
        f"<div><h3><i>{number}</i>{title}</h3><p>{text}</p></div>" for number, (title, text) in enumerate(steps, 1)
    )
    return section("What you see", "", f'<div class="steps">\n{columns}\n</div>')


def about_tokenizer(run: Run) -> str:
    config, value = run.tokenizer, run.number("tokenizer.val_psnr")
    text = "The tokenizer cuts a picture into cells and describes each by one code out of a list it made up itself."
    if config:
        size, layout, codes = config.image_size, config.layout, config.quantizer.codebook_size
        shrinkage = 24 * size * size / (layout.num_tokens * math.log2(codes))
        text = (
            f"The tokenizer cuts a picture of {size} × {size} pixels into {layout.height} × {layout.width} cells and "
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
        size = codebook_size(run)
        text += f" {loss:.2f} nats is as if it hesitated between {math.exp(min(loss, 99)):.0f} codes"
        text += f" instead of {size}." if size else "."
    return text


def reconstructions(run: Run) -> str:
    path = run.folder / "pictures" / "reconstructions.png"
    if not path.is_file():
        return ""
    sheet = read_picture(path)
    cells = tiles(sheet, run)
    if cells is None or len(cells) % 2:
        return section("Reconstructions", "Originals above their reconstructions.", whole(sheet, "reconstructions"))
    before, after = (
        rearrange(rows, "rows columns c h w -> (rows columns) c h w") for rows in (cells[::2], cells[1::2])
    )
    scores = psnr(to_float(after), to_float(before)).tolist()
    pairs = [pair(*values) for values in zip(before, after, scores, strict=True)]
    text = "Pictures held back from training. Left: the original; right: painted from its tokens, with their PSNR."
    return section("Reconstructions", text, pair_grids(pairs, tile_width(before)))


def pair_grids(pairs: list[str], style: str) -> str:
    """Up to 16 at once, evenly spread; the others behind a click."""
    step = -(-len(pairs) // 16)
    visible, rest = pairs[::step], [one for number, one in enumerate(pairs) if number % step]
    first, others = (f'<div class="pairs"{style}>\n{"".join(some)}\n</div>' for some in (visible, rest))
    return first + (f"\n<details><summary>{len(rest)} more</summary>\n{others}\n</details>" if rest else "")


def pair(original: Tensor, reconstruction: Tensor, score: float) -> str:
    images = picture(original, "original") + picture(reconstruction, "reconstruction")
    return f"<figure>{images}<figcaption>{score:.1f} dB</figcaption></figure>\n"


def samples(run: Run) -> str:
    strips = "\n".join(strip(run, str(row.get("label", "")), str(row.get("file", ""))) for row in run.samples)
    law = (("guidance", "guidance"), ("temperature", "temperature"), ("top_k", "top-k"))
    known = [f"{name} {value:g}" for key, name in law if (value := run.number(f"sample.{key}")) is not None]
    text = "Drawn by the generator, category by category" + (f", with {', '.join(known)}." if known else ".")
    return section("Samples", text, strips) if strips.strip() else ""


def strip(run: Run, label: str, file: str) -> str:
    path = run.folder / "pictures" / file
    if not path.is_file():
        return ""
    return f'<div class="strip"><h3>{escape(label)}</h3>\n{strip_pictures(read_picture(path), label, run)}</div>'


def strip_pictures(sheet: Tensor, label: str, run: Run) -> str:
    cells = tiles(sheet, run)
    if cells is None:
        return whole(sheet, label)
    images = without_blanks(rearrange(cells, "rows columns c h w -> (rows columns) c h w"), keep=cells.shape[1])
    pictures = "".join(picture(image, f"{label}, sample {number}") for number, image in enumerate(images, 1))
    return f'<div class="tiles"{tile_width(images)}>{pictures}</div>'


def curves(run: Run) -> str:
    charts = "\n".join(figure(chart) for chart in charts_of(run) if any(line.points for line in chart.lines))
    return section("Learning curves", "", f'<div class="charts">\n{charts}\n</div>') if charts else ""


def figure(chart: Chart) -> str:
    names = [(line.color, line.label) for line in chart.lines if line.points] + (
        [("level", chart.level[0])] if chart.level else []
    )
    legend = "".join(f'<span><i class="dot {color}"></i>{escape(name)}</span>' for color, name in names)
    head = f"<h3>{escape(chart.title)}</h3><p>{escape(chart.text)}</p>"
    return f'<figure class="chart">{head}\n<div class="legend">{legend}</div>\n{svg(chart)}</figure>'


def timings(run: Run) -> str:
    stages = [stage for stage in stages_of(run) if stage.seconds is not None]
    total = run.number("total_seconds")
    rows = "\n".join(map(stage_row, stages))
    head = "<tr><th>Stage</th><th>Time</th><th>Work</th><th>Speed</th><th>Parameters</th></tr>"
    foot = f'<tr class="total"><td>All</td><td colspan="4">{duration(total)}</td></tr>' if total is not None else ""
    table = f'<div class="wide"><table class="numbers">\n{head}\n{rows}\n{foot}\n</table></div>' if stages else ""
    return section("Where the time went", "", time_bar(stages, total) + table + facts(run))


def stage_row(stage: Stage) -> str:
    cells = (duration(stage.seconds), stage.work, stage.speed, short(stage.parameters))
    name = f'<td><i class="dot {stage.color}"></i>{stage.name}</td>'
    return "<tr>" + name + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def time_bar(stages: Sequence[Stage], total: float | None) -> str:
    """The stages side by side, as wide as they are long."""
    if not stages or not total:
        return ""
    parts = "".join(
        f'<i class="{stage.color}" style="flex-grow:{(stage.seconds or 0) / total:.4f}"></i>' for stage in stages
    )
    return f'<div class="bar" aria-hidden="true">{parts}</div>\n'


def facts(run: Run) -> str:
    """The circumstances, one a line."""
    versions = run.metrics.get("versions")
    rows = {name.capitalize(): run.metrics.get(name) for name in ("machine", "device", "threads", "seed", "command")}
    rows["Versions"] = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else None
    known = {name: shown(value) for name, value in rows.items() if value is not None}
    return f"\n<h3>The run</h3>\n{two_columns(known.items(), 'facts')}" if known else ""


def settings(run: Run) -> str:
    blocks = "\n".join(
        f"<details><summary>{name.capitalize()} <span>{name}/train.json</span></summary>\n"
        f"{two_columns(flat(values), 'settings')}\n</details>"
        for name, values in run.settings.items()
        if values
    )
    text = "Everything the two trainings were told, by name."
    return section("Exact settings", text, blocks) if blocks else ""


def commands(run: Run) -> str:
    generator, tokenizer = (shlex.quote(str(run.folder.resolve() / name)) for name in ("generator", "tokenizer"))
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
    blocks = "\n".join(f"<p>{escape(text)}</p>\n<pre><code>{escape(line)}</code></pre>" for text, line in examples)
    return section("Try next", "", f'<div class="commands">\n{blocks}\n</div>')


def footer(run: Run) -> str:
    data = run.settings["tokenizer"].get("data")
    source = data.get("source", "emoji64") if isinstance(data, dict) else "emoji64"
    return f"<footer><p>{ATTRIBUTION}</p></footer>" if source == "emoji64" else ""


def section(title: str, text: str, content: str) -> str:
    lead = f'<p class="lead">{escape(text)}</p>\n' if text else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead}{content}\n</section>"


# Pictures


def tiles(sheet: Tensor, run: Run) -> Tensor | None:  # 3 H W -> rows columns 3 h w
    """The pictures that `imgtok.data.grid` has laid out on a sheet; None if it does not look like one."""
    if run.tokenizer is None:
        return None
    size = run.tokenizer.image_size
    pitch = size + PADDING
    if any(side < pitch or (side - PADDING) % pitch for side in sheet.shape[1:]):
        return None
    inner = sheet[:, PADDING:, PADDING:]
    cells = rearrange(inner, "c (rows h) (columns w) -> rows columns c h w", h=pitch, w=pitch)
    return cells[..., :size, :size]


def without_blanks(images: Tensor, keep: int) -> Tensor:
    """Without the white places at the end, where a sheet's last row was not full; the first `keep` are never blank."""
    number = len(images)
    while number > keep and bool((images[number - 1] == 255).all()):
        number -= 1
    return images[:number]


def picture(image: Tensor, text: str) -> str:
    """An <img> that holds its file (uint8 3 h w)."""
    height, width = image.shape[1:]
    data = base64.b64encode(png_bytes(image.contiguous())).decode("ascii")
    source = f'src="data:image/png;base64,{data}"'
    return f'<img {source} width="{width}" height="{height}" alt="{escape(text)}">'


def whole(sheet: Tensor, text: str) -> str:
    """A sheet as it is, twice as large if it fits the page."""
    width = sheet.shape[2] * (2 if sheet.shape[2] <= PAGE_WIDTH // 2 else 1)
    return f'<div class="sheet" style="max-width:{width}px">{picture(sheet, text)}</div>'


def tile_width(images: Tensor) -> str:
    """The attribute that says how wide pictures are shown: small ones enlarged by a whole number."""
    size = images.shape[-1]
    return f' style="--tile:{size * max(1, 128 // size)}px"'


# Curves

# What matplotlib draws in these colours takes the page's, light or dark.
COLORS = {"soft": "#010203", "line": "#010204", "blue": "#010205", "orange": "#010206"}


@dataclass(frozen=True)
class Line:
    label: str
    points: list[tuple[float, float]]
    color: str
    """Of `COLORS`."""
    marks: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    name: str
    """Unique on the page."""
    title: str
    text: str
    unit: str
    lines: tuple[Line, ...]
    level: tuple[str, float] | None = None
    """A horizontal line to compare with, and its label."""
    log: bool = False


def charts_of(run: Run) -> tuple[Chart, ...]:
    tokenizer, generator, size = run.logs["tokenizer"], run.logs["generator"], codebook_size(run)
    validation = points(generator, "val_loss")
    return (
        Chart(
            name="error",
            title="Tokenizer: error",
            text="Absolute plus squared difference to the picture, while training. Lower is better.",
            unit="L1 + L2, log scale",
            lines=(Line("training", points(tokenizer, "l1", "l2"), "blue"),),
            log=True,
        ),
        Chart(
            name="psnr",
            title="Tokenizer: quality",
            text="Reconstructions of pictures never seen in training. Higher is better.",
            unit="PSNR, dB",
            lines=(Line("validation", points(tokenizer, "val_psnr"), "orange", marks=True),),
        ),
        Chart(
            name="codes",
            title="Tokenizer: codes in use",
            text="Perplexity: how many equally popular codes would carry as much information.",
            unit="codes",
            lines=(
                Line("training, per batch", points(tokenizer, "perplexity"), "blue"),
                Line("validation", points(tokenizer, "code_perplexity"), "orange", marks=True),
            ),
            level=(f"all {size} codes", size) if size else None,
        ),
        Chart(
            name="loss",
            title="Generator: surprise",
            text="Cross-entropy of the next token. Lower is better." + EASIER * bool(validation),
            unit="nats per token",
            lines=(
                Line("training", points(generator, "loss"), "blue"),
                Line("validation", validation, "orange", marks=True),
            ),
            level=(f"blind guess, ln {size}", math.log(size)) if size else None,
        ),
    )


def points(rows: Iterable[dict[str, Any]], *names: str) -> list[tuple[float, float]]:
    """Step and the sum of the named numbers, of the rows that have all of them."""
    chosen = (row for row in rows if all(is_number(row.get(name)) for name in ("step", *names)))
    return [(row["step"], sum(row[name] for name in names)) for row in chosen]


def svg(chart: Chart) -> str:
    """The chart as an element of the page: its colours and font, ids of its own, the same bytes every time."""
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.style.context(["default", CHART_STYLE, {"svg.hashsalt": chart.name}]):
        canvas = Figure(figsize=(4.4, 2.5), layout="constrained")
        draw(canvas.add_subplot(), chart)
        canvas.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    return embedded(buffer.getvalue(), chart)


def draw(axes: Any, chart: Chart) -> None:
    for line in chart.lines:
        steps, values = [step for step, _ in line.points], [value for _, value in line.points]
        axes.plot(steps, values, color=COLORS[line.color], marker="o" if line.marks or len(steps) < 3 else "")
    if chart.level:
        axes.axhline(chart.level[1], color=COLORS["soft"], linewidth=0.9, linestyle=(0, (4, 3)))
    if chart.log:
        use_log_scale(axes)
    axes.margins(x=0.03, y=0.08)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("step", loc="right")
    axes.set_title(chart.unit, loc="left")
    axes.tick_params(length=0)


def use_log_scale(axes: Any) -> None:
    """With plain numbers at the ticks, and enough of them where the values span little."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 3)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def embedded(document: str, chart: Chart) -> str:
    """The <svg> of a matplotlib document, without what belongs to a file of its own."""
    element = document[document.index("<svg") :].replace("xlink:href", "href").strip()
    box = re.search(r'viewBox="[^"]*"', element)
    assert box is not None
    element = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{escape(chart.title)}">', element, count=1)
    element = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", element, count=1, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{chart.name}-", element)
    for name, drawn in COLORS.items():
        element = element.replace(drawn, f"var(--{name})")
    return element


EASIER = " Validation is easier: no dropout, averaged weights, all labels."
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
CHART_STYLE = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": COLORS["soft"],
    "axes.labelcolor": COLORS["soft"],
    "xtick.labelcolor": COLORS["soft"],
    "ytick.labelcolor": COLORS["soft"],
    "axes.edgecolor": COLORS["line"],
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.7,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
}


# Timings


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    work: str
    parameters: float | None
    speed: str
    seconds: float | None
    color: str


def stages_of(run: Run) -> list[Stage]:
    trainings = (
        ("tokenizer", "Training the tokenizer", "blue", "images_per_second", "pictures / s"),
        ("generator", "Training the generator", "orange", "sequences_per_second", "pictures / s"),
    )
    stages = [
        Stage(
            name=name,
            work=counted(run.number(f"{key}.steps"), "steps"),
            parameters=run.number(f"{key}.parameters"),
            speed=counted(run.number(f"{key}.{rate}"), unit),
            seconds=run.number(f"{key}.seconds"),
            color=color,
        )
        for key, name, color, rate, unit in trainings
    ]
    return [*stages, sampling(run), *remainder(run)]


def sampling(run: Run) -> Stage:
    return Stage(
        name="Drawing samples",
        work=counted(run.number("sample.images"), "pictures"),
        parameters=None,
        speed=counted(run.number("sample.seconds_per_image"), "s / picture"),
        seconds=run.number("sample.seconds"),
        color="green",
    )


def remainder(run: Run) -> list[Stage]:
    """What the total holds beyond the stages."""
    parts = [run.number(f"{name}.seconds") for name in ("tokenizer", "generator", "sample")]
    rest = (run.number("total_seconds") or 0) - sum(part or 0 for part in parts)
    if None in parts or rest <= 0:
        return []
    work = "reading data, encoding tokens, writing"
    return [Stage(name="The rest", work=work, parameters=None, speed="", seconds=rest, color="grey")]


# Small things


def codebook_size(run: Run) -> int | None:
    return run.tokenizer.quantizer.codebook_size if run.tokenizer else None


def codebook(run: Run) -> str:
    """The number of codes and a space; empty if not known."""
    return f"{codebook_size(run)} " if run.tokenizer else ""


def two_columns(rows: Iterable[tuple[str, str]], kind: str) -> str:
    lines = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="{kind}">\n{lines}\n</table>'


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values; a configuration's class stands beside the name of its place."""
    for key, value in values.items():
        name = prefix.removesuffix(".") if key == "type" and prefix else prefix + key
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield name, shown(value)


def shown(value: Any) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def counted(value: float | None, unit: str) -> str:
    """As "1,200 steps"; empty if not known."""
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def short(value: float | None) -> str:
    """As "1.42 M"; empty if not known."""
    if value is None:
        return ""
    scale, unit = next((pair for pair in ((1e9, " B"), (1e6, " M"), (1e3, " k")) if value >= pair[0]), (1, ""))
    return f"{value / scale:.3g}{unit}"


def duration(seconds: float | None) -> str:
    """As "5 min 0 s" or "2.0 s"; empty if not known."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


# The page

ATTRIBUTION = (
    "The pictures learned from are emoji: "
    '<a href="https://github.com/googlefonts/noto-emoji">Noto Color Emoji</a> (Google, Apache-2.0), '
    '<a href="https://github.com/jdecked/twemoji">Twemoji</a> (Twitter and contributors, CC-BY 4.0) and '
    '<a href="https://github.com/microsoft/fluentui-emoji">Fluent Emoji</a> (Microsoft, MIT), scaled to 64 × 64 pixels '
    "on white; see the file NOTICE of imgtok."
)

ABOUT_SAMPLES = (
    "A sample starts from nothing but a category: the generator draws token after token by chance, and the tokenizer "
    "paints the result. Models this small, trained this briefly, get colours, shapes and styles, and lose fine detail; "
    "more steps and larger models sharpen it."
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root {
  --page: #faf9f6; --card: #ffffff; --ink: #1b1f26; --soft: #626a76; --line: #e5e2da;
  --blue: #2f62d9; --orange: #cc6a10; --green: #2c8d5a; --grey: #c9c5bb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111419; --card: #191d24; --ink: #e9ebee; --soft: #9ba4b1; --line: #2b313b;
    --blue: #7fa7ff; --orange: #f3a95a; --green: #6fcc98; --grey: #4a5260;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
main { max-width: 1148px; margin: 0 auto; padding: 72px 24px 64px; }
section { margin-top: 80px; }
h1 {
  font-size: clamp(1.9rem, 4.6vw, 2.9rem); line-height: 1.12; letter-spacing: -0.025em; margin: 0 0 20px;
  text-wrap: balance;
}
h2 { font-size: 1.6rem; line-height: 1.25; letter-spacing: -0.015em; margin: 0 0 12px; }
h3 { font-size: 1rem; line-height: 1.4; margin: 28px 0 10px; }
p { margin: 0; }
.eyebrow { color: var(--blue); font-weight: 600; margin-bottom: 12px; }
.lead { color: var(--soft); max-width: 52em; text-wrap: pretty; }
header .lead { font-size: 1.15rem; text-wrap: balance; }
section > .lead { margin-bottom: 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px; margin-top: 40px; }
.card, .chart, details, pre { background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.card { padding: 20px 20px 18px; }
.card b { display: block; font-size: 2.3rem; line-height: 1.1; letter-spacing: -0.03em; font-weight: 650; }
.card small { font-size: 1rem; letter-spacing: 0; font-weight: 500; color: var(--soft); margin-left: 5px; }
.card span { display: block; margin-top: 8px; font-size: 0.875rem; line-height: 1.45; color: var(--soft); }
.steps { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 16px 40px; }
.steps h3 { margin: 12px 0 8px; display: flex; align-items: center; gap: 10px; font-size: 1.1rem; }
.steps h3 i {
  width: 26px; height: 26px; border-radius: 50%; background: var(--blue); color: var(--page);
  font: 600 0.85rem/26px system-ui, sans-serif; text-align: center;
}
.steps p { color: var(--soft); text-wrap: pretty; }
img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.strip { display: grid; grid-template-columns: 232px minmax(0, 1fr); gap: 8px 40px; }
.strip { padding: 22px 0; border-top: 1px solid var(--line); }
.strip h3 { margin: 4px 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(var(--tile), 21%), 1fr)); gap: 10px; }
.tiles img { max-width: var(--tile); border-radius: 10px; }
.tiles img, .pairs img, .sheet img { box-shadow: 0 0 0 1px var(--line); }
.pairs {
  display: grid; gap: 20px 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(2 * var(--tile) + 2px, 46%), 1fr));
}
.pairs figure {
  display: grid; grid-template-columns: 1fr 1fr; gap: 0 2px; margin: 0; max-width: calc(2 * var(--tile) + 2px);
}
.pairs img:first-child { border-radius: 10px 0 0 10px; }
.pairs img + img { border-radius: 0 10px 10px 0; }
.pairs figcaption { grid-column: 1 / 3; text-align: right; }
figcaption { font-size: 0.8rem; color: var(--soft); font-variant-numeric: tabular-nums; padding: 4px 2px 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 16px; }
.chart { margin: 0; padding: 20px 22px 14px; min-width: 0; display: flex; flex-direction: column; }
.chart h3 { margin: 0 0 2px; }
.chart p { font-size: 0.875rem; line-height: 1.45; color: var(--soft); margin-bottom: 10px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 18px; margin: auto 0 10px; font-size: 0.875rem; }
.legend .dot { width: 14px; height: 4px; vertical-align: middle; margin-right: 8px; }
.legend .level { height: 0; border-top: 2px dashed var(--soft); border-radius: 0; }
.chart svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
.chart text { font-family: inherit !important; }
.bar { display: flex; gap: 3px; height: 12px; margin: 12px 0 24px; }
.bar i { min-width: 3px; border-radius: 3px; }
.blue { background: var(--blue); } .orange { background: var(--orange); }
.green { background: var(--green); } .grey { background: var(--grey); }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 10px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.925rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 9px 24px 9px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); }
.numbers th, .numbers td { white-space: nowrap; }
.numbers .total td { font-weight: 650; border-bottom: 0; }
.facts th { width: 20%; } .settings th { width: 45%; }
.facts td, .settings td, .settings th { overflow-wrap: anywhere; padding-right: 0; }
.settings th, .settings td { padding: 5px 16px 5px 0; }
.settings, pre, summary span { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.settings { font-size: 0.8rem; margin: 4px 0 10px; }
details { padding: 0 22px; margin-top: 12px; }
summary { cursor: pointer; padding: 14px 0; font-weight: 600; }
summary span { font-size: 0.8rem; font-weight: 400; color: var(--soft); margin-left: 8px; }
.commands p { margin: 22px 0 8px; }
pre { margin: 0; padding: 16px 20px; overflow-x: auto; font-size: 0.85rem; line-height: 1.7; }
code { font: inherit; }
footer {
  margin-top: 80px; padding-top: 24px; border-top: 1px solid var(--line); font-size: 0.85rem; color: var(--soft);
}
a { color: inherit; text-underline-offset: 2px; }
details .pairs { padding: 6px 0 18px; }
@media (max-width: 600px) {
  main { padding: 40px 18px 48px; }
  section { margin-top: 56px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 10px; }
  .card { padding: 16px; }
  .card:last-child:nth-child(odd) { grid-column: 1 / 3; }
  .card b { font-size: 1.8rem; }
  .strip { grid-template-columns: minmax(0, 1fr); padding: 16px 0; }
  .tiles { gap: 6px; }
  .pairs { gap: 14px 12px; }
  .chart { padding: 16px 14px 10px; }
  .chart svg { overflow: visible; }
  .chart text { font-size: 10px !important; }
  .facts th { width: 30%; padding-right: 12px; }
  .settings th { width: 62%; }
}
"""
