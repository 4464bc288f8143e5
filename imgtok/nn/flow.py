"""Rectified flow (arXiv:2209.03003): straight lines from data at time 0 to noise at time 1, and their velocity.

Networks learn the velocity; solvers follow it from noise to data. Randomness comes in from outside, as the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

MODE_LIMIT = 2 / (math.pi - 2)

Velocity = Callable[[Tensor, float], Tensor]
"""Of x at one time: b ... -> b ..."""


def noised(data: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """(1 - t) data + t noise, with t of each row: b ..., b ..., b -> b ..."""
    t = times.reshape(-1, *[1] * (data.ndim - 1))
    return (1 - t) * data + t * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """dx/dt along the line, the same at all times; what a network learns by mean squared error."""
    return noise - data


def logit_normal(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times for training from standard normal variables, most often in the middle (arXiv:2403.03206 eq. 19)."""
    return torch.sigmoid(mean + std * normal)


@dataclass(frozen=True, kw_only=True)
class FlowTimes:
    """Of which times training learns the velocity how often (arXiv:2403.03206, section 3.1)."""

    law: Literal["logit-normal", "mode"] = "logit-normal"
    """The sigmoid of a normal variable; or 1 - u - scale (cos^2(pi u / 2) - 1 + u) of a uniform one."""
    mean: float = 0.0
    """Of the normal variable."""
    std: float = 1.0
    scale: float = 0.0
    """For "mode": above 0 the middle is more often, below 0 the ends are; 0: all times alike."""
    stratified: bool = False
    """Each image of a batch draws from a part of its own of the law, all as likely: batches differ less."""

    def __post_init__(self) -> None:
        if self.std <= 0 or not -1 <= self.scale <= MODE_LIMIT:
            raise ValueError(
                f"std must be above 0 and scale -1 to {MODE_LIMIT:.3f}, beyond which times turn back, "
                f"got {self.std} and {self.scale}"
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Times of `count` images: b in [0, 1], on the generator's device."""
        draws = torch.rand(count, generator=generator, device=generator.device)
        if self.stratified:
            parts = torch.randperm(count, generator=generator, device=generator.device)
            draws = (parts + draws) / count
        return self.at(draws)

    def at(self, share: Tensor) -> Tensor:
        """The times that this share of all times lies below (the law's quantiles): b ... in [0, 1] -> b ..."""
        if self.law == "logit-normal":
            return logit_normal(torch.special.ndtri(share), self.mean, self.std)
        u = 1 - share
        return 1 - u - self.scale * ((math.pi / 2 * u).cos().square() - 1 + u)


@dataclass(frozen=True, kw_only=True)
class FlowSolver:
    """How the velocity is followed from time 1 to time 0."""

    num_steps: int = 25
    method: Literal["euler", "heun"] = "euler"
    """Of a step; "heun" is of second order and asks for the velocity twice, but once in the last."""
    shift: float = 1.0
    """t becomes shift t / (1 + (shift - 1) t), which above 1 puts more steps near the noise (arXiv:2403.03206 eq. 23);
    1: steps of equal length."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be a positive number, got {self.shift}")

    def times(self) -> list[float]:
        """From 1 to 0, one more than there are steps."""
        even = [1 - i / self.num_steps for i in range(self.num_steps + 1)]
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in even]

    def solve(self, velocity: Velocity, noise: Tensor) -> Tensor:
        """Noise b ... -> data b ..., in the type of the noise."""
        step = {"euler": euler_step, "heun": heun_step}[self.method]
        x, times = noise, self.times()
        for start, end in pairwise(times):
            x = step(velocity, x, start, end)
        return x


def euler_step(velocity: Velocity, x: Tensor, start: float, end: float) -> Tensor:
    return x + (end - start) * velocity(x, start)


def heun_step(velocity: Velocity, x: Tensor, start: float, end: float) -> Tensor:
    """The mean of the velocities at both ends; a step to 0 is Euler's, since networks learn little there."""
    first = velocity(x, start)
    there = x + (end - start) * first
    return x + (end - start) * (first + velocity(there, end)) / 2 if end > 0 else there


@dataclass(frozen=True, kw_only=True)
class FlowGuidance:
    """Classifier-free guidance of a velocity (arXiv:2207.12598), projected if wanted (APG, arXiv:2410.02416).

    v + (scale - 1) d for the conditional velocity v and d = v - null. Projected guidance limits d, gives it a momentum
    over steps, and weakens its part along v, so that high scales do not oversaturate.
    """

    scale: float = 1.0
    """1: none, and no unconditional pass."""
    momentum: float = 0.0
    """Of earlier differences in d; negative: away from them."""
    max_norm: float | None = None
    """Of d, over all of a row; None: any."""
    parallel: float = 1.0
    """What the part of d along v is multiplied by."""

    def build(self) -> FlowGuide:
        return FlowGuide(self)


class FlowGuide:
    """Guides the steps of one run, in their order."""

    def __init__(self, config: FlowGuidance) -> None:
        self.config = config
        self.difference: Tensor | None = None

    def __call__(self, conditional: Tensor, null: Tensor) -> Tensor:
        """b ..., b ... -> b ..., in float32."""
        v, config = conditional.float(), self.config
        d = v - null.float()
        if self.difference is not None:
            d = d + config.momentum * self.difference
        self.difference = d
        if config.max_norm is not None:
            norm = d.flatten(1).norm(dim=1).reshape(-1, *[1] * (d.ndim - 1))
            d = d * (config.max_norm / norm.clamp_min(1e-12)).clamp_max(1)
        return v + (config.scale - 1) * (d + (config.parallel - 1) * along(d, v))


def along(x: Tensor, direction: Tensor) -> Tensor:
    """The part of each row of x in the direction of another: b ..., in float64 within, where it nearly vanishes."""
    flat, unit = x.double().flatten(1), nn.functional.normalize(direction.double().flatten(1), dim=1)
    return ((flat * unit).sum(1, keepdim=True) * unit).view_as(x).to(x.dtype)


def wave_features(times: Tensor, count: int, period: float) -> Tensor:
    """Cosines, then sines, of `count` / 2 frequencies from 1 down to nearly 1 / period: b -> b count, float32."""
    half = count // 2
    frequencies = torch.exp(-math.log(period) * torch.arange(half, device=times.device, dtype=torch.float32) / half)
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Times b in [0, 1] -> b c by waves of 1000 t and two layers (arXiv:2212.09748)."""

    def __init__(self, width: int, waves: int = 256, period: float = 10000.0) -> None:
        super().__init__()
        self.waves, self.period = waves, period
        self.fc1, self.fc2 = nn.Linear(waves, width), nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        features = wave_features(1000 * times.float(), self.waves, self.period)
        return self.fc2(nn.functional.silu(self.fc1(features.to(self.fc1.weight.dtype))))
