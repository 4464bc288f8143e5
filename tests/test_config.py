"""Configurations survive JSON exactly, and a wrong file is refused with the field's name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from imgtok import config


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float


@dataclass(frozen=True, kw_only=True)
class Square:
    side: int
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Circle | Square
    title: str
    frame: Square | None = None
    points: tuple[tuple[int, float], ...] = ()
    shapes: tuple[Circle | Square, ...] = ()
    mode: Literal["fill", "line"] = "fill"
    level: int | tuple[int, ...] = 3
    weights: dict[str, float] | None = None
    folder: Path | None = None
    visible: bool = True
    extra: Any = None


FULL = Drawing(
    shape=Square(side=3, corner=(-1, 2)),
    title="Grüße",
    frame=Square(side=2**40),
    points=((1, 0.1), (2, 1e-300)),
    shapes=(Circle(radius=0.1 + 0.2), Square(side=0)),
    mode="line",
    level=(4, 5),
    weights={"a": 1.5},
    folder=Path("somewhere/else"),
    visible=False,
)


def through_json(drawing: Drawing) -> Drawing:
    return config.from_dict(Drawing, json.loads(json.dumps(config.to_dict(drawing))))


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing(shape=Circle(radius=1.0), title=""),
        FULL,
        replace(FULL, level=7, shape=Circle(radius=math.inf), points=(), folder=None),
    ],
)
def test_a_round_trip_is_exact(drawing):
    back = through_json(drawing)
    assert back == drawing
    assert repr(back) == repr(drawing)  # tuples are tuples, floats are floats


def test_a_file_round_trip_is_exact(tmp_path):
    config.save(FULL, tmp_path / "drawing.json")
    assert config.load(Drawing, tmp_path / "drawing.json") == FULL


def test_an_integer_serves_as_a_float_and_becomes_one():
    back = config.from_dict(Circle, {"radius": 2})
    assert isinstance(back.radius, float)


def test_the_tag_chooses_among_classes():
    data = config.to_dict(Square(side=1))
    assert config.from_dict((Circle, Square), data) == Square(side=1)
    with pytest.raises(ValueError, match=r"'Square'.*Circle"):
        config.from_dict(Circle, data)
    with pytest.raises(ValueError, match="None is none of Circle, Square"):
        config.from_dict((Circle, Square), {"side": 1})


def test_an_unknown_field_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"config: Drawing has no field 'titel'; did you mean 'title'\?"):
        config.from_dict(Drawing, config.to_dict(FULL) | {"titel": "x"})


def test_an_unknown_nested_field_is_named_with_its_place():
    data = config.to_dict(FULL)
    data["frame"]["sidee"] = 1
    with pytest.raises(ValueError, match=r"config\.frame: Square has no field 'sidee'; did you mean 'side'\?"):
        config.from_dict(Drawing, data)


def test_a_field_like_no_other_lists_them_all():
    with pytest.raises(ValueError, match=r"'zzz'; it has side, corner"):
        config.from_dict(Square, {"side": 1, "zzz": 2})


def test_a_missing_field_is_named():
    data = config.to_dict(FULL)
    del data["title"]
    with pytest.raises(ValueError, match="config: Drawing needs the field 'title'"):
        config.from_dict(Drawing, data)


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("title", 3, "config.title: expected str, got 3"),
        ("title", None, "config.title"),
        ("visible", 1, "config.visible"),
        ("mode", "dash", r"config.mode: expected one of \['fill', 'line'\]"),
        ("level", 1.5, "config.level"),
        ("level", True, "config.level"),
        ("points", [[1, 2.0], [1]], r"config.points\[1\]: expected 2 values"),
        ("points", [["1", 2.0]], r"config.points\[0\]\[0\]: expected a whole number"),
        ("points", "12", "config.points: expected a list"),
        ("weights", {"a": "b"}, "config.weights.a: expected a number"),
        ("weights", [1.0], "config.weights"),
        ("folder", 7, "config.folder"),
        ("shape", {"type": "Triangle"}, "config.shape: type 'Triangle' is none of Circle, Square"),
        ("shape", {"type": "Circle", "radius": True}, "config.shape.radius: expected a number"),
        ("shapes", [{"type": "Square", "side": 1.0}], r"config.shapes\[0\].side: expected a whole number"),
        ("frame", [1], "config.frame"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(field, value, place):
    with pytest.raises(ValueError, match=place):
        config.from_dict(Drawing, config.to_dict(FULL) | {field: value})


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\x00"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        config.load(Square, path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"Square"'])
def test_json_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected an object with the fields of Square"):
        config.load(Square, path)


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes('{"title": "Grüße"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="is not valid JSON"):
        config.load(Drawing, path)
