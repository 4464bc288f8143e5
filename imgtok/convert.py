"""Tools for published state dicts: read without unpickling, unwrap, rename, fuse, load strictly."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for what it refuses

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

State = dict[str, Tensor]
WRAPPERS = ("ema", "model", "module", "state_dict")  # where training scripts put the weights; averaged ones first


def read_state(path: str | Path) -> State:
    """The tensors of a .safetensors, .pt, .pth or .bin file; never unpickles arbitrary objects.

    ValueError if the file is missing, damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # LlamaGen's trainer stores its arguments
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} cannot be read as weights: it is damaged, or holds more than tensors and plain values, "
            "which is never unpickled; where you trust it, save its tensors as .safetensors"
        ) from error
    except Exception as error:  # damaged files raise almost anything: IndexError, AssertionError, struct.error, ...
        raise ValueError(f"{path} cannot be read as weights: {first_line(error)}") from error
    return unwrap(content, path)


def unwrap(content: object, path: Path) -> State:
    """The state dict inside whatever dictionary a training script wrapped around it."""
    while isinstance(content, dict):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), dict) and content[key]), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict, neither bare nor under one of {', '.join(WRAPPERS)}")
    return content


def rename(state: State, rules: Sequence[tuple[str, str]]) -> State:
    """Applies every (pattern, replacement) in turn to each name; ValueError if two names become one."""
    renamed: State = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in renamed:
            raise ValueError(f"two parameters are both called {new!r} after renaming, one was {name!r}")
        renamed[new] = tensor
    return renamed


def drop(state: State, pattern: str) -> State:
    return {name: tensor for name, tensor in state.items() if not re.fullmatch(pattern, name)}


def fuse(state: State, parts: Sequence[str], whole: str) -> State:
    """Joins `x.q.weight`, `x.k.weight`, `x.v.weight` to `x.qkv.weight` along the first axis where all exist and fit."""
    fused = dict(state)
    for name in state:
        match = re.fullmatch(rf"(.*\.)?{re.escape(parts[0])}\.(\w+)", name)
        if match:
            prefix, kind = match[1] or "", match[2]
            names = [f"{prefix}{part}.{kind}" for part in parts]
            if all(part in fused for part in names) and len({fused[part].shape[1:] for part in names}) == 1:
                fused[f"{prefix}{whole}.{kind}"] = torch.cat([fused.pop(part) for part in names])
    return fused


def load_strict(model: nn.Module, state: State, source: str) -> None:
    """Loads every parameter; ValueError listing missing, unexpected and misshapen ones together."""
    own = model.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "misshapen": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in sorted(own.keys() & state.keys())
            if state[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        parts = [f"{kind}: {shorten(names)}" for kind, names in problems.items() if names]
        raise ValueError(f"{source} does not fit {type(model).__name__}; {'; '.join(parts)}")
    model.load_state_dict(state, strict=True, assign=True)


def shorten(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
