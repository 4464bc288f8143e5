"""The best evaluation of a run: its weights, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Best:
    """Keeps the weights of the evaluation whose number `metric` was lowest; they are part of every checkpoint."""

    def __init__(self, metric: str, patience: int) -> None:
        """patience: evaluations without gain after which a run stops; 0: it never does."""
        if patience < 0:
            raise ValueError(f"patience must be 0 (never stop early) or more evaluations, got {patience}")
        self.metric, self.patience = metric, patience
        self.metrics: dict[str, float] = {}
        self.step, self.waited = 0, 0
        self.weights: dict[str, Tensor] = {}

    def see(self, step: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        """An evaluation of `model` after `step` steps; what has no such number is passed over."""
        value = metrics.get(self.metric, math.inf)
        if not value < self.metrics.get(self.metric, math.inf):  # which includes what is no number
            self.waited += 1
            return
        self.metrics, self.step, self.waited = dict(metrics), step, 0
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.waited

    def state(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "step": self.step, "waited": self.waited, "weights": self.weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.metrics, self.step = state["metrics"], state["step"]
        self.waited, self.weights = state["waited"], state["weights"]

    def give(self, model: nn.Module) -> None:
        """The kept weights to `model`, if there are any."""
        if self.weights:
            model.load_state_dict(self.weights)
