"""Tables, numbers, settings and commands as the page writes them. What comes in is text, what goes out HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any


def two_columns(rows: Iterable[tuple[str, str]], kind: str) -> str:
    lines = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="{kind}">\n{lines}\n</table>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Scrolls by itself where the page is narrow."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="numbers">\n<tr>{top}</tr>\n{lines}\n</table></div>'


def folded(title: str, source: str, content: str) -> str:
    """HTML behind a click."""
    return f"<details><summary>{escape(title)} <span>{escape(source)}</span></summary>\n{content}\n</details>"


def command_blocks(commands: Iterable[tuple[str, str]]) -> str:
    """What each is for, and the line to type."""
    blocks = "\n".join(f"<p>{escape(text)}</p>\n<pre><code>{escape(line)}</code></pre>" for text, line in commands)
    return f'<div class="commands">\n{blocks}\n</div>'


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


def figure_text(value: Any, digits: int = 4) -> str:
    """A number in so many figures; other values as settings are shown, and none as nothing."""
    if not is_number(value):
        return "" if value is None else shown(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


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
    if minutes >= 120:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s"
