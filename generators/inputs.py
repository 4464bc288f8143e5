"""What the transformer reads: condition slots, then the tokens predicted so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imgtok.generators.condition import Prefix


class CumulativeInputs(nn.Module):
    """What the tokens of a stage see of the stages before: the latents so far, at their own size (arXiv:2404.02905).

    Each position adds an embedding of its own and one of its stage. The first stage sees the condition instead.
    """

    def __init__(self, group_sizes: tuple[int, ...], codebook_dim: int, width: int) -> None:
        super().__init__()
        self.latents = nn.Linear(codebook_dim, width)
        self.stages = nn.Embedding(len(group_sizes), width)
        self.positions = nn.Parameter(torch.empty(sum(group_sizes), width))
        self.start = nn.Parameter(torch.empty(group_sizes[0], width))
        self.group_sizes = group_sizes

    def forward(self, prefix: Prefix, seen: Tensor, places: Tensor) -> Tensor:
        """Teacher forcing: prefix b 1 c, what all stages but the first see, b n-n0 d, and `places()`: b n c."""
        first = prefix.embeddings + self.start
        return torch.cat([first, self.latents(seen)], dim=1) + places

    def stage(self, prefix: Prefix, stage: int, seen: Tensor | None, places: Tensor) -> Tensor:
        """The same for one stage; `seen` b n_k d, None for the first: b n_k c."""
        end = sum(self.group_sizes[: stage + 1])
        x = prefix.embeddings + self.start if seen is None else self.latents(seen)
        return x + places[end - self.group_sizes[stage] : end]

    def places(self) -> Tensor:
        """n c"""
        rows = zip(self.stages.weight, self.group_sizes, strict=True)
        return self.positions + torch.cat([row.expand(size, -1) for row, size in rows])


class MaskedInputs(nn.Module):
    """Token embeddings behind the condition's prefix, each with that of its place; the last token is the mask.

    `norm_eps`: of a LayerNorm over the sum, as in BERT; None: none.
    """

    def __init__(
        self, codebook_size: int, num_places: int, width: int, norm_eps: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size + 1, width)
        self.positions = nn.Parameter(torch.empty(num_places, width))
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """prefix b p c and tokens b n -> b (p + n) c"""
        x = torch.cat([prefix.embeddings, self.embedding(tokens)], dim=1)
        return self.dropout(self.norm(x + self.positions))


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
