"""Several parts side by side: their numbers, their validation curves, and the settings that tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from imgtok.sample.report.charts import LINE_COLORS, Chart, figures, numbered
from imgtok.sample.report.curves import SCORES
from imgtok.sample.report.formatting import table
from imgtok.sample.report.part import Part, Section

MOST_LINES = 2 * len(LINE_COLORS)


def comparison(parts: list[Part]) -> Section:
    kinds = dict.fromkeys(part.kind for part in parts)
    groups = ([part for part in parts if part.kind == kind] for kind in kinds)
    return Section("Side by side", "", "\n".join(compared(group, f"c{i}") for i, group in enumerate(groups)))


def compared(parts: list[Part], key: str) -> str:
    """Those of one kind."""
    several = len(parts) > 1
    charts = figures(overlaid(parts), key) if several else ""
    different = differences(parts) if several else ""
    return f"<h3>{escape(parts[0].kind)}</h3>\n{rows(parts)}\n{charts}\n{different}"


def rows(parts: list[Part]) -> str:
    columns = list(dict.fromkeys(name for part in parts for name in part.row))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = "\n".join(
        f'<tr><td><a href="#{part.place.key}">{escape(short_name(part))}</a></td>'
        + "".join(f"<td>{escape(part.row.get(name, ''))}</td>" for name in columns)
        + "</tr>"
        for part in parts
    )
    return f'<div class="wide"><table class="numbers">\n<tr><th></th>{head}</tr>\n{lines}\n</table></div>'


def short_name(part: Part) -> str:
    return part.place.name or part.place.folder.resolve().name


def overlaid(parts: list[Part]) -> Iterator[Chart]:
    """A chart for each validation score that several have."""
    for name in dict.fromkeys(name for part in parts for name in part.validation):
        those = [part for part in parts if part.validation.get(name)][:MOST_LINES]
        title, unit, text = SCORES.get(name, (name, "score", ""))
        lines = tuple(numbered(i, short_name(part), part.validation[name], marks=True) for i, part in enumerate(those))
        if len(lines) > 1:
            yield Chart(title=f"{title}, on validation data", text=text, unit=unit, lines=lines)


def differences(parts: list[Part]) -> str:
    """A line for each setting that is not the same in all."""
    names = dict.fromkeys(name for part in parts for name in part.settings)
    different = [name for name in names if len({part.settings.get(name) for part in parts}) > 1]
    if not different:
        return ""
    lines = [(name, *(part.settings.get(name, "") for part in parts)) for name in different]
    content = table(("", *map(short_name, parts)), lines)
    return f"<details><summary>{len(lines)} settings differ</summary>\n{content}\n</details>"
