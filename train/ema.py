"""Exponentially averaged weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar, cast

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """A copy of `model` whose floating-point parameters and buffers follow it as running means."""

    def __init__(self, model: M) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: M, decay: float) -> None:
        own, new = self.model.state_dict(), model.state_dict()
        floats = [name for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_([own[n] for n in floats], [new[n].to(own[n].dtype) for n in floats], 1 - decay)
        for name in own.keys() - set(floats):
            own[name].copy_(new[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return cast("dict[str, torch.Tensor]", self.model.state_dict())

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state)
