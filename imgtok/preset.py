"""A published system as data: sizes, weights, licence, paper and published numbers in one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

Config = TypeVar("Config")
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Weights:
    repo: str
    """Hub repository."""
    file: str
    licence: str
    """Of the weights."""
    revision: str = "main"


@dataclass(frozen=True, kw_only=True)
class Preset(Generic[Config]):
    config: Config
    convert: Callable[[State], State]
    """Published parameter names and layouts to ours."""
    paper: str
    code: str
    """Where the published code lives, and its licence."""
    weights: Weights | None = None
    """None: sizes were published, weights were not."""
    tokenizer: str | None = None
    """For a generator: the tokenizer preset whose tokens it was trained on."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Published numbers by name, e.g. {"rfid": 2.19}."""
    note: str = ""

    @property
    def licence(self) -> str:
        return self.weights.licence if self.weights else "no published weights"
