"""Feed-forward layers, and how transformer weights begin."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (arXiv:2002.05202), gate and up in one matrix."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MLP(nn.Module):
    """fc2(gelu(fc1 x)), the GELU by its tanh formula or exact (arXiv:1606.08415)."""

    def __init__(self, width: int, hidden: int, gelu: Literal["tanh", "exact"] = "tanh") -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.approximate = "tanh" if gelu == "tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


def swiglu_hidden(width: int, multiple: int = 256) -> int:
    """Llama's rule: two thirds of four widths, rounded up to a multiple."""
    return multiple * -(-int(8 * width / 3) // multiple)


def init_normal(module: nn.Module, std: float = 0.02, embedding_std: float = 0.02) -> None:
    """N(0, std) for linear and N(0, embedding_std) for embedding weights, zero biases (for `module.apply`)."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=embedding_std)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
