"""The learning curves of a training: which numbers of its log are shown, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from imgtok.sample.report.charts import Chart, Line, numbered, points, spans_widely

Rows = list[dict[str, Any]]

# What a validation score is called, its unit, and what to make of it.
SCORES = {
    "val_psnr": ("Quality", "PSNR, dB", "Reconstructions of pictures never seen in training. Higher is better."),
    "val_loss": ("Surprise", "nats per token", "Cross-entropy of tokens to guess. Lower is better."),
}
NO_LOSSES = {"step", "rows", "lr", "rows_per_second", "memory_bytes", "grad_norm", "reseeded"}
EASIER = " Validation is easier: no dropout, averaged weights, all labels."


def curves(rows: Rows, codes: int | None) -> list[Chart]:
    """Losses, validation scores, codes in use, learning rate and speed; `codes`: how many there are, if known."""
    return [*losses(rows, codes), *scores(rows), codes_in_use(rows, codes), *minor(rows)]


def losses(rows: Rows, codes: int | None) -> Iterator[Chart]:
    """A generator's loss beside that of validation, or all that a tokenizer's is made of."""
    validation = points(rows, "val_loss")
    names = [name for name in loss_names(rows) if name != "cross_entropy"]
    if names == ["loss"]:
        title, unit, text = SCORES["val_loss"]
        yield Chart(
            title=title,
            text=text + EASIER * bool(validation),
            unit=unit,
            lines=(
                Line("training", points(rows, "loss"), "blue"),
                Line("validation", validation, "orange", marks=True),
            ),
            level=(f"blind guess, ln {codes}", math.log(codes)) if codes else None,
        )
        return
    lines = tuple(
        numbered(number, "sum" if name == "loss" else name, points(rows, name)) for number, name in enumerate(names)
    )
    text = "While training, weights included: their sum is what is minimised. Lower is better."
    yield Chart(title="Losses", text=text, unit="weighted loss", lines=lines, log=spans_widely(lines))


def scores(rows: Rows) -> Iterator[Chart]:
    """Validation scores that stand in no other chart."""
    for name in score_names(rows):
        if name != "val_loss":
            title, unit, text = SCORES.get(name, (name, "score", "On validation data."))
            yield Chart(title=title, text=text, unit=unit, lines=(validated(rows, name),))


def codes_in_use(rows: Rows, codes: int | None) -> Chart:
    return Chart(
        title="Codes in use",
        text="Perplexity: how many equally popular codes would carry as much information.",
        unit="codes",
        lines=(
            Line("training, perplexity of a batch", points(rows, "perplexity"), "blue"),
            Line("training, codes in a batch", points(rows, "codes_used"), "green"),
            Line("validation, perplexity", points(rows, "code_perplexity"), "orange", marks=True),
        ),
        level=(f"all {codes} codes", codes) if codes else None,
    )


def minor(rows: Rows) -> Iterator[Chart]:
    """Not what is learned, but how."""
    norms = (Line("before clipping", points(rows, "grad_norm"), "purple"),)
    for title, unit, line in (
        ("Learning rate", "highest of AdamW", Line("training", points(rows, "lr"), "teal")),
        ("Speed", "images per second", Line("training", points(rows, "rows_per_second"), "green")),
    ):
        yield Chart(title=title, unit=unit, lines=(line,), minor=True)
    yield Chart(title="Norm of the gradients", unit="norm", lines=norms, log=spans_widely(norms), minor=True)


def validated(rows: Rows, name: str) -> Line:
    return Line("validation", points(rows, name), "orange", marks=True)


def score_names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith("val_") and points(rows, name)))


def loss_names(rows: Rows) -> list[str]:
    """All numbers of the log that are neither known for something else nor of the codes nor of validation."""
    others = ("val_", "code_", "codes_used", "perplexity")
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in NO_LOSSES and not name.startswith(others) and points(rows, name)]
