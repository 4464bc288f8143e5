"""Where the time went: the stages of a quickstart, and the circumstances of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imgtok.sample.report.formatting import counted, duration, short, shown, two_columns
from imgtok.sample.report.part import Section
from imgtok.sample.report.run import Run


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    work: str
    parameters: float | None
    speed: str
    seconds: float | None
    color: str


def timings(run: Run) -> Section:
    stages = [stage for stage in stages_of(run) if stage.seconds is not None]
    total = run.number("total_seconds")
    rows = "\n".join(map(stage_row, stages))
    head = "<tr><th>Stage</th><th>Time</th><th>Work</th><th>Speed</th><th>Parameters</th></tr>"
    foot = f'<tr class="total"><td>All</td><td colspan="4">{duration(total)}</td></tr>' if total is not None else ""
    table = f'<div class="wide"><table class="numbers">\n{head}\n{rows}\n{foot}\n</table></div>' if stages else ""
    return Section("Where the time went", "", time_bar(stages, total) + table + facts(run))


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
