"""Pictures that were drawn, edited or reconstructed."""

from __future__ import annotations

from typing import Any

from imgtok.sample.report.files import dicts, member, read_typed
from imgtok.sample.report.formatting import figure_text, flat, folded, shown, two_columns
from imgtok.sample.report.part import Card, Part, Place, Section
from imgtok.sample.report.pictures import captioned, inside, sheet_of

MOST_PICTURES = 48


def samples_part(place: Place) -> Part:
    """Of `imgtok generate` and `imgtok edit`."""
    settings = read_typed(place.path, dict)
    images = dicts(member(settings, "images", list))
    told = {name: value for name, value in settings.items() if name != "images"}
    edited = "image" in settings
    kind = "Edited pictures" if edited else "Generated pictures"
    return Part(
        place=place,
        kind=kind,
        title=f"{kind}: {place.name or place.folder.resolve().name}",
        lead=f"Drawn by {shown(settings.get('model'))} with the tokenizer {shown(settings.get('tokenizer'))}.",
        cards=(Card(str(len(images)), "", "pictures"), *law_cards(settings)),
        row=row(settings, len(images)),
        settings=dict(flat(told)),
        sections=tuple(
            section
            for section in (pictures(place, images, edited), Section("Settings", "", settings_table(told)))
            if section.content
        ),
    )


def law_cards(settings: dict[str, Any]) -> list[Card]:
    guidance, law = member(settings, "guidance", dict).get("scale"), member(settings, "law", dict)
    values = (("guidance", guidance), ("temperature", law.get("temperature")), ("top-k", law.get("top_k")))
    return [Card(figure_text(value), "", name) for name, value in values if value is not None]


def row(settings: dict[str, Any], count: int) -> dict[str, str]:
    return {
        "pictures": str(count),
        **{name: shown(settings.get(name)) for name in ("model", "seed", "strategy")},
        **{card.caption: card.value for card in law_cards(settings)},
    }


def pictures(place: Place, images: list[dict[str, Any]], edited: bool) -> Section:
    """One by one with their labels; of edited ones the sheet, which begins with what was given."""
    sheet = place.folder / "grid.png"
    if edited and sheet.is_file():
        text = "First what was given, its part to draw in grey."
        return Section("Pictures", text, sheet_of(sheet, "all", place.room))
    found = [(path, caption(row)) for row in images if (path := inside(place.folder, str(row.get("file", ""))))]
    count = min(len(found), MOST_PICTURES)
    chosen = [found[i * len(found) // count] for i in range(count)]
    fewer = f"{count} of {len(images)}, evenly spread." if count < len(images) else ""
    return Section("Pictures", fewer, captioned(chosen, place.room))


def caption(image: dict[str, Any]) -> str:
    labels = [shown(value) for value in member(image, "condition", dict).values()]
    return ", ".join(labels) or str(image.get("file", ""))


def settings_table(told: dict[str, Any]) -> str:
    return folded("All settings", "samples.json", two_columns(flat(told), "settings")) if told else ""


def reconstructions_part(place: Place) -> Part:
    """Of `imgtok reconstruct`, which leaves no numbers."""
    count = sum(path != place.path for path in place.folder.rglob("*.png"))
    return Part(
        place=place,
        kind="Reconstructions",
        title=f"Reconstructions: {place.name or place.folder.resolve().name}",
        lead=f"{count} {'picture' if count == 1 else 'pictures'} to tokens and back.",
        row={"pictures": str(count)},
        sections=(
            Section("Pictures", "Originals, each beside its reconstruction.", sheet_of(place.path, "all", place.room)),
        ),
    )
