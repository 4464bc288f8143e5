"""Seconds, bytes, machines, and models whose weights do not matter: what a fair comparison of speeds needs."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from imgtok import atomic

T = TypeVar("T")
DType = Literal["float32", "bfloat16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PERIOD = 1_000_003  # a prime, so that no two rows of a matrix are equal
PROC = Path("/proc/self")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    machine: dict[str, Any]
    """Processor, threads, versions."""
    settings: dict[str, Any]
    """What was asked for."""
    rows: list[dict[str, Any]]
    """One for each contender; fields that do not apply are None."""

    def save(self, path: str | Path) -> None:
        """As JSON; the file is there whole or not at all."""
        atomic.write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def alternate(works: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each work over rounds A B C A B C …, so that a slow minute of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for i in range(repeats):
        for name, work in works.items():
            seconds[name].append(timed(work, device))
        told = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items())
        logger.info("round %d of %d: %s", i + 1, repeats, told)
    return {name: statistics.median(each) for name, each in seconds.items()}


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done `work`."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def with_peak(work: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """What `work` returns, and how many bytes it had in use at most beyond those before it; None if nobody knows."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return work(), torch.cuda.max_memory_allocated(device) - before
    start = resident_bytes()
    result = work()
    peak = peak_resident_bytes()
    return result, None if start is None or peak is None else max(peak - start, 0)


def resident_bytes() -> int | None:
    """Memory that the process holds now; its peak counts anew from here on. Where that cannot be: its peak so far."""
    try:
        (PROC / "clear_refs").write_text("5")
        return int((PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_resident_bytes()


def peak_resident_bytes() -> int | None:
    try:
        status = (PROC / "status").read_text()
    except OSError:
        return rusage_bytes()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else rusage_bytes()


def rusage_bytes() -> int | None:
    """Peak since the process began, where the system counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch computes with `count` CPU threads inside; None: with as many as outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(device: torch.device) -> dict[str, Any]:
    """Where a number was measured."""
    return {
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": installed("transformers"),
        "diffusers": installed("diffusers"),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def materialize(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Gives a model without memory (on the meta device) random but harmless weights, in evaluation mode.

    Matrices repeat one draw of N(0, 0.02), which is quick for billions of parameters; vectors are ones, biases zeros.
    """
    model = model.to(dtype) if dtype else model
    model = model.to_empty(device=device).eval().requires_grad_(False)
    noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(device)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.ndim < 2:
            tensor.fill_(0 if name.endswith("bias") else 1)
        else:
            for piece in tensor.view(-1).split(PERIOD):
                piece.copy_(noise[: len(piece)])
    return model


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def check_counts(**counts: int | None) -> None:
    """ValueError naming the first that is below 1; None is not asked."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_dtype(name: str) -> None:
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; choose from {', '.join(DTYPES)}")
