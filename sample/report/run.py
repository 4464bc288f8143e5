"""What a quickstart has left in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtok.sample.report.formatting import is_number
from imgtok.sample.report.part import Place
from imgtok.sample.report.training import Training
from imgtok.tokenizer import TokenizerConfig


@dataclass(frozen=True)
class Run:
    """What a quickstart folder holds; a missing piece is empty."""

    place: Place
    metrics: dict[str, Any]
    trainings: dict[str, Training]
    """ "tokenizer" and "generator"."""
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
        return self.trainings["tokenizer"].tokenizer

    @property
    def codes(self) -> int | None:
        return self.trainings["tokenizer"].codes

    @property
    def pictures(self) -> Path:
        return self.place.folder / "pictures"

    @property
    def room(self) -> int:
        """Bytes for the reconstructions, and as many for all samples, where they are shown whole."""
        return self.place.room // 2
