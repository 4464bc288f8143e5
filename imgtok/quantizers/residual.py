"""Several codes for a latent vector: each stage codes what the stages before it left over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.quantizers.base import Choice, Quantized, Upkeep, check_stages, nearest_codes
from imgtok.quantizers.sign import SignConfig, SignQuantizer
from imgtok.quantizers.usage import batch_perplexity, code_counts
from imgtok.quantizers.vector import VectorConfig, VectorQuantizer
from imgtok.quantizers.views import BandsConfig, ScalesConfig, StagesConfig, View, shrink
from imgtok.tokens import ScaleLayout

StageConfig = VectorConfig | SignConfig
ViewConfig = ScalesConfig | BandsConfig | StagesConfig


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    stage: StageConfig
    """Quantizer of every stage."""
    view: ViewConfig
    """What a stage sees: the rest at its scale (VAR), up to its frequency band (NFIG), or as it is (RVQ)."""
    shared: bool = True
    """One codebook for all stages; otherwise each has its own."""
    dropout: float = 0.0
    """In training, the decoder reads only the first stages of this share of the images, so that any number will do."""
    least_stages: int = 1
    """Stages that dropout always keeps."""
    unit: bool = False
    """Latents become unit vectors before the first stage, as of XQ-GAN's sign codes."""

    def __post_init__(self) -> None:
        if self.stage.l2_norm:
            raise ValueError(
                "stage.l2_norm must be off: rests become shorter from stage to stage, codes of length 1 cannot follow"
            )
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {self.dropout}")
        if not 1 <= self.least_stages <= self.view.num_stages:
            raise ValueError(f"least_stages must be from 1 to {self.view.num_stages}, got {self.least_stages}")

    @property
    def codebook_size(self) -> int:
        return self.stage.codebook_size

    @property
    def codebook_dim(self) -> int:
        return self.stage.codebook_dim

    @property
    def latent_dim(self) -> int:
        """Channels before quantisation."""
        return self.codebook_dim

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Axes of the indices of one token: none, there is one index."""
        return ()

    def layout_of(self, *latent_shape: int) -> ScaleLayout:
        """One map of tokens a stage, the last of them as large as the latents, (height, width)."""
        if len(latent_shape) != 2:
            raise ValueError(f"a residual quantizer codes latents on a grid, not of the shape {latent_shape}")
        height, width = latent_shape
        return ScaleLayout(self.view.sizes_of(height, width))

    def build(self) -> ResidualQuantizer:
        return ResidualQuantizer(self)


class Step(NamedTuple):
    """One stage's part in the quantisation of latents."""

    rest: Tensor
    """What it saw: b h_k w_k d."""
    indices: Tensor
    """b h_k w_k"""
    total: Tensor
    """Sum of its contribution and of all before: b h w d."""


