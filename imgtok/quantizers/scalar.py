"""Codes without a codebook: every number of a latent is rounded to one of a few levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imgtok.quantizers.base import Choice, Quantized, check_stages
from imgtok.tokens import GridLayout, SequenceLayout, plain_layout

MARGIN = 1e-3  # how far outer levels reach beyond their centres, so that none lies at infinity


@dataclass(frozen=True, kw_only=True)
class ScalarConfig:
    """Finite scalar quantization (FSQ, arXiv:2309.15505)."""

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Levels of each number; their product is the number of codes."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels must be one or more numbers of at least 2, got {self.levels}")

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def codebook_dim(self) -> int:
        return len(self.levels)

    @property
    def latent_dim(self) -> int:
        """Channels before quantisation."""
        return len(self.levels)

    @property
    def index_shape(self) -> tuple[int, ...]:
        """There is one index for a token."""
        return ()

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        """One token per latent."""
        return plain_layout(latent_shape)

    def build(self) -> ScalarQuantizer:
        return ScalarQuantizer(self)


class ScalarQuantizer(nn.Module):
    """Bounds every number of a latent by a tanh and rounds it (arXiv:2309.15505, sections 3.1 and A.1).

    No parameters and no losses. A code's numbers are the integers -(L // 2), ..., (L - 1) // 2 divided by L // 2: from
    -1 to 1 for an odd number L of levels. Of an index, the first number's level changes fastest.
    """

    def __init__(self, config: ScalarConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.codebook_dim = config.codebook_size, config.codebook_dim

    def forward(self, latents: Tensor) -> Quantized:
        """b ... d -> Quantized, computed in float32. The gradient passes the rounding, not the tanh."""
        bounded = self.bound(latents)
        rounded = bounded + (bounded.round() - bounded).detach()
        return Quantized(rounded / self.halves(latents), self.indices(bounded.round()), {})

    def bound(self, latents: Tensor) -> Tensor:
        """Each number to between its outer levels, -(L // 2) and (L - 1) // 2, and a little beyond; 0 stays 0."""
        levels = latents.new_tensor(self.config.levels, dtype=torch.float32)
        reach = (levels - 1) * (1 + MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return (latents.float() + (offset / reach).atanh()).tanh() * reach - offset

    def halves(self, like: Tensor) -> Tensor:
        return like.new_tensor([level // 2 for level in self.config.levels], dtype=torch.float32)

    def indices(self, rounded: Tensor) -> Tensor:
        """Integers b ... d around 0, in any type -> b ..."""
        digits = rounded.long() + self.halves(rounded).long()
        return (digits * torch.tensor(self.steps, device=rounded.device)).sum(-1)

    @property
    def steps(self) -> list[int]:
        """By how much the index grows with a level of each number."""
        return [math.prod(self.config.levels[:i]) for i in range(self.codebook_dim)]

    def nearest(self, latents: Tensor) -> Tensor:
        """b ... d -> b ..."""
        return self.indices(self.bound(latents).round())

    def neighbours(self, latents: Tensor, count: int) -> Tensor:
        """b ... d -> b ... count, the nearest first, of bounded latents and as the decoder reads codes.

        Without looking at all codes: the best `count` of them begin as one of the best `count` do that have fewer
        numbers, so it is enough to go on from these, number by number.
        """
        bounded = self.bound(latents)
        found = torch.zeros(*bounded.shape[:-1], 1, dtype=torch.int64, device=bounded.device)
        away = torch.zeros_like(found, dtype=torch.float32)
        for number, (level, step) in enumerate(zip(self.config.levels, self.steps, strict=True)):
            digits, half = torch.arange(level, device=bounded.device), level // 2
            further = ((bounded[..., number, None] - (digits - half)) / half).square()
            away = (away[..., :, None] + further[..., None, :]).flatten(-2)
            found = (found[..., :, None] + digits * step).flatten(-2)
            away, best = away.topk(min(count, away.shape[-1]), largest=False)
            found = found.gather(-1, best)
        return found

    def choose(self, latents: Tensor, choice: Choice) -> Tensor:
        """b ... d -> b ..."""
        return choice(self, latents)

    def codes(self, indices: Tensor, stages: int | None = None) -> Tensor:
        """b ... -> b ... d; there is one stage."""
        check_stages(stages, 1)
        digits, rest = [], indices
        for level in self.config.levels:
            digits.append(rest % level)
            rest = rest // level
        halves = self.halves(indices)
        return (torch.stack(digits, dim=-1) - halves) / halves

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        return self.config.layout_of(*latent_shape)

    def entropy_loss(self, latents: Tensor) -> Tensor:
        raise ValueError("levels are in use by themselves, and have no entropy loss; set the weight entropy to 0")

    def upkeep(self) -> NoUpkeep:
        return NoUpkeep()


class NoUpkeep(nn.Module):
    """There is no codebook to look after."""

    def update(
        self, quantizer: ScalarQuantizer, latents: Tensor, indices: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {}
