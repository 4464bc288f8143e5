"""Charts: numbers over a common axis, as matplotlib draws them in the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from imgtok.sample.report.formatting import is_number

LINE_COLORS = ("blue", "orange", "green", "purple", "red", "teal")
# What matplotlib draws in these colours takes the page's, light or dark.
COLORS = {name: f"#0102{number:02x}" for number, name in enumerate(("soft", "line", *LINE_COLORS), 3)}
MOST_POINTS = 400
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    label: str
    points: list[Point]
    color: str
    """Of `COLORS`."""
    marks: bool = False
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    title: str
    text: str = ""
    unit: str
    """Of the numbers; never text that was given, which matplotlib could take for formulas."""
    lines: tuple[Line, ...]
    x: str = "step"
    level: tuple[str, float] | None = None
    """A horizontal line to compare with, and its label."""
    log: bool = False
    log_x: bool = False
    minor: bool = False
    """Not worth a place where there are many."""


def figures(charts: Iterable[Chart], key: str) -> str:
    """Those that have something to show, side by side. `key` is unique on the page."""
    shown = [chart for chart in charts if any(line.points for line in chart.lines)]
    blocks = "\n".join(figure(chart, f"{key}-{number}") for number, chart in enumerate(shown))
    return f'<div class="charts">\n{blocks}\n</div>' if blocks else ""


def points(rows: Iterable[dict[str, Any]], name: str) -> list[Point]:
    """Step and the named number, of the rows that have both."""
    return [(row["step"], row[name]) for row in rows if is_number(row.get("step")) and is_number(row.get(name))]


def numbered(number: int, label: str, found: list[Point], *, marks: bool = False) -> Line:
    """A line in a colour of its own, dashed when they begin again."""
    color = LINE_COLORS[number % len(LINE_COLORS)]
    return Line(label, found, color, marks, dashed=number >= len(LINE_COLORS))


def thinned(found: list[Point]) -> list[Point]:
    """At most `MOST_POINTS`: means of as many neighbours each; what is too little for that stays."""
    many = -(-len(found) // MOST_POINTS)
    groups = [found[i : i + many] for i in range(0, len(found), max(many, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def spans_widely(lines: Iterable[Line]) -> bool:
    """Whether a log scale shows these better: all positive, some 20 times as large as others."""
    values = [value for line in lines for _, value in line.points]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def figure(chart: Chart, key: str) -> str:
    names = [(f"{line.color}{' dashed' * line.dashed}", line.label) for line in chart.lines if line.points]
    names += [("level", chart.level[0])] if chart.level else []
    legend = "".join(f'<span><i class="dot {color}"></i>{escape(name)}</span>' for color, name in names)
    text = f"<p>{escape(chart.text)}</p>" if chart.text else ""
    head = f"<h3>{escape(chart.title)}</h3>{text}"
    return f'<figure class="chart">{head}\n<div class="legend">{legend}</div>\n{svg(chart, key)}</figure>'


def svg(chart: Chart, key: str) -> str:
    """The chart as an element of the page: its colours and font, ids of its own, the same bytes every time."""
    import matplotlib.style
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.style.context(["default", CHART_STYLE, {"svg.hashsalt": key}]):
        canvas = Figure(figsize=(4.4, 2.5), layout="constrained")
        draw(canvas.add_subplot(), chart)
        canvas.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    return embedded(buffer.getvalue(), chart, key)


def draw(axes: Any, chart: Chart) -> None:
    for line in chart.lines:
        found = thinned(line.points)
        style = {"marker": "o" if line.marks or len(found) < 3 else "", "linestyle": "--" if line.dashed else "-"}
        axes.plot([x for x, _ in found], [y for _, y in found], color=COLORS[line.color], **style)
    if chart.level:
        axes.axhline(chart.level[1], color=COLORS["soft"], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.margins(x=0.03, y=0.08)
    if chart.log:
        use_log_scale(axes.yaxis, axes.set_yscale, axes.get_ylim)
    if chart.log_x:
        use_log_scale(axes.xaxis, axes.set_xscale, axes.get_xlim)
    else:
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(chart.x, loc="right")
    axes.set_title(chart.unit + ", log scale" * chart.log, loc="left")
    axes.tick_params(length=0)


def use_log_scale(axis: Any, set_scale: Any, limits: Any) -> None:
    """With plain numbers at the ticks, and enough of them where the values span little."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    set_scale("log")
    low, high = limits()
    fine = (1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 3) if high < 1000 * low else (1,)
    axis.set_major_locator(LogLocator(subs=fine))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def embedded(document: str, chart: Chart, key: str) -> str:
    """The <svg> of a matplotlib document, without what belongs to a file of its own."""
    element = document[document.index("<svg") :].replace("xlink:href", "href").strip()
    box = re.search(r'viewBox="[^"]*"', element)
    assert box is not None
    element = re.sub(r"<svg[^>]*>", f'<svg {box[0]} role="img" aria-label="{escape(chart.title)}">', element, count=1)
    element = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", element, count=1, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", element)
    for name, drawn in COLORS.items():
        element = element.replace(drawn, f"var(--{name})")
    return element


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
