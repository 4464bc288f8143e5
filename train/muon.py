"""Muon: steps of equal length in all directions of a matrix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Odd polynomial whose iteration sends singular values in (0, 1] close to 1: between about 0.7 and 1.2 after five.
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (arXiv:2502.16982, section 2.1): for weights between hidden layers.

    Convolutions count as matrices out x (in * kernel). The step of an out x in matrix is lr * sqrt(max(1, out / in))
    times an almost orthogonal matrix; weight decay is decoupled, as in AdamW.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameters in by_shape(p for p in group["params"] if p.grad is not None).values():
                momenta = [self.momentum(p, group["momentum"]) for p in parameters]
                steps = orthogonal(torch.stack([m.flatten(1) for m in momenta]))
                length = group["lr"] * max(1.0, steps.shape[1] / steps.shape[2]) ** 0.5
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(step.view_as(parameter), alpha=length)

    def momentum(self, parameter: nn.Parameter, decay: float) -> Tensor:
        """Nesterov's: a running mean of the gradients, one step ahead."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean = state["mean"].lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(mean, decay)


def by_shape(parameters: Iterable[nn.Parameter]) -> dict[torch.Size, list[nn.Parameter]]:
    """Equal shapes are orthogonalised together: a few large products instead of many small ones."""
    groups = defaultdict(list)
    for parameter in parameters:
        groups[parameter.shape].append(parameter)
    return groups


def orthogonal(matrices: Tensor) -> Tensor:  # b m n -> b m n, float32
    """The nearest matrices with orthonormal rows (or columns), roughly: U V^T of the decomposition U S V^T."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = LINEAR * x + (CUBIC * square + QUINTIC * square @ square) @ x
    return (x if wide else x.mT).float()
