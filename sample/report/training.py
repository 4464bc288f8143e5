"""A training run: its settings, its log and its previews."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtok.config import from_dict, to_dict
from imgtok.sample.report.charts import figures, points
from imgtok.sample.report.curves import SCORES, curves, score_names
from imgtok.sample.report.files import Log, member, read_log, read_typed
from imgtok.sample.report.formatting import (
    command_blocks,
    counted,
    duration,
    figure_text,
    flat,
    folded,
    shown,
    two_columns,
)
from imgtok.sample.report.part import Card, Part, Place, Section
from imgtok.sample.report.pictures import progress
from imgtok.tokenizer import TokenizerConfig

KINDS = {"tokenizer": "Tokenizer training", "generator": "Generator training", "decoder": "Decoder training"}


@dataclass(frozen=True, kw_only=True)
class Training:
    folder: Path
    settings: dict[str, Any]
    log: Log

    @property
    def kind(self) -> str:
        """A decoder is trained alone, with the rest of a tokenizer as it was: its settings name no model."""
        named = {"tokenizer": "tokenizer", "model": "generator"}
        return next((kind for name, kind in named.items() if name in self.settings), "decoder")

    @property
    def tokenizer(self) -> TokenizerConfig | None:
        """The one that is trained, or whose tokens are learned; None if it is not there or of another version."""
        path = self.folder / ("tokenizer/config.json" if self.kind == "generator" else "config.json")
        try:
            return from_dict(TokenizerConfig, self.settings.get("tokenizer") or read_typed(path, dict))
        except ValueError:
            return None

    @property
    def codes(self) -> int | None:
        return (self.tokenizer.quantizer.codebook_size or None) if self.tokenizer else None

    @property
    def steps(self) -> int:
        """Done."""
        return max((int(step) for step, _ in points(self.log.rows, "step")), default=0)

    @property
    def all_steps(self) -> int:
        """Asked for; 0 if not known."""
        steps = member(self.settings, "loop", dict).get("steps")
        return steps if isinstance(steps, int) else 0

    @property
    def finished(self) -> bool:
        """The model is written after the last step."""
        return self.steps >= self.all_steps and (self.folder / "model.safetensors").is_file()

    @property
    def seconds(self) -> float | None:
        """Of training, as rows and speed of the log tell; evaluations are left out."""
        speeds, before, total = points(self.log.rows, "rows_per_second"), 0.0, 0.0
        rows = dict(points(self.log.rows, "rows"))
        for step, speed in speeds:
            if step in rows and speed > 0:
                total += max(rows[step] - before, 0) / speed
                before = rows[step]
        return total or None

    @property
    def speed(self) -> float | None:
        """Median images per second."""
        speeds = [speed for _, speed in points(self.log.rows, "rows_per_second")]
        return statistics.median(speeds) if speeds else None

    def last(self, name: str) -> float | None:
        """The last number of this name in the log."""
        found = points(self.log.rows, name)
        return found[-1][1] if found else None


def read_training(folder: Path) -> Training:
    return Training(folder=folder, settings=read_typed(folder / "train.json", dict), log=read_log(folder / "log.jsonl"))


def training_part(place: Place) -> Part:
    run = read_training(place.folder)
    charts = figures(curves(run.log.rows, run.codes), place.key)
    parts = (
        ("Pictures", PREVIEWS[run.kind], progress(run.folder / "previews", place.room)),
        ("Learning curves", "", charts),
        ("Settings", "Everything that the training was told, by name.", settings(run)),
        ("Commands", "", command_blocks(commands(run))),
    )
    return Part(
        place=place,
        kind=KINDS[run.kind],
        title=f"{KINDS[run.kind]}: {place.name or place.folder.resolve().name}",
        lead=lead(run),
        cards=tuple(cards(run)),
        row=row(run),
        settings=dict(flat(run.settings)),
        validation={name: points(run.log.rows, name) for name in score_names(run.log.rows)},
        sections=tuple(Section(*part) for part in parts if part[2]),
        notes=(*unfinished(run), *run.log.notes),
    )


def lead(run: Training) -> str:
    size, source = run.tokenizer, member(run.settings, "data", dict).get("source")
    what = f"{model(run)}, on {source}" if isinstance(source, str) and source != "." else model(run)
    tokens = f"; {size.image_size} × {size.image_size} pixels are {size.layout.num_tokens} tokens" if size else ""
    return f"{what}{tokens}{f' out of {run.codes:,}' if run.codes and size else ''}."


def model(run: Training) -> str:
    """The classes that the model is made of, with what tells sizes apart."""
    if run.kind == "generator":
        sizes = member(run.settings, "model", dict)
        numbers = [f"{name} {shown(sizes[name])}" for name in ("width", "depth", "num_heads") if name in sizes]
        return ", ".join([str(sizes.get("type", "model")), *numbers])
    config = run.settings.get("tokenizer") or (to_dict(run.tokenizer) if run.tokenizer else {})
    classes = [str(member(config, name, dict).get("type", name)) for name in ("backbone", "quantizer")]
    return " + ".join(name.removesuffix("Config") for name in classes)


def cards(run: Training) -> Iterator[Card]:
    for name in score_names(run.log.rows):
        _, unit, _ = SCORES.get(name, ("", f"{name}, ", ""))
        measure, _, short_unit = unit.partition(", ")
        yield Card(figure_text(run.last(name)), short_unit, f"{measure}, on validation data")
    if (usage := run.last("code_usage")) is not None:
        yield Card(f"{100 * usage:.3g}", "%", f"of the {f'{run.codes:,} ' if run.codes else ''}codes are in use")
    if run.steps:
        yield Card(f"{run.steps:,}", "steps", f"of {run.all_steps:,}" if run.all_steps else "done")
    if (seconds := run.seconds) is not None:
        longest = ((3600, "h"), (60, "min"), (1, "s"))
        value, unit = next((seconds / each, name) for each, name in longest if seconds >= 2 * each or each == 1)
        yield Card(f"{value:.3g}", unit, "of training, evaluations left out")
    if (speed := run.speed) is not None:
        yield Card(f"{speed:.3g}", "/ s", "images while training, median")


def row(run: Training) -> dict[str, str]:
    names = score_names(run.log.rows)
    values = {SCORES.get(name, ("", name, ""))[1]: figure_text(run.last(name)) for name in names}
    usage = {"codes in use": f"{100 * value:.3g} %"} if (value := run.last("code_usage")) is not None else {}
    state = "finished" if run.finished else "unfinished"
    return {
        **values,
        **usage,
        "steps": f"{run.steps:,} of {run.all_steps:,}",
        "state": state,
        "time": duration(run.seconds),
        "speed": counted(run.speed, "images / s"),
        "model": model(run),
        "data": shown(member(run.settings, "data", dict).get("source")),
    }


def unfinished(run: Training) -> Iterator[str]:
    if not run.finished:
        done = f"{run.steps:,} of {run.all_steps:,} steps so far"
        yield f"Not finished: {done}. The run is still going on, or was stopped; the command below goes on with it."


def settings(run: Training) -> str:
    return folded("All settings", "train.json", two_columns(flat(run.settings), "settings")) if run.settings else ""


def commands(run: Training) -> Iterator[tuple[str, str]]:
    folder = shlex.quote(str(run.folder.resolve()))
    partner = f" --tokenizer {shlex.quote(str(run.folder.resolve() / 'tokenizer'))}" if run.kind == "generator" else ""
    start = f"imgtok train {run.kind} --config {folder}{partner}"
    if run.kind != "decoder":  # which needs to be told what it begins with
        if not run.finished:
            yield "Go on with the run", f"{start} --out {folder} --resume"
        yield "Repeat the run; every setting can be changed, as --optimizer.lr 1e-3", f"{start} --out repeated"
    if run.kind == "generator":
        yield "Draw from it", f"imgtok generate --model {folder} --out samples"
    else:
        yield "Send pictures through it and back", f"imgtok reconstruct photos --model {folder} --out out"


PREVIEWS = {
    "tokenizer": "Validation pictures above their reconstructions, at the end and on the way there.",
    "generator": "Samples under the labels of validation pictures, at the end and on the way there.",
    "decoder": "Validation pictures above what the decoder makes of their tokens, at the end and on the way there.",
}
