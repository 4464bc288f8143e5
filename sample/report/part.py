"""What a reader hands to the page: one run or evaluation, in numbers, words, curves and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

from imgtok.sample.report.charts import Point


class Place(NamedTuple):
    """A file that a part is recognised by, and what the page has for it."""

    path: Path
    name: str
    """Of the part on the page: its place below the folder of the page."""
    key: str
    """Unique on the page."""
    room: int
    """Bytes for its pictures."""

    @property
    def folder(self) -> Path:
        return self.path.parent


class Card(NamedTuple):
    value: str
    unit: str
    caption: str


class Section(NamedTuple):
    title: str
    text: str
    content: str
    """HTML."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run or an evaluation. Words are plain text, but for the contents of sections and the footer, which are HTML."""

    place: Place
    kind: str
    """Parts of one kind are compared, as "Tokenizer training"."""
    title: str
    lead: str = ""
    cards: tuple[Card, ...] = ()
    row: dict[str, str] = field(default_factory=dict)
    """Its row among parts of the kind, by column."""
    settings: dict[str, str] = field(default_factory=dict)
    """By dotted name, to tell in which it differs from others."""
    validation: dict[str, list[Point]] = field(default_factory=dict)
    """Curves to lay over those of other parts."""
    sections: tuple[Section, ...] = ()
    notes: tuple[str, ...] = ()
    """What is not as it should be."""
    footer: str = ""


def intro(part: Part) -> str:
    """Lead, cards and notes."""
    lead = f'<p class="lead">{escape(part.lead)}</p>\n' if part.lead else ""
    notes = "\n".join(f'<p class="note">{escape(note)}</p>' for note in part.notes)
    return f"{lead}{cards(part.cards)}{notes}"


def cards(found: tuple[Card, ...]) -> str:
    blocks = "\n".join(
        f'<div class="card"><b>{escape(value)}<small>{escape(unit)}</small></b><span>{escape(caption)}</span></div>'
        for value, unit, caption in found
    )
    return f'<div class="cards">\n{blocks}\n</div>\n' if blocks else ""


def html(section: Section, level: int = 2) -> str:
    lead = f'<p class="lead">{escape(section.text)}</p>\n' if section.text else ""
    return f"<section>\n<h{level}>{escape(section.title)}</h{level}>\n{lead}{section.content}\n</section>"
