"""What a quickstart has left in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtok.config import from_dict, read_json
from imgtok.sample.report.formatting import is_number
from imgtok.tokenizer import TokenizerConfig


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


def codebook_size(run: Run) -> int | None:
    return run.tokenizer.quantizer.codebook_size if run.tokenizer else None


def codebook(run: Run) -> str:
    """The number of codes and a space; empty if not known."""
    return f"{codebook_size(run)} " if run.tokenizer else ""
