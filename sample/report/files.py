"""JSON and logs as they are found: of other versions, cut short, or damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from imgtok.config import read_json

Kind = TypeVar("Kind")


class Log(NamedTuple):
    rows: list[dict[str, Any]]
    damaged: list[int]
    """Numbers of the lines that are no JSON object, from 1."""

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.damaged:
            return ()
        first = ", ".join(map(str, self.damaged[:5])) + (", …" if len(self.damaged) > 5 else "")
        lines = "1 line" if len(self.damaged) == 1 else f"{len(self.damaged)} lines"
        return (f"{lines} of log.jsonl could not be read and stayed out: {first}.",)


def read_log(path: Path) -> Log:
    """All rows that can be read: a run that is going on, or was killed, may have left half a line."""
    rows, damaged = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        row = parsed(line)
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            damaged.append(number)
    return Log(rows, damaged)


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None


def read_typed(path: Path, kind: type[Kind]) -> Kind:
    """The JSON in a file, which must be a `kind`; an empty one if there is no file."""
    if not path.is_file():
        return kind()
    content: object = read_json(path)
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def member(values: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind:
    """A value of the type that it should have; an empty one if it is missing or of another."""
    value = values.get(name)
    return value if isinstance(value, kind) else kind()


def dicts(values: list[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]
