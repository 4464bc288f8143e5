"""imgtok presets: what can be loaded or trained by name."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import tyro

from imgtok import zoo
from imgtok.generators import hub as generators
from imgtok.generators.condition import LabelConditionConfig, TextConditionConfig
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.hub import WEIGHTS_FILE, ModelConfig, build_empty, load_config
from imgtok.preset import Preset
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.sample.commands.common import Flag, millions
from imgtok.tokenizer import QuantizerConfig
from imgtok.tokens import TokenLayout, sizes_text
from imgtok.train.generator_config import GeneratorTraining
from imgtok.train.recipes import GENERATORS as GENERATOR_RECIPES
from imgtok.train.recipes import TOKENIZERS as TOKENIZER_RECIPES
from imgtok.train.recipes import AnyTokenizerTraining

Row = dict[str, Any]
NONE = "-"
METRICS = {"rfid": "rFID", "gfid": "gFID"}


def presets(*, as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False) -> None:
    """List the pairs that come with the package, published models that load by name, and the training recipes.

    Args:
        as_json: Print JSON, for other programs.
    """
    groups = {
        "zoo": zoo_rows(),
        "tokenizers": tokenizer_rows(),
        "generators": generator_rows(),
        "recipes": recipe_rows(),
    }
    print(json.dumps(groups, indent=2) if as_json else as_text(groups))


def zoo_rows() -> list[Row]:
    rows = []
    for name in zoo.names():
        card, config, tokenizer = zoo.card(name), generators.load_config(name), load_config(name)
        rows.append(
            {
                "name": name,
                "parameters": count_parameters(config) + count_parameters(tokenizer),
                "tokens": tokenizer.layout.num_tokens,
                "condition": condition_text(config.condition),
                "summary": card.summary,
                "measured": card.measured,
                "licence": card.licence,
                "data": card.data,
            }
        )
    return rows


def tokenizer_rows() -> list[Row]:
    return [
        {
            **model_row(name, preset),
            "tokens": grid_text(preset.config.layout),
            "codes": codes_text(preset.config.quantizer),
            **origin_row(preset),
        }
        for name, preset in TOKENIZERS.items()
    ]


def generator_rows() -> list[Row]:
    return [
        {
            **model_row(name, preset),
            "tokens": grid_text(preset.config.layout),
            "condition": condition_text(preset.config.condition),
            "tokenizer": preset.tokenizer,
            **origin_row(preset),
        }
        for name, preset in GENERATORS.items()
    ]


def recipe_rows() -> list[Row]:
    recipes: Sequence[tuple[str, Mapping[str, Callable[[], AnyTokenizerTraining | GeneratorTraining]]]] = (
        ("tokenizer", TOKENIZER_RECIPES),
        ("generator", GENERATOR_RECIPES),
    )
    return [recipe_row(kind, name, recipe()) for kind, named in recipes for name, recipe in named.items()]


def model_row(name: str, preset: Preset[Any]) -> Row:
    return {"name": name, "parameters": count_parameters(preset.config)}


def origin_row(preset: Preset[Any]) -> Row:
    """Where a preset comes from, and what its authors measured."""
    weights = preset.weights
    return {
        "published": dict(preset.published),
        "weights": weights.licence if weights else None,
        "file": f"{weights.repo}/{weights.file}" if weights else None,
        "paper": preset.paper,
        "code": preset.code,
        "note": preset.note,
    }


def recipe_row(kind: str, name: str, training: AnyTokenizerTraining | GeneratorTraining) -> Row:
    return {
        "name": name,
        "kind": kind,
        "steps": training.loop.steps,
        "batch": training.loop.batch_size,
        "data": None if training.data.source == "." else training.data.source,
    }


def count_parameters(config: ModelConfig) -> int:
    return sum(parameter.numel() for parameter in build_empty(config).parameters())


def grid_text(layout: TokenLayout) -> str:
    """Of several maps, the last."""
    return sizes_text([layout.latent_shape])


def codes_text(quantizer: QuantizerConfig) -> str:
    """Number and length; vectors that are no codes have a length alone."""
    size, dim = quantizer.codebook_size, quantizer.codebook_dim
    return f"{size} x {dim}" if size else f"any x {dim}"


def condition_text(condition: LabelConditionConfig | TextConditionConfig) -> str:
    if isinstance(condition, TextConditionConfig):
        return "text"
    return " + ".join(f"{label.size} {label.name}" for label in condition.labels)


def as_text(groups: Mapping[str, list[Row]]) -> str:
    tokenizers, generators, recipes = groups["tokenizers"], groups["generators"], groups["recipes"]
    return "\n".join(
        [
            "Pairs that come with the package, for imgtok generate --model and imgtok.load",
            *table(groups["zoo"], ("name", "parameters", "tokens", "condition", "summary")),
            *footers(groups["zoo"], ("licence", "data")),
            "",
            "Tokenizers, for imgtok.load and --model or --tokenizer",
            *table(tokenizers, ("name", "parameters", "tokens", "codes", "published", "file")),
            *footers(tokenizers, ("weights", "code", "paper", "note")),
            "",
            "Generators, for imgtok.generators.load and imgtok generate --model",
            *table(generators, ("name", "parameters", "tokens", "condition", "published", "file")),
            *footers(generators, ("tokenizer", "weights", "code", "paper", "note")),
            "",
            "Recipes, for imgtok train tokenizer and imgtok train generator",
            *table(recipes, ("name", "kind", "steps", "batch", "data")),
        ]
    )


def table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Lines with aligned columns: numbers to the right, words to the left."""
    cells = [[cell(column, row[column]) for column in columns] for row in rows]
    right = [all(isinstance(row[column], int) for row in rows) for column in columns]
    widths = [max(map(len, column)) for column in zip([name.upper() for name in columns], *cells, strict=True)]
    return [
        "  ".join(text.rjust(width) if at_right else text.ljust(width) for text, width, at_right in parts).rstrip()
        for parts in (zip(line, widths, right, strict=True) for line in [[name.upper() for name in columns], *cells])
    ]


def cell(column: str, value: Any) -> str:
    if column == "parameters":
        return millions(value)
    if column == "published":
        return ", ".join(f"{METRICS.get(name, name)} {number:.2f}" for name, number in value.items()) or NONE
    if column == "file" and value:
        return value.removesuffix(f"/{WEIGHTS_FILE}")  # the name that the hub expects goes without saying
    return f"{value:,}" if isinstance(value, int) else value or NONE


def footers(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """What holds for many rows, said once: each value of a column with the rows that it is about."""
    lines = []
    for column in columns:
        for value in dict.fromkeys(row[column] for row in rows if row[column]):
            names = [row["name"] for row in rows if row[column] == value]
            about = "" if len(names) == len(rows) else f" ({', '.join(names)})"
            lines += textwrap.wrap(f"{column}: {value}{about}", 116, initial_indent="  ", subsequent_indent="    ")
    return lines
