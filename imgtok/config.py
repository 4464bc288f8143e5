"""Frozen dataclasses to JSON and back, strictly: every nested dataclass carries its class name under "type"."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from imgtok.atomic import write_text

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types; tuples become lists and come back as tuples."""
    fields = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"type": type(config).__name__} | fields


def from_dict(cls: type[T] | tuple[type[T], ...], data: dict[str, Any], where: str = "config") -> T:
    """The dataclass that `to_dict` wrote. `cls` may be several classes: the "type" tag chooses.

    Raises ValueError naming the field when one is unknown, missing, or of another type than declared.
    """
    classes = cls if isinstance(cls, tuple) else (cls,)
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object with the fields of {_names(classes)}, got {data!r}")
    chosen = _choose(classes, data, where)
    hints = typing.get_type_hints(chosen)
    fields = {field.name: field for field in dataclasses.fields(chosen)}  # type: ignore[arg-type]
    given = {key: value for key, value in data.items() if key != "type"}
    for key in given:
        if key not in fields:
            raise ValueError(f"{where}: {chosen.__name__} has no field {key!r}{_nearest(key, fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise ValueError(f"{where}: {chosen.__name__} needs the field {name!r}")
    return chosen(**{key: _typed(value, hints[key], f"{where}.{key}") for key, value in given.items()})


def save(config: Any, path: str | Path) -> None:
    write_text(path, json.dumps(to_dict(config), indent=2) + "\n")


def load(cls: type[T] | tuple[type[T], ...], path: str | Path) -> T:
    return from_dict(cls, read_json(path), where=str(path))


def read_json(path: str | Path) -> dict[str, Any]:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def _choose(classes: tuple[type[T], ...], data: dict[str, Any], where: str) -> type[T]:
    tag = data.get("type")
    if tag is None and len(classes) == 1:
        return classes[0]
    for cls in classes:
        if cls.__name__ == tag:
            return cls
    raise ValueError(f"{where}: type {tag!r} is none of {_names(classes)}")


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the declared type `hint`; the only conversion is list to tuple and object to dataclass."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Annotated:
        return _typed(value, arguments[0], where)
    if origin in (typing.Union, types.UnionType):
        return _typed_union(value, arguments, where)
    if origin is typing.Literal:
        return _checked(value in arguments, value, f"one of {list(arguments)}", where)
    if origin is tuple:
        return _typed_tuple(value, arguments, where)
    if origin is dict:
        _checked(isinstance(value, dict), value, "an object", where)
        return {key: _typed(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, where)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_checked(number, value, "a number", where))
    if hint is int:
        return _checked(isinstance(value, int) and not isinstance(value, bool), value, "a whole number", where)
    if hint is Path:
        return Path(_checked(isinstance(value, str), value, "a path", where))
    return _checked(isinstance(value, hint), value, hint.__name__, where)


def _typed_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    classes = tuple(option for option in options if dataclasses.is_dataclass(option))
    if classes and isinstance(value, dict):
        return from_dict(typing.cast("tuple[type[Any], ...]", classes), value, where)
    errors = []
    for option in options:
        try:
            return _typed(value, option, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(" or ".join(errors))


def _typed_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    _checked(isinstance(value, (list, tuple)), value, "a list", where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_typed(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    _checked(len(value) == len(arguments), value, f"{len(arguments)} values", where)
    return tuple(
        _typed(item, hint, f"{where}[{i}]") for i, (item, hint) in enumerate(zip(value, arguments, strict=True))
    )


def _checked(good: bool, value: T, expected: str, where: str) -> T:
    if not good:
        raise ValueError(f"{where}: expected {expected}, got {value!r}")
    return value


def _nearest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(known)}"


def _names(classes: Iterable[type]) -> str:
    return ", ".join(cls.__name__ for cls in classes)
