"""Small trained pairs that come with the package: a generator and the tokenizer of its tokens, by one name.

Each is a folder like that of a training run: the generator, the tokenizer inside, and a card. Parameters are stored in
half precision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from imgtok import config as configs

ROOT = Path(__file__).parent
CARD_FILE = "card.json"
DEFAULT = "emoji64-gpt"
"""The pair with the best pictures."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How its pictures look best."""

    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is to be known of a pair."""

    summary: str
    data: str
    """What it was trained on."""
    licence: str
    """Of the weights."""
    training: tuple[str, ...]
    """The commands, in their order."""
    evaluation: tuple[str, ...] = ()
    """The commands that measured `measured`."""
    measured: dict[str, float] = field(default_factory=dict)
    """Scores by name."""
    sampling: Sampling = Sampling()
    shown: tuple[dict[str, str], ...] = ()
    """Labels by name, of what is drawn where none are asked for."""


def names() -> tuple[str, ...]:
    """Of all pairs, the best first."""
    found = sorted(path.parent.name for path in ROOT.glob(f"*/{CARD_FILE}"))
    return tuple(sorted(found, key=lambda name: (name != DEFAULT, name)))


def card(name: str) -> Card:
    """ValueError if there is no such pair."""
    if name not in names():
        raise ValueError(f"{name!r} is no pair of the zoo; there are {', '.join(names())}")
    return configs.load(Card, ROOT / name / CARD_FILE)


def generator_folder(source: str | Path) -> Path | None:
    """Where the generator of the pair with this name is; None if there is none."""
    return ROOT / str(source) if str(source) in names() else None


def tokenizer_folder(source: str | Path) -> Path | None:
    """The same of its tokenizer."""
    folder = generator_folder(source)
    return folder / "tokenizer" if folder else None
