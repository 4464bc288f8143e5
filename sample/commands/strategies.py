"""imgtok strategies: the ways to draw."""

from __future__ import annotations

from collections.abc import Mapping

from imgtok.sample.commands.bench import table
from imgtok.sample.strategies import ENTRIES, STAGE_ENTRIES, Entry, StageEntry

GUARANTEES = {
    "pathwise": "the images of plain sampling, token for token",
    "exact": "other images, drawn from the same law",
    "tv": "each token's law within epsilon of it, in total variation",
    "relaxed": "no bound",
}


def strategies() -> None:
    """List the ways to draw that `imgtok generate --strategy` knows, and of next-token ones `imgtok bench sample`."""
    for kind, entries in (("next-token", ENTRIES), ("next-scale", STAGE_ENTRIES)):
        print(f"{kind} generators:")
        print("\n".join(listed(entries)), end="\n\n")
    print("\n".join(f"{name}: {meaning}" for name, meaning in GUARANTEES.items()))
    print("auto: plain or a window of jacobi, whichever is measured to be faster; of next-scale generators, plain")


def listed(entries: Mapping[str, Entry] | Mapping[str, StageEntry]) -> list[str]:
    rows = [("name", "guarantee", "needs", "how")]
    for name, entry in entries.items():
        rows.append((name, entry.guarantee, "--draft-model" if entry.needs_draft else "", entry.about))
    return [line.rstrip() for line in table(rows, words=4)]
