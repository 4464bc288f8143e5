"""From the transformer's outputs to the law of the next token."""

from __future__ import annotations

from torch import Tensor, nn

from imgtok.nn.norm import RMSNorm


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