class ResidualQuantizer(nn.Module):
    """Codes latents stage by stage (arXiv:2107.03312; on growing maps arXiv:2404.02905; in bands arXiv:2503.07076).

    Latents are b h w d, indices a map b h_k w_k a stage, or flat b n in the order of `layout_of`. Everything is in
    float32. For generators that predict stage after stage there are `start`, `accumulate`, `seen` and `inputs`.
    """

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.codebook_dim = config.codebook_size, config.codebook_dim
        self.num_stages = config.view.num_stages
        self.stages = nn.ModuleList(config.stage.build() for _ in range(1 if config.shared else self.num_stages))
        self.view: View = config.view.build(config.codebook_dim)

    def forward(self, latents: Tensor) -> Quantized:
        """b h w d -> Quantized, with indices b n and losses that are means over the stages."""
        latents = self.normalize(latents)
        steps = list(self.steps(latents))
        layout = self.layout_of(latents.shape[1], latents.shape[2])
        read = self.dropped([step.total for step in steps])
        losses = self.losses(latents, [step.total for step in steps]) if self.training else {}
        indices = layout.flatten([step.indices for step in steps])
        return Quantized(latents + (read - latents).detach(), indices, losses)

    def steps(
        self, latents: Tensor, indices: Sequence[Tensor] | None = None, choice: Choice = nearest_codes
    ) -> Iterator[Step]:
        """Stage by stage; with `indices`, maps b h_k w_k, these codes are taken in place of the choice's.

        The gradient of a rest is that of the latents, that of a total goes to codes and blends.
        """
        latents = self.normalize(latents)
        layout = self.layout_of(latents.shape[1], latents.shape[2])
        total = torch.zeros_like(latents)
        for stage in range(self.num_stages):
            rest = self.view.rest(latents, total.detach(), stage, layout)
            with torch.no_grad():
                chosen = choice(self.quantizer_of(stage), rest) if indices is None else indices[stage]
            total = self.accumulate(total, chosen, stage, layout)
            yield Step(rest, chosen, total)

    def normalize(self, latents: Tensor) -> Tensor:
        """What the stages code: float32."""
        return F.normalize(latents.float(), dim=-1) if self.config.unit else latents.float()

    def losses(self, latents: Tensor, totals: Sequence[Tensor]) -> dict[str, Tensor]:
        """Mean over stages of the distance between latents and the sum so far, once for either side.

        "commitment" moves the latents, "codebook" codes and blends. Codes that are running means need no loss, but the
        blends still do: then it is called "blend", so that its weight does not depend on how codes learn. Dropout has
        no part in them: every stage learns from every image.
        """
        to_latents = torch.stack([F.mse_loss(latents, total.detach()) for total in totals]).mean()
        to_totals = torch.stack([F.mse_loss(total, latents.detach()) for total in totals]).mean()
        losses = {"commitment": to_latents}
        if any(parameter.requires_grad for parameter in self.stages.parameters()):
            losses["codebook"] = to_totals
        elif any(True for _ in self.view.parameters()):
            losses["blend"] = to_totals
        return losses

    def dropped(self, totals: Sequence[Tensor]) -> Tensor:
        """What the decoder reads: the last of `totals`, in training for some images an earlier one.

        Drawn from torch's global generator, as nn.Dropout does.
        """
        least, count, read = self.config.least_stages, self.num_stages, totals[-1]
        if not self.training or not self.config.dropout or least == count:
            return read
        batch, device = len(read), read.device
        fewer = torch.rand(batch, device=device) < self.config.dropout
        kept = torch.randint(least, count, (batch,), device=device).masked_fill(~fewer, count)
        for stage in range(least, count):
            read = torch.where((kept == stage)[:, None, None, None], totals[stage - 1], read)
        return read

    def layout_of(self, *latent_shape: int) -> ScaleLayout:
        return self.config.layout_of(*latent_shape)

    def nearest(self, latents: Tensor) -> tuple[Tensor, ...]:
        """b h w d -> a map b h_k w_k a stage."""
        return self.choose(latents, nearest_codes)

    def choose(self, latents: Tensor, choice: Choice) -> tuple[Tensor, ...]:
        """b h w d -> a map b h_k w_k a stage. Later stages code what the codes chosen before them left over."""
        return tuple(step.indices for step in self.steps(latents, choice=choice))

    def codes(self, indices: Sequence[Tensor], stages: int | None = None) -> Tensor:
        """Maps b h_k w_k of all stages -> b h w d, the size of the last. `stages`: the sum of the first ones only."""
        if len(indices) != self.num_stages:
            raise ValueError(f"{len(indices)} maps of indices were given, but there are {self.num_stages} stages")
        layout = ScaleLayout(tuple((each.shape[1], each.shape[2]) for each in indices))
        total = self.start(len(indices[0]), layout).to(indices[0].device)
        for stage in range(check_stages(stages, self.num_stages)):
            total = self.accumulate(total, indices[stage], stage, layout)
        return total

    def start(self, batch: int, layout: ScaleLayout) -> Tensor:
        """The sum of no stages: zeros b h w d."""
        weight = next(self.parameters(), None)
        device = None if weight is None else weight.device  # signs have none
        return torch.zeros(batch, layout.height, layout.width, self.codebook_dim, device=device)

    def nearest_after(self, latents: Tensor, total: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        """The codes b h_k w_k with which `stage` comes closest to latents b h w d, when `total` b h w d is coded."""
        return self.quantizer_of(stage).nearest(self.view.rest(self.normalize(latents), total, stage, layout))

    def accumulate(self, latents: Tensor, indices: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        """Adds the codes of one stage, b h_k w_k, to the sum b h w d of those before it."""
        return latents + self.view.restore(self.quantizer_of(stage).codes(indices), stage, layout)

    def seen(self, latents: Tensor, stage: int, layout: ScaleLayout) -> Tensor:
        """The sum b h w d of all stages before `stage` at its size, b h_k w_k d: what a generator predicts it from."""
        return shrink(latents.float(), layout.sizes[stage])

    def inputs(self, indices: Tensor, layout: ScaleLayout) -> Tensor:
        """Indices b n -> what is `seen` before each stage but the first: b (n - n_0) d, for teacher forcing."""
        total, maps = self.start(len(indices), layout).to(indices.device), layout.unflatten(indices)
        seen = [total[:, :0].flatten(1, 2)]
        for stage in range(1, self.num_stages):
            total = self.accumulate(total, maps[stage - 1], stage - 1, layout)
            seen.append(self.seen(total, stage, layout).flatten(1, 2))
        return torch.cat(seen, dim=1)

    def entropy_loss(self, latents: Tensor) -> Tensor:
        """Mean over codebooks of their entropy loss, each over all that its stages see."""
        rests = self.by_codebook([step.rest for step in self.steps(latents)])
        losses = [stage.entropy_loss(rest) for stage, rest in zip(self.codebooks, rests, strict=True)]
        return torch.stack(losses).mean()

    @property
    def codebooks(self) -> list[VectorQuantizer | SignQuantizer]:
        """One for all stages or one for each."""
        return [cast(VectorQuantizer | SignQuantizer, stage) for stage in self.stages]

    def quantizer_of(self, stage: int) -> VectorQuantizer | SignQuantizer:
        return self.codebooks[0 if self.config.shared else stage]

    def by_codebook(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """A map b h_k w_k ... a stage -> all that belong to one codebook: b m ... a codebook."""
        flat = [each.flatten(1, 2) for each in maps]
        return [torch.cat(flat, dim=1)] if self.config.shared else flat

    def upkeep(self) -> ResidualUpkeep:
        return ResidualUpkeep(self)


class ResidualUpkeep(nn.Module):
    """The upkeep of each codebook, from what its stages see of the latents."""

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(cast(nn.Module, codebook.upkeep()) for codebook in quantizer.codebooks)

    @torch.no_grad()
    def update(
        self, quantizer: ResidualQuantizer, latents: Tensor, indices: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """After a training step, before codes or blends have moved: latents b h w d, indices b n.

        Returns "codes_used" and "perplexity" of the batch (means, if there are several codebooks), the same with
        "_k" for stage k, and "reseeded" of all codebooks together.
        """
        layout = quantizer.layout_of(latents.shape[1], latents.shape[2])
        maps = layout.unflatten(indices)
        rests = quantizer.by_codebook([step.rest for step in quantizer.steps(latents, maps)])
        reseeded = [
            cast(Upkeep, upkeep).update(codebook, rest, chosen, generator)["reseeded"]
            for upkeep, codebook, rest, chosen in zip(
                self.codebooks, quantizer.codebooks, rests, quantizer.by_codebook(maps), strict=True
            )
        ]
        counts = stage_counts(maps, quantizer.codebook_size)
        whole = counts.sum(0, keepdim=True) if quantizer.config.shared else counts
        numbers = {
            "codes_used": (whole > 0).sum(-1).float().mean(),
            "perplexity": torch.stack([batch_perplexity(row) for row in whole]).mean(),
            "reseeded": torch.stack(reseeded).sum(),
        }
        for stage, row in enumerate(counts):
            numbers |= {f"codes_used_{stage}": (row > 0).sum(), f"perplexity_{stage}": batch_perplexity(row)}
        return numbers


def stage_counts(maps: Sequence[Tensor], codebook_size: int) -> Tensor:
    """How often each code occurs in each stage, over all processes: int64 [stages, codebook_size]."""
    numbered = [each.flatten() + stage * codebook_size for stage, each in enumerate(maps)]
    return code_counts(torch.cat(numbered), len(maps) * codebook_size).unflatten(0, (len(maps), codebook_size))
