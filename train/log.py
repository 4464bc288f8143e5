"""The log of a run: one JSON line a report, and a progress bar where there is a terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imgtok.atomic import write_text

logger = logging.getLogger(__name__)


class RunLog:
    """Appends to `log.jsonl`; `start` cuts off what a resumed run will write again."""

    def __init__(self, out: Path, name: str, steps: int, start: int, quiet: bool) -> None:
        self.path, self.name, self.quiet = out / "log.jsonl", name, quiet
        self.bar = tqdm(total=steps, initial=start, desc=name, unit="step", disable=quiet or not sys.stderr.isatty())
        self.last_line = time.monotonic()
        if not quiet:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in read(self.path) if row["step"] <= start))

    def write(self, row: dict[str, Any]) -> None:
        """`row` needs "step": how many steps are done."""
        if self.quiet:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def report(self, row: dict[str, Any]) -> None:
        """Writes the row and shows its main numbers."""
        self.write(row)
        shown = {key: f"{value:.4g}" for key, value in row.items() if key in SHOWN}
        self.bar.set_postfix(shown)
        if self.bar.disable and not self.quiet and time.monotonic() - self.last_line > 10:
            self.last_line = time.monotonic()
            text = ", ".join(f"{key} {value}" for key, value in shown.items())
            logger.info("%s: step %d of %d, %s", self.name, row["step"], self.bar.total, text)

    def close(self) -> None:
        self.bar.close()


SHOWN = ("loss", "codes_used", "perplexity", "grad_norm", "rows_per_second", "val_psnr", "code_usage", "val_loss")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
