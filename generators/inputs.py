"""What the transformer reads: condition slots, then the tokens predicted so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imgtok.generators.condition import Prefix


class TokenInputs(nn.Module):
    """Token embeddings behind the condition's prefix: the last slot predicts token 0, token k predicts token k + 1."""

    def __init__(self, codebook_size: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """Teacher forcing: prefix b p c and tokens b n -> b (p + n - 1) c; the last token is never read."""
        return self.dropout(torch.cat([prefix.embeddings, self.embedding(tokens[:, :-1])], dim=1))

    def embed(self, tokens: Tensor) -> Tensor:
        """b w -> b w c"""
        return self.embedding(tokens)
