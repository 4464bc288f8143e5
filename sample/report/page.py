"""The file itself: its parts in order, the frame around them and their looks."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path

from imgtok import __version__
from imgtok.atomic import write_text
from imgtok.sample.report.comparison import comparison
from imgtok.sample.report.find import Found, find
from imgtok.sample.report.part import Part, html, intro

MARK = '<meta name="generator" content="imgtok report">'


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes a page about all runs and evaluations in `folder` to `out`, or to `folder`/report.html; returns its path.

    The page needs nothing but itself. Pieces that are missing leave their section out. Raises ValueError if the folder
    holds nothing known, if nothing in it can be read, and if `out` is a file that is no such page.
    """
    folder = Path(folder)
    path = folder / "report.html" if out is None else Path(out)
    check_replaceable(path)
    found = find(folder)
    body = single(found) if len(found.parts) == 1 else several(found, folder)
    title = found.parts[0].title if len(found.parts) == 1 else several_title(found, folder)
    text = PAGE.format(mark=MARK, title=escape(title), style=STYLE, body=f"{body}\n{footer(found, folder)}")
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


def check_replaceable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a file for the page")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise ValueError(f"{path} is there already and is no report; choose another file")


def single(found: Found) -> str:
    (part,) = found.parts
    return "\n".join([header(part.kind, part.title, intro(part) + faults(found)), *map(html, part.sections)])


def several(found: Found, folder: Path) -> str:
    articles = map(article, found.parts)
    top = header("imgtok", several_title(found, folder), faults(found))
    return "\n".join([top, html(comparison(found.parts)), *articles])


def several_title(found: Found, folder: Path) -> str:
    return f"{folder.resolve().name}: {len(found.parts)} runs and evaluations"


def header(eyebrow: str, title: str, content: str) -> str:
    return f'<header>\n<p class="eyebrow">{escape(eyebrow)}</p>\n<h1>{escape(title)}</h1>\n{content}</header>'


def article(part: Part) -> str:
    sections = "\n".join(html(section, 3) for section in part.sections)
    return f'<article id="{part.place.key}">\n<h2>{escape(part.title)}</h2>\n{intro(part)}{sections}\n</article>'


def faults(found: Found) -> str:
    return "\n".join(f'<p class="note">Left out: {escape(fault)}</p>' for fault in found.faults)


def footer(found: Found, folder: Path) -> str:
    """Who made the pictures, and how the page comes about."""
    texts = list(dict.fromkeys(part.footer for part in found.parts if part.footer))
    line = escape(f"imgtok report {shlex.quote(str(folder.resolve()))}")
    return "\n".join(["<footer>", *texts, f"<p>Drawn by imgtok {__version__}: <code>{line}</code></p>", "</footer>"])


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{mark}
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
  --purple: #8547c4; --red: #c93a4e; --teal: #0f8290;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111419; --card: #191d24; --ink: #e9ebee; --soft: #9ba4b1; --line: #2b313b;
    --blue: #7fa7ff; --orange: #f3a95a; --green: #6fcc98; --grey: #4a5260;
    --purple: #c29bf5; --red: #f58a96; --teal: #5fc6d3;
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
.note { margin-top: 20px; padding: 10px 16px; border-left: 3px solid var(--orange); background: var(--card); }
article { margin-top: 96px; padding-top: 40px; border-top: 1px solid var(--line); }
article section { margin-top: 44px; }
article section > h3 { font-size: 1.2rem; }
h1, h2, td, figcaption { overflow-wrap: anywhere; }
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
.tiles figure { margin: 0; max-width: var(--tile); }
.sheet { margin: 0 0 16px; }
.plot img { image-rendering: auto; background: #ffffff; }
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
.legend .dashed { background: none; border-top: 3px dashed currentColor; height: 0; }
.dashed.blue { color: var(--blue); } .dashed.orange { color: var(--orange); } .dashed.green { color: var(--green); }
.dashed.purple { color: var(--purple); } .dashed.red { color: var(--red); } .dashed.teal { color: var(--teal); }
.legend .level { height: 0; border-top: 2px dashed var(--soft); border-radius: 0; }
.chart svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
.chart text { font-family: inherit !important; }
.bar { display: flex; gap: 3px; height: 12px; margin: 12px 0 24px; }
.bar i { min-width: 3px; border-radius: 3px; }
.blue { background: var(--blue); } .orange { background: var(--orange); }
.green { background: var(--green); } .grey { background: var(--grey); } .purple { background: var(--purple); }
.red { background: var(--red); } .teal { background: var(--teal); }
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
details .sheet, details .wide { margin-bottom: 18px; }
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
