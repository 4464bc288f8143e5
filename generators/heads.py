"""From the transformer's outputs to the law of the next token."""

from __future__ import annotations

from torch import Tensor, nn

from imgtok.nn.norm import RMSNorm, layer_norm


class CategoricalHead(nn.Module):
    """Norm and one linear layer: b n c -> logits b n v. The layer begins at zero: the first law is uniform."""

    def __init__(self, width: int, codebook_size: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = RMSNorm(width, norm_eps)
        self.logits = nn.Linear(width, codebook_size, bias=False)

    def reset(self) -> None:
        nn.init.zeros_(self.logits.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.norm(x))


class LinearHead(nn.Module):
    """LayerNorm and one linear layer with biases: b n c -> logits b n v. `norm_eps` None: no norm."""

    def __init__(self, width: int, codebook_size: int, norm_eps: float | None = None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(width, norm_eps)
        self.logits = nn.Linear(width, codebook_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.norm(x))


class ModulatedHead(nn.Module):
    """The same after a norm that the condition sets: norm(x) (1 + scale) + shift (AdaLN, arXiv:2212.09748)."""

    def __init__(self, width: int, codebook_size: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.modulation = nn.Linear(width, 2 * width)
        self.logits = nn.Linear(width, codebook_size)

    def modulate(self, condition: Tensor) -> Tensor:
        """b c, after its SiLU -> b 1 2 c"""
        return self.modulation(condition).unflatten(-1, (1, 2, -1))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = modulation.unbind(-2)
        return self.logits(layer_norm(x, self.norm_eps) * (1 + scale) + shift)
