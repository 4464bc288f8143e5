"""Complete checkpoints, written whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from imgtok.atomic import replacing
from imgtok.convert import first_line


def write(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Saves `state` (tensors, plain values) as the checkpoint after `step` steps; only the last `keep` stay."""
    path = folder / f"step-{step:08d}.pt"
    with replacing(path) as temporary:
        torch.save(state, temporary)
    for old in every(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def every(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first. Partial files have other names."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}\.pt", path.name))


def latest(folder: Path) -> Path | None:
    saved = every(folder)
    return saved[-1] if saved else None


def read(path: Path) -> dict[str, Any]:
    """ValueError if the file is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises many kinds
        raise ValueError(
            f"checkpoint {path} cannot be read: {first_line(error)}; remove it to go on from the one before"
        ) from error
