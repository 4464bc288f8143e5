"""The exact problems stored as `sampling/*.json` in the folder of conformance cases (see `tests/conformance`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("IMGTOK_CONFORMANCE") or ROOT.parent / "shared" / "conformance") / "sampling"


def cases(name: str) -> list[Any]:
    """One parameter for each case of a file, each with the file's `atol`; one that skips where the file is missing."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        reason = f"no oracle at {path}; IMGTOK_CONFORMANCE names the folder of conformance cases"
        return [pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason))]
    stored = json.loads(path.read_text(encoding="utf-8"))
    return [pytest.param({**case, "atol": stored["atol"]}, id=f"{name}/{case['name']}") for case in stored["cases"]]


def close(case: dict[str, Any], actual: Any, expected: Any, what: str = "") -> None:
    """Compares to the tolerance of the case's file."""
    actual, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (actual, expected))
    torch.testing.assert_close(
        actual, expected, atol=case["atol"], rtol=0, msg=lambda text: f"{case['name']} {what}: {text}"
    )


def law(probs: list[float]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64)
