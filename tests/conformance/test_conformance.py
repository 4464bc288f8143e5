"""Every stored case of published behaviour, call by call: `pytest tests/conformance -k llamagen`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from . import flextok, llamagen, perturbation, robusttok, titok, var
from .runner import CASES, FULL_SIZE, ORACLES, Case, Family

FAMILIES: dict[str, Family] = {
    "flextok": flextok.FAMILY,
    "llamagen": llamagen.FAMILY,
    "one-d-piece": titok.ONE_D_PIECE,
    "robusttok": robusttok.FAMILY._replace(calls=robusttok.FAMILY.calls | perturbation.CALLS),
    "titok": titok.FAMILY,
    "var": var.FAMILY,
}

if not CASES.is_dir():
    pytest.skip(f"no conformance cases at {CASES}; IMGTOK_CONFORMANCE names their folder", allow_module_level=True)


def found() -> Iterator[Any]:
    """One parameter for each call of each case; a family that is not implemented is one skipped parameter."""
    for folder in sorted(path for path in CASES.iterdir() if path.is_dir() and path.name not in ORACLES):
        paths = sorted(folder.glob("*.json"))
        if folder.name not in FAMILIES:
            reason = f"family {folder.name} is not implemented ({len(paths)} cases)"
            yield pytest.param(None, 0, id=folder.name, marks=pytest.mark.skip(reason=reason))
            continue
        for case in map(Case, paths):
            marks = [pytest.mark.slow] if case.num_parameters > FULL_SIZE else []
            for index in range(len(case.calls)):
                yield pytest.param(case, index, id=case.call_id(index), marks=marks)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """The model of the case at hand."""
    return {}


def model_of(case: Case, models: dict[str, Any]) -> Any:
    if str(case.path) not in models:
        models.clear()  # cases come one after the other; two full-size models would be one too many
        models[str(case.path)] = FAMILIES[case.family].build(case)
    return models[str(case.path)]


@pytest.mark.parametrize(("case", "index"), list(found()))
def test_published_behaviour(case: Case, index: int, models: dict[str, Any]):
    FAMILIES[case.family].run(case, model_of(case, models), case.calls[index])
