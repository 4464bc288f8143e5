"""The learning curves: what they show, and how matplotlib draws them in the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from imgtok.sample.report.formatting import is_number, section
from imgtok.sample.report.run import Run, codebook_size

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


def curves(run: Run) -> str:
    charts = "\n".join(figure(chart) for chart in charts_of(run) if any(line.points for line in chart.lines))
    return section("Learning curves", "", f'<div class="charts">\n{charts}\n</div>') if charts else ""


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


def figure(chart: Chart) -> str:
    names = [(line.color, line.label) for line in chart.lines if line.points] + (
        [("level", chart.level[0])] if chart.level else []
    )
    legend = "".join(f'<span><i class="dot {color}"></i>{escape(name)}</span>' for color, name in names)
    head = f"<h3>{escape(chart.title)}</h3><p>{escape(chart.text)}</p>"
    return f'<figure class="chart">{head}\n<div class="legend">{legend}</div>\n{svg(chart)}</figure>'


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
