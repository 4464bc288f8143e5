"""Several codes side by side for a latent vector: each quantizer codes its own share of the channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from imgtok.quantizers.base import Choice, Quantized, Upkeep, nearest_codes
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.sign import SignConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokens import TokenLayout

BranchConfig = VectorConfig | ResidualConfig | SignConfig


@dataclass(frozen=True, kw_only=True)
class ProductConfig:
    branch: BranchConfig
    """Quantizer of every branch; each has its own codes."""
    count: int = 2
    """Number of branches, which is the number of indices of a token."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    @property
    def codebook_size(self) -> int:
        """Of each branch."""
        return self.branch.codebook_size

    @property
    def codebook_dim(self) -> int:
        """Of all branches together."""
        return self.count * self.branch.codebook_dim

    @property
    def latent_dim(self) -> int:
        """Channels before quantisation."""
        return self.codebook_dim

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Axes of the indices of one token: one for the branches."""
        return (self.count,)

    def layout_of(self, *latent_shape: int) -> TokenLayout:
        """That of a branch: tokens have several indices, but their places are the same."""
        return self.branch.layout_of(*latent_shape)

    def build(self) -> ProductQuantizer:
        return ProductQuantizer(self)


class ProductQuantizer(nn.Module):
    """Latents b ... d split over the channels, and joined again after quantisation (arXiv:2410.01756, after
    product quantisation, doi:10.1109/TPAMI.2010.57).

    Indices have the form of a branch's with one axis more, the last, for the branches: b h w k of a grid, b n k of a
    sequence, a map b h_k w_k k for each of several stages.
    """

    def __init__(self, config: ProductConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.codebook_dim = config.codebook_size, config.codebook_dim
        self.branches = nn.ModuleList(config.branch.build() for _ in range(config.count))

    def forward(self, latents: Tensor) -> Quantized:
        """b ... d -> Quantized, with losses that are means over the branches, as over the channels of one vector."""
        parts = [branch(part) for branch, part in self.paired(latents)]
        losses = {name: torch.stack([part.losses[name] for part in parts]).mean() for name in parts[0].losses}
        return Quantized(joined([part.latents for part in parts]), stacked([part.indices for part in parts]), losses)

    def paired(self, latents: Tensor) -> list[tuple[Any, Tensor]]:
        """Each branch and its share of the channels."""
        return list(zip(self.branches, latents.chunk(self.config.count, dim=-1), strict=True))

    def layout_of(self, *latent_shape: int) -> TokenLayout:
        return self.config.layout_of(*latent_shape)

    def nearest(self, latents: Tensor) -> Any:
        """b ... d -> b ... k, or a map for each of several stages."""
        return self.choose(latents, nearest_codes)

    def choose(self, latents: Tensor, choice: Choice) -> Any:
        """As `nearest`, branch after branch."""
        return each_map(stacked, [branch.choose(part, choice) for branch, part in self.paired(latents)])

    def codes(self, indices: Any, stages: int | None = None) -> Tensor:
        """b ... k, or a map for each of several stages -> b ... d."""
        parts = [branch.codes(self.of_branch(indices, i), stages) for i, branch in enumerate(self.quantizers)]
        return joined(parts)

    def of_branch(self, indices: Any, number: int) -> Any:
        return each_map(lambda maps: maps[0][..., number], [indices])

    @property
    def quantizers(self) -> list[Any]:
        return list(self.branches)

    def inputs(self, indices: Tensor, layout: TokenLayout) -> Tensor:
        """Indices b n k -> what a next-scale generator reads, where branches have stages: b (n - n_0) d."""
        return joined([branch.inputs(indices[..., i], layout) for i, branch in enumerate(self.quantizers)])

    def entropy_loss(self, latents: Tensor) -> Tensor:
        """Mean over branches."""
        return torch.stack([branch.entropy_loss(part) for branch, part in self.paired(latents)]).mean()

    def upkeep(self) -> ProductUpkeep:
        return ProductUpkeep(self)


class ProductUpkeep(nn.Module):
    """The upkeep of each branch."""

    def __init__(self, quantizer: ProductQuantizer) -> None:
        super().__init__()
        self.branches = nn.ModuleList(cast(nn.Module, branch.upkeep()) for branch in quantizer.quantizers)

    @torch.no_grad()
    def update(
        self, quantizer: ProductQuantizer, latents: Tensor, indices: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Latents b ... d, indices b ... k. Returns the numbers of the branches, means but for "reseeded", a sum."""
        numbers = [
            cast(Upkeep, upkeep).update(branch, part, indices[..., i], generator)
            for i, (upkeep, (branch, part)) in enumerate(zip(self.branches, quantizer.paired(latents), strict=True))
        ]
        means = {name: torch.stack([each[name].float() for each in numbers]).mean() for name in numbers[0]}
        return means | {"reseeded": torch.stack([each["reseeded"] for each in numbers]).sum()}


def joined(parts: Sequence[Tensor]) -> Tensor:
    """b ... d of each branch -> b ... (k d), the first branch first."""
    return torch.cat(list(parts), dim=-1)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """b ... of each branch -> b ... k."""
    return torch.stack(list(parts), dim=-1)


def each_map(function: Callable[[list[Tensor]], Tensor], parts: list[Any]) -> Any:
    """`function` of the branches' tensors, or, if they are maps of several stages, of those of each stage."""
    if isinstance(parts[0], Tensor):
        return function(parts)
    return tuple(function(list(maps)) for maps in zip(*parts, strict=True))
