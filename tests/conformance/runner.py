"""A conformance case: a description (.json), tensors (.safetensors), and weights made from parameter names (fill.py).

The folder with the cases is `IMGTOK_CONFORMANCE`, or `../shared/conformance` seen from the repository's root.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
CASES = Path(os.environ.get("IMGTOK_CONFORMANCE") or ROOT.parent / "shared" / "conformance")
ORACLES = ("sampling",)  # small exact problems in another format, tested beside the samplers
FULL_SIZE = 20_000_000  # parameters from which a case is slow
TIE = 1e-4  # where the two best candidates are closer than this, either is right

Call = dict[str, Any]
Slices = list["str | list[int]"]


class Family(NamedTuple):
    """How the cases of one family are run."""

    build: Callable[[Case], Any]
    """The model of a case, in evaluation mode."""
    calls: dict[str, Callable[[Case, Any, Call], None]]
    """By slug: runs one call of a case with its model and compares."""

    def run(self, case: Case, model: Any, call: Call) -> None:
        slug = call.get("call")
        assert slug in self.calls, f"{case.family} has no call {slug!r}; it has {', '.join(self.calls)}"
        with torch.no_grad():
            self.calls[slug](case, model, call)


class Case:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.family, self.name = path.parent.name, path.stem
        self.description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.config: dict[str, Any] = self.description["config"]
        self.calls: list[Call] = self.description["calls"]

    def call_id(self, index: int) -> str:
        return f"{self.family}/{self.name}/{index}-{self.calls[index].get('call')}"

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.description["params"])

    def state(self) -> dict[str, Tensor]:
        """The published state dict."""
        return {name: torch.from_numpy(value) for name, value in fill().state_dict(self.path).items()}

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        return load_file(self.path.with_suffix(".safetensors"))

    @cached_property
    def generated(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value) for name, value in fill().generated_inputs(self.path).items()}

    def inputs(self, call: Call) -> list[Tensor]:
        """In the order of the call; a picture that is not stored whole is made by its rule."""
        names = call["inputs"] or (["image"] if call["arguments"].get("input_image") else [])
        used = (
            call.get("use_input") or call["arguments"].get("use_input") or call["arguments"].get("input_slices") or {}
        )
        return [pick(self.input(name, call), used.get(name)) for name in names]

    def input(self, name: str, call: Call) -> Tensor:
        if name in self.stored and name not in (call.get("slices") or {}):
            return self.stored[name]
        if name in self.generated:
            return self.generated[name]
        picture = call["arguments"].get("input_image")
        if picture is None:
            raise ValueError(f"input {name!r} is neither stored nor given by a rule")
        return torch.from_numpy(fill().image(picture["name"], tuple(picture["shape"])))

    def outputs(self, call: Call, known: int) -> list[str | None]:
        """Names of the `known` outputs by position, None for those left out at the end; error if there are more."""
        names = call["outputs"]
        if not 0 < len(names) <= known:
            raise ValueError(f"{call['call']} has the outputs {names}, but 1 to {known} are known")
        return [*names, *[None] * (known - len(names))]

    def compare(self, call: Call, name: str | None, actual: Tensor, where: Tensor | None = None) -> None:
        """The full tensor `actual` with the stored part of it; `where`: compare these positions only."""
        if name is None:
            return
        slices, full = (call.get("slices") or {}).get(name), (call.get("full_shapes") or {}).get(name)
        assert full in (None, list(actual.shape)), f"{name}: {list(actual.shape)} instead of {full}"
        expected, actual = self.stored[name], pick(actual, slices)
        assert actual.shape == expected.shape, f"{name}: {list(actual.shape)} instead of {list(expected.shape)} stored"
        if where is not None:
            where = pick(where, slices)
            expected, actual = expected[where], actual[where]
        atol = (call["arguments"].get("output_atol") or {}).get(name, call["atol"])
        torch.testing.assert_close(
            actual, expected, atol=atol, rtol=0, check_dtype=False, msg=lambda text: f"{name}: {text}"
        )

    def compare_stats(self, call: Call, name: str | None, whole: Tensor) -> None:
        """Mean and standard deviation of a whole tensor."""
        correction = {"unbiased": 1, "population": 0}[call["arguments"]["std"]]
        self.compare(call, name, torch.stack([whole.mean(), whole.std(correction=correction)]))

    def compare_choices(self, name: str | None, chosen: Tensor, gap: Tensor) -> Tensor:
        """Integers chosen as the best may differ only where `gap` to the second best is a tie: returns where."""
        if name is None:
            return torch.zeros_like(chosen, dtype=torch.bool)
        expected = self.stored[name]
        assert chosen.shape == expected.shape, f"{name}: {tuple(chosen.shape)} instead of {tuple(expected.shape)}"
        differ = chosen != expected
        wrong = differ & (gap >= TIE)
        count, first = int(wrong.sum()), wrong.nonzero()[:1].tolist()
        assert not count, f"{name}: {count} of {wrong.numel()} differ where there is no tie, first at {first[0]}"
        return differ


@cache
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_fill", CASES / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pick(tensor: Tensor, slices: Slices | None) -> Tensor:
    """One entry per axis, each a Python slice in words or a list of indices."""
    for axis, entry in enumerate(slices or []):
        places = positions(entry, tensor.shape[axis]) if isinstance(entry, str) else entry
        tensor = tensor.index_select(axis, torch.tensor(places))
    return tensor


def positions(text: str, length: int) -> list[int]:
    """ "1:9:2" -> [1, 3, 5, 7]"""
    return list(range(length)[slice(*(int(part) if part else None for part in text.split(":")))])


def gap_to_second(scores: Tensor) -> Tensor:
    """How far the best of ... v is above the second best: ..."""
    best = scores.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]
