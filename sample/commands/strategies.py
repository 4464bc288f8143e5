"""imgtok strategies: the ways to draw."""

from __future__ import annotations

from imgtok.sample.commands.bench import table
from imgtok.sample.strategies import ENTRIES

GUARANTEES = {
    "pathwise": "the images of plain sampling, token for token",
    "exact": "other images, drawn from the same law",
    "tv": "each token's law within epsilon of it, in total variation",
    "relaxed": "no bound",
}


def strategies() -> None:
    """List the ways to draw that `imgtok generate --strategy` and `imgtok bench sample` know."""
    rows = [("name", "guarantee", "needs", "how")]
    for name, entry in ENTRIES.items():
        rows.append((name, entry.guarantee, "--draft-model" if entry.needs_draft else "", entry.about))
    lines = table(rows, words=4)
    print("\n".join(line.rstrip() for line in lines))
    print()
    print("\n".join(f"{name}: {meaning}" for name, meaning in GUARANTEES.items()))
    print("auto: plain or a window of jacobi, whichever is measured to be faster")
