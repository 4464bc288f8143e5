"""Transformer blocks whose norms have no weights, as FlexTok has them; with or without a condition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imgtok.nn.attention import Attention
from imgtok.nn.mlp import SwiGLU
from imgtok.nn.norm import layer_norm

NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Pre-norm blocks without biases: normed queries and keys, SwiGLU; no weights in any norm."""

    width: int = 768
    depth: int = 12
    head_dim: int = 64
    mlp_ratio: float = 4.0
    """Of an MLP with as many weights as the SwiGLU, which has three matrices instead of two."""

    def __post_init__(self) -> None:
        if self.width % self.head_dim or self.width % 4:
            raise ValueError(f"width {self.width} must be divisible by head_dim {self.head_dim} and by 4")

    def block(self) -> Block:
        return Block(self)

    def set_block(self) -> SetBlock:
        return SetBlock(self)


class Block(nn.Module):
    """Attention, then SwiGLU, each added to its input: b n c -> b n c."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        heads, scale = config.width // config.head_dim, 8 / config.head_dim  # of muP (arXiv:2203.03466)
        self.attention = Attention(config.width, heads, scale=scale, qk_norm=True)
        self.mlp = SwiGLU(config.width, int(2 / 3 * config.mlp_ratio * config.width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(layer_norm(x, NORM_EPS), mask=mask)
        return x + self.mlp(layer_norm(x, NORM_EPS))


class SetBlock(nn.Module):
    """The same, with norms and residuals set by the condition (AdaLN, arXiv:2212.09748), otherwise for patches than for
    registers. It begins as the identity.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.inner = Block(config)
        self.modulation = zero_linear(config.width, 2 * 6 * config.width)

    def modulate(self, condition: Tensor, sizes: list[int]) -> Tensor:
        """b c and the numbers of patches and registers n + m -> b (n + m) 6 c."""
        both = self.modulation(condition).unflatten(-1, (2, 6, -1)).split(1, dim=1)
        return torch.cat([each.expand(-1, size, -1, -1) for each, size in zip(both, sizes, strict=True)], dim=1)

    def forward(self, x: Tensor, modulation: Tensor, mask: Tensor | None) -> Tensor:
        gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = modulation.unbind(-2)
        h = torch.addcmul(shift_a, layer_norm(x, NORM_EPS), 1 + scale_a)
        x = torch.addcmul(x, gate_a, self.inner.attention(h, mask=mask))
        h = torch.addcmul(shift_m, layer_norm(x, NORM_EPS), 1 + scale_m)
        return torch.addcmul(x, gate_m, self.inner.mlp(h))


def zero_linear(width: int, out: int) -> nn.Linear:
    linear = nn.Linear(width, out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
