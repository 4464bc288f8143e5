"""How fast a training would run here, so that a time can be turned into a number of steps before it starts."""

from __future__ import annotations

import time

import torch

from imgtok.train.loop import Run, iterate
from imgtok.train.run import Parts


def steps_within(seconds: float, parts: Parts, trial: float = 4.0) -> int:
    """Training steps that fit into `seconds`, from `trial` seconds of training; that uses up `parts.task`."""
    task, batches, optimizers, loop, accelerator = parts
    run = Run(task, optimizers, loop, accelerator)
    items = iterate(batches, 0, 0)
    task.train()
    for _ in range(3):
        run.train_step(items)
    done, started = 0, time.monotonic()
    while time.monotonic() - started < trial and run.step < loop.steps:
        run.train_step(items)
        done += 1
    synchronise(accelerator.device)
    return max(1, round(seconds * done / (time.monotonic() - started)))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
