"""Evaluations, rate-distortion curves and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from imgtok.sample.report.charts import Chart, Point, figures, numbered
from imgtok.sample.report.files import dicts, member, read_typed
from imgtok.sample.report.formatting import figure_text, flat, folded, is_number, shown, table, two_columns
from imgtok.sample.report.part import Card, Part, Place, Section
from imgtok.sample.report.pictures import sheet_of

Curves = dict[str, list[dict[str, float]]]
RATES = ("bits", "bytes")
UNITS = {"psnr": ("PSNR, dB", "Higher is better."), "ssim": ("SSIM", "Higher is better.")}


def evaluation_part(place: Place) -> Part:
    """Of `imgtok evaluate`."""
    result = read_typed(place.path, dict)
    kind, recipe = f"Evaluation of {shown(result.get('kind', 'something'))}", member(result, "recipe", dict)
    scores = {name: score for name, score in member(result, "scores", dict).items() if isinstance(score, dict)}
    subject = next((shown(recipe[name]) for name in ("model", "tokenizer", "pictures") if name in recipe), "")
    parts = (
        ("Scores", FLOOR if any("floor" in score for score in scores.values()) else "", score_table(scores)),
        ("Codes", "", codebook_table(dicts(member(result, "codebooks", list)))),
        ("Tokens as a language", "", language(place, member(result, "language", dict))),
        ("Recipe", "All that the scores depend on.", recipe_block(result, recipe)),
    )
    return Part(
        place=place,
        kind=kind,
        title=f"{kind}: {place.name or place.folder.resolve().name}",
        lead=f"{subject}, {figure_text(recipe.get('images'))} images.",
        cards=tuple(Card(figure_text(score.get("value")), "", name) for name, score in list(scores.items())[:5]),
        row={"of": subject, "images": figure_text(recipe.get("images"))}
        | {name: figure_text(score.get("value")) for name, score in scores.items()},
        settings=dict(flat(recipe)),
        sections=tuple(Section(*part) for part in parts if part[2]),
    )


def recipe_block(result: dict[str, Any], recipe: dict[str, Any]) -> str:
    return facts(recipe | {"versions": member(result, "versions", dict)}, "The whole recipe", "evaluation.json")


def score_table(scores: dict[str, dict[str, Any]]) -> str:
    rows = [
        (
            name,
            figure_text(score.get("value"), 5),
            figure_text(score.get("error")),
            figure_text(score.get("floor"), 5),
            shown(score.get("error_of", "")),
        )
        for name, score in scores.items()
    ]
    return table(("score", "value", "±", "floor", "± is"), rows) if rows else ""


def codebook_table(codebooks: list[dict[str, Any]]) -> str:
    uses = [(f"codebook {i}", use) for i, use in enumerate(codebooks, 1)]
    groups = [(f"{name}: {part.get('tokens')} tokens", part) for name, use in uses for part in groups_of(use)]
    names = ("codes", "usage", "entropy", "perplexity")
    head = ("", "codes used", "share of all", "entropy, bits", "perplexity")
    rows = [(name, *(figure_text(use.get(each)) for each in names)) for name, use in [*uses, *groups]]
    return table(head, rows) if rows else ""


def groups_of(use: dict[str, Any]) -> list[dict[str, Any]]:
    return dicts(member(use, "groups", list))


def language(place: Place, statistics: dict[str, Any]) -> str:
    path = place.folder / "tokens.png"
    plot = sheet_of(path, "statistics of the tokens", place.room, plot=True) if path.is_file() else ""
    return plot + facts(statistics, "All numbers", "evaluation.json")


def facts(values: dict[str, Any], title: str, source: str) -> str:
    return folded(title, source, two_columns(flat(values), "settings")) if values else ""


def distortion_part(place: Place) -> Part:
    """Of `imgtok rate-distortion`."""
    sets = {name: value for name, value in read_typed(place.path, dict).items() if isinstance(value, dict)}
    found = {name: curves_of(value) for name, value in sets.items()}
    counts = [f"{name}: {figure_text(value.get('pictures'))} pictures" for name, value in sets.items()]
    labels = dict.fromkeys(label for curves in found.values() for label in curves)
    charts = [chart for name, curves in found.items() for chart in distortion_charts(name, curves)]
    return Part(
        place=place,
        kind="Rate and distortion",
        title=f"Rate and distortion: {place.name or place.folder.resolve().name}",
        lead=f"Token files beside picture formats; whole files are counted. {', '.join(counts)}.",
        row={"pictures": ", ".join(counts), "curves": ", ".join(labels)},
        sections=(
            Section("Curves", "Further left are smaller files.", figures(charts, place.key)),
            Section("Numbers", "", "\n".join(number_block(name, curves) for name, curves in found.items())),
        ),
    )


def number_block(name: str, curves: Curves) -> str:
    return folded(name, "rate-distortion.json", distortion_table(curves))


def curves_of(value: dict[str, Any]) -> Curves:
    curves = member(value, "curves", dict)
    return {name: list(map(numbers, dicts(curve))) for name, curve in curves.items() if isinstance(curve, list)}


def numbers(point: dict[str, Any]) -> dict[str, float]:
    """Means by name, beside other things or among them."""
    means = member(point, "means", dict) or point
    return {name: value for name, value in means.items() if is_number(value)}


def measures_of(curves: Curves) -> list[str]:
    names = dict.fromkeys(name for curve in curves.values() for point in curve for name in point)
    return [name for name in names if name not in RATES]


def distortion_charts(name: str, curves: Curves) -> Iterator[Chart]:
    for measure in measures_of(curves):
        unit, text = UNITS.get(measure, ("distance", f"{measure}: lower is better."))
        lines = tuple(
            numbered(i, label, measured(curve, measure), marks=True) for i, (label, curve) in enumerate(curves.items())
        )
        yield Chart(title=name, text=text, unit=unit, lines=lines, x="bits a pixel, log scale", log_x=True)


def measured(curve: list[dict[str, float]], name: str) -> list[Point]:
    return [(point["bits"], point[name]) for point in curve if point.get("bits", 0) > 0 and name in point]


def distortion_table(curves: Curves) -> str:
    names = ["bits", *measures_of(curves)]
    rows = [
        (label, *(figure_text(point.get(name)) for name in names)) for label, curve in curves.items() for point in curve
    ]
    return table(("", "bits a pixel", *(UNITS.get(name, (name, ""))[0] for name in names[1:])), rows)


def bench_part(place: Place) -> Part:
    """Of `imgtok bench`."""
    report = read_typed(place.path, dict)
    machine, settings = member(report, "machine", dict), member(report, "settings", dict)
    file = place.path.name
    model, found = shown(settings.get("model")), dicts(member(report, "rows", list))
    return Part(
        place=place,
        kind="Benchmark",
        title=f"Benchmark: {place.name or place.path.name}",
        lead=f"{model}, on {shown(machine.get('cpu') or machine.get('device'))}.",
        row={"model": model, "device": shown(machine.get("device")), "contenders": str(len(found))},
        settings=dict(flat(settings)),
        sections=(
            Section("Measured", "", bench_table(found)),
            Section("Circumstances", "", facts(machine, "Machine", file) + facts(settings, "Settings", file)),
        ),
    )


def bench_table(rows: list[dict[str, Any]]) -> str:
    """Columns that say something of any row."""
    every = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in every if any(row.get(name) is not None for row in rows)]
    cells = [[figure_text(row.get(name)) for name in names] for row in rows]
    return table([name.replace("_", " ") for name in names], cells)


FLOOR = "The floor is what real pictures of the other split score in their place."
