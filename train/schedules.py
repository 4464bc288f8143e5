"""Numbers that change with the step."""

from __future__ import annotations

import math

from imgtok.train.config import OptimizerConfig, PerturbConfig


def learning_rate_share(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps` as a share of its highest value."""
    step, steps = max(step - config.start, 0), steps - config.start
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    return config.final_share + (1 - config.final_share) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def ema_decay(highest: float, step: int) -> float:
    """Rises from 0.1 to `highest`, so that early weights are forgotten soon."""
    return min(highest, (1 + step) / (10 + step))


def perturbation_share(config: PerturbConfig, step: int, steps: int) -> float:
    """Rate and neighbours of the perturbation at `step` of `steps`, as a share of the first ones (arXiv:2503.08354).

    It falls linearly. The published code has end * fraction where (1 - end) * fraction is meant, the same for 0.5.
    """
    done = step / steps - config.hold
    fraction = min(max(done / max(config.until - config.hold, 1e-9), 0.0), 1.0)
    return 1 - (1 - config.final) * fraction
