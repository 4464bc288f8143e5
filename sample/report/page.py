"""The file itself: its sections in order, the frame around them and their looks."""

from __future__ import annotations

from html import escape
from pathlib import Path

from imgtok.atomic import write_text
from imgtok.sample.report.charts import curves
from imgtok.sample.report.pictures import reconstructions, samples
from imgtok.sample.report.run import read_run
from imgtok.sample.report.sections import commands, explanation, footer, header, headline, settings
from imgtok.sample.report.timings import timings


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
