"""One loop for every task: from a laptop's CPU to many GPUs through accelerate."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from imgtok.data import save_png
from imgtok.hub import write_model
from imgtok.train import checkpoint
from imgtok.train.best import Best
from imgtok.train.config import LoopConfig, OptimizerConfig
from imgtok.train.ema import Ema
from imgtok.train.log import RunLog
from imgtok.train.muon import Muon
from imgtok.train.randomness import derived_generator, derived_seed
from imgtok.train.schedules import ema_decay, learning_rate_share

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Training was asked to stop; everything is saved. The message says how to resume."""


class Diverged(ValueError):
    """A loss became infinite or not a number."""


@dataclass
class Outcome:
    model: Any
    """The averaged weights (or the last ones, without averaging), in evaluation mode; the best ones if `fit` keeps
    them."""
    metrics: dict[str, float]
    """Of the last evaluation, or of the best."""
    seconds: float
    """Training time of this process since it started or resumed, evaluation included."""
    rows_per_second: float


class Player:
    """A module with its optimisers."""

    def __init__(self, module: Any, config: OptimizerConfig, accelerator: Accelerator) -> None:
        module.to(accelerator.device)
        self.config, self.bare = config, module
        self.optimizers = optimizers_of(module, config)
        self.module = accelerator.prepare_model(module)

    def apply(self, step: int, steps: int) -> Tensor:
        """One optimiser step; returns the norm of the gradients before clipping."""
        share = learning_rate_share(self.config, step, steps)
        most = self.config.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.bare.parameters(), most)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def restore(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def optimizers_of(module: Any, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the module's hidden weights if it has a learning rate."""
    hidden: list[nn.Parameter] = module.hidden_weights() if config.muon_lr else []
    apart = {id(p) for p in hidden}
    rest = [(name, p) for name, p in module.named_parameters() if p.requires_grad and id(p) not in apart]
    decayed = {id(p) for name, p in rest if p.ndim >= 2 and not any(part in name for part in config.undecayed)}
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in rest if id(p) in decayed]},
        {"params": [p for _, p in rest if id(p) not in decayed], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    return [adamw, Muon(hidden, config.muon_lr, weight_decay=config.weight_decay)] if hidden else [adamw]


class Run:
    """The state of a training run, and how it is saved."""

    def __init__(
        self,
        task: Any,
        optimizers: tuple[OptimizerConfig, ...],
        loop: LoopConfig,
        accelerator: Accelerator,
        best: Best | None = None,
    ):
        self.task, self.loop, self.accelerator, self.best = task, loop, accelerator, best
        for network in task.companions:
            network.to(accelerator.device)
        self.main = Player(task, optimizers[0], accelerator)
        self.adversary = None if task.adversary is None else Player(task.adversary, optimizers[1], accelerator)
        self.ema = Ema(task.model) if loop.ema_decay else None
        if loop.compile:
            # The adversarial weight goes back through the decoder twice, which compiled code must be told of.
            torch._functorch.config.donated_buffer = False
            for network in task.networks():
                network.compile()
        self.step = 0
        self.diverged = torch.zeros((), dtype=torch.bool, device=accelerator.device)

    @property
    def players(self) -> list[Player]:
        return [self.main] if self.adversary is None else [self.main, self.adversary]

    @property
    def result(self) -> Any:
        """The model to evaluate and save."""
        return self.ema.model if self.ema else self.task.model

    def done(self) -> bool:
        """After the last step, or when the best evaluation was long ago."""
        if self.step == self.loop.steps or self.best is None:
            return self.step == self.loop.steps
        return bool(self.agree(torch.tensor(self.best.exhausted, device=self.accelerator.device)))

    def state(self) -> dict[str, Any]:
        state = {
            "step": self.step,
            "modules": [player.bare.state_dict() for player in self.players],
            "optimizers": [player.state() for player in self.players],
            "ema": self.ema.state_dict() if self.ema else None,
        }
        return state if self.best is None else state | {"best": self.best.state()}

    def restore(self, state: dict[str, Any]) -> None:
        for player, module, optimizer in zip(self.players, state["modules"], state["optimizers"], strict=True):
            player.bare.load_state_dict(module)
            player.restore(optimizer)
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.best:
            self.best.restore(state["best"])
        self.step = state["step"]

    def train_step(self, items: Iterator[Any]) -> dict[str, Tensor]:
        """All micro-batches of one optimiser step; numbers come back on the device, unsynchronised."""
        seed, rank = self.loop.seed, self.accelerator.process_index
        torch.manual_seed(derived_seed(seed, "dropout", self.step, rank))
        numbers: dict[str, Tensor] = {}
        for micro in range(self.loop.accumulate):
            generator = derived_generator(seed, "task", self.step, micro, rank)
            upkeep = derived_generator(seed, "upkeep", self.step, micro)
            numbers |= self.micro_step(next(items), micro == self.loop.accumulate - 1, generator, upkeep)
        norms = [p.apply(self.step, self.loop.steps) for p in self.players if p is self.main or self.adversary_active]
        self.step += 1
        if self.ema:
            self.ema.update(self.task.model, ema_decay(self.loop.ema_decay, self.step))
        return numbers | {"grad_norm": norms[0]}

    def micro_step(
        self, batch: Any, last: bool, generator: torch.Generator, upkeep: torch.Generator
    ) -> dict[str, Tensor]:
        batch = type(batch)(*(part.to(self.accelerator.device, non_blocking=True) for part in batch))
        with self.synchronised(self.main, last):
            with self.autocast():
                output = self.main.module(batch, self.step, generator)
            self.backward(output.losses)
        losses = dict(output.losses)
        if self.adversary is not None and self.adversary_active:
            with self.synchronised(self.adversary, last):
                with self.autocast():
                    against = self.adversary.module(output.kept, generator)
                self.backward(against)
            losses |= against
        losses = {"loss": sum(output.losses.values())} | losses
        return {name: loss.detach() for name, loss in losses.items()} | self.task.observe(output, upkeep)

    def backward(self, losses: dict[str, Tensor]) -> None:
        total = cast(Tensor, sum(losses.values())) / self.loop.accumulate
        self.diverged |= ~total.detach().isfinite()
        self.accelerator.backward(total)

    @property
    def adversary_active(self) -> bool:
        return self.adversary is not None and self.task.adversary.active(self.step)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision; on a CPU also plain attention: the backward pass of the fused kernel is slower there."""
        device = self.accelerator.device.type
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autocast(device, dtype=torch.bfloat16, enabled=self.loop.precision == "bf16"))
            if device == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def synchronised(self, player: Player, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged between processes in the last micro-batch only."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(player.module)

    def has_diverged(self) -> bool:
        return bool(self.agree(self.diverged))

    def agree(self, flag: Tensor) -> Tensor:
        """Whether any process has raised the flag."""
        return self.accelerator.reduce(flag.float(), reduction="sum") > 0


def fit(
    task: Any,
    batches: Dataset[Any],
    optimizers: tuple[OptimizerConfig, ...],
    loop: LoopConfig,
    out: Path,
    *,
    accelerator: Accelerator,
    name: str = "training",
    best: Best | None = None,
) -> Outcome:
    """Trains `task` to the end of `loop.steps`, from the last checkpoint in `out` if there is one.

    With `best`, the model before the first step is evaluated too, the run stops when its patience ends, and the model
    of the best evaluation is saved.

    Writes log.jsonl, checkpoints/, previews/ and at the end config.json + model.safetensors of the averaged model to
    `out`. Raises Diverged at a non-finite loss, Stopped after Ctrl-C or SIGTERM; both say where to go on from.
    """
    run = Run(task, optimizers, loop, accelerator, best)
    checkpoints = out / "checkpoints"
    saved = checkpoint.latest(checkpoints)
    if saved is not None:
        run.restore(checkpoint.read(saved))
        logger.info("%s: goes on after step %d", name, run.step)
    log = RunLog(out, name, loop.steps, run.step, quiet=not accelerator.is_main_process)
    started, first = time.monotonic(), run.step
    metrics: dict[str, float] = {}
    items = iterate(batches, run.step * loop.accumulate, loop.workers)
    meter = Meter(loop.batch_size, run.step)
    if best and saved is None:
        metrics = evaluate(run, log, out)
    task.train()
    finished = run.done()
    with stop_signals() as asked:
        while not finished:
            numbers = run.train_step(items)
            log.bar.update()
            done = run.step == loop.steps
            if run.step % loop.log_every == 0 or done:
                check(run, checkpoints, name)
                log.report(row(run, numbers, meter))
            if done or (loop.evaluate_every and run.step % loop.evaluate_every == 0):
                metrics = evaluate(run, log, out)
                finished = run.done()
                task.train()
                meter.restart(run.step)
            stop = should_stop(run, asked)
            if stop or finished or run.step % loop.checkpoint_every == 0:
                save(run, checkpoints, name)
            if stop and not finished:
                log.close()
                raise Stopped(
                    f"{name} stopped after step {run.step}; the same command with --resume goes on from {out}"
                )
    seconds = time.monotonic() - started
    if not metrics:  # resumed after its last step
        metrics = evaluate(run, log, out)
    if best:
        best.give(run.result)
        metrics = best.metrics or metrics
        logger.info("%s: the best evaluation was that after step %d", name, best.step)
    if accelerator.is_main_process:
        write_model(run.result, out)
    log.close()
    return Outcome(run.result.eval(), metrics, seconds, (run.step - first) * loop.batch_size / max(seconds, 1e-9))


def iterate(batches: Dataset[Any], start: int, workers: int) -> Iterator[Any]:
    """Items from `start` on, read ahead by other processes if there are workers."""
    rest = range(start, len(batches))  # type: ignore[arg-type]
    if workers == 0:
        return (batches[i] for i in rest)
    return iter(DataLoader(batches, batch_size=None, sampler=rest, num_workers=workers))


def check(run: Run, checkpoints: Path, name: str) -> None:
    if run.has_diverged():
        saved = checkpoint.latest(checkpoints)
        good = f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"
        raise Diverged(
            f"{name}: the loss became infinite or not a number before step {run.step}; {good}; "
            "lower optimizer.lr or use loop.precision no, and resume"
        )


def save(run: Run, checkpoints: Path, name: str) -> None:
    """Only what is known to be good."""
    check(run, checkpoints, name)
    if run.accelerator.is_main_process:
        checkpoint.write(checkpoints, run.step, run.state(), run.loop.keep_checkpoints)
    run.accelerator.wait_for_everyone()


def evaluate(run: Run, log: RunLog, out: Path) -> dict[str, float]:
    """Scores and pictures of the averaged model, by the main process."""
    if not run.accelerator.is_main_process:
        return {}
    model = run.result
    model.eval()
    metrics = run.task.evaluate(model)
    log.report({"step": run.step} | metrics)
    if run.best:
        run.best.see(run.step, metrics, model)
    picture = run.task.preview(model)
    if picture is not None:
        save_png(out / "previews" / f"step-{run.step:08d}.png", picture)
    return metrics


def row(run: Run, numbers: dict[str, Tensor], meter: Meter) -> dict[str, Any]:
    """A line of the log. Reading the numbers waits for the device."""
    config = run.main.config
    values = {name: float(value) for name, value in numbers.items()}
    return {
        "step": run.step,
        "rows": run.step * run.loop.batch_size,
        **values,
        "lr": config.lr * learning_rate_share(config, run.step - 1, run.loop.steps),
        "rows_per_second": meter.rate(run.step),
        "memory_bytes": peak_memory(run.accelerator.device),
    }


class Meter:
    """Rows per second of training since the last question; evaluations are left out."""

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        self.step, self.since = step, time.monotonic()

    def rate(self, step: int) -> float:
        rows, seconds = (step - self.step) * self.batch_size, time.monotonic() - self.since
        self.restart(step)
        return rows / max(seconds, 1e-9)


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM in a list, so that a step is finished and saved; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's business
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def should_stop(run: Run, asked: list[int]) -> bool:
    """Processes must stop after the same step; with several, they ask one another at every log line only."""
    if run.accelerator.num_processes == 1:
        return bool(asked)
    if run.step % run.loop.log_every:
        return False
    return bool(run.agree(torch.tensor(bool(asked), device=run.accelerator.device)))
