"""One learned codebook: the nearest code stands for a latent vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.quantizers.base import Choice, Quantized, check_stages
from imgtok.quantizers.usage import batch_perplexity, code_counts, from_first_process, sum_over_processes
from imgtok.tokens import GridLayout, SequenceLayout, plain_layout


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    codebook_size: int = 16384
    """Number of codes."""
    codebook_dim: int = 8
    """Length of a code vector."""
    l2_norm: bool = True
    """Compare and return unit vectors (cosine distance, arXiv:2110.04627); otherwise codes of any length."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """How codes of any length are compared; "cosine" takes the code of the nearest direction, as ImageFolder does."""
    learning: Literal["loss", "ema"] = "loss"
    """How codes move: by the gradient of the codebook loss, or as running means of latents (arXiv:1711.00937 A.1)."""
    ema_decay: float = 0.99
    """Decay of the running means, and of the use counts by which dead codes are found."""
    reseed_below: float = 0.02
    """In training, a code used less than this share of the mean use moves to a latent of the batch; 0: never."""
    begin: Literal["random", "latents"] = "random"
    """Where training finds codes: where they are, or those that the first batch hardly uses on latents of it. The
    latter is for codebooks without `l2_norm` trained from scratch: near zero, a few codes would take all latents."""
    entropy_temperature: float = 0.01
    """Temperature of the soft assignment in the entropy loss."""

    def __post_init__(self) -> None:
        if self.codebook_size < 1 or self.codebook_dim < 1:
            raise ValueError(
                f"codebook_size and codebook_dim must be at least 1, got {self.codebook_size} and {self.codebook_dim}"
            )

    @property
    def latent_dim(self) -> int:
        """Channels before quantisation."""
        return self.codebook_dim

    @property
    def index_shape(self) -> tuple[int, ...]:
        """Axes of the indices of one token: none, there is one index."""
        return ()

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        """One token per latent, on a grid (height, width) or in a sequence (length)."""
        return plain_layout(latent_shape)

    def build(self) -> VectorQuantizer:
        return VectorQuantizer(self)


class VectorQuantizer(nn.Module):
    """Nearest code of a learned codebook (arXiv:1711.00937); cosine distance if `l2_norm` (arXiv:2110.04627)."""

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.codebook_dim = config.codebook_size, config.codebook_dim
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)
        if config.l2_norm and not self.embedding.weight.is_meta:
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        self.embedding.weight.requires_grad_(config.learning == "loss")

    def forward(self, latents: Tensor) -> Quantized:
        """b ... d -> Quantized, computed in float32."""
        latents = self.normalize(latents.float())
        indices = self.nearest(latents)
        codes = self.codes(indices)
        losses = self.losses(latents, codes) if self.training else {}
        return Quantized(latents + (codes - latents).detach(), indices, losses)

    def losses(self, latents: Tensor, codes: Tensor) -> dict[str, Tensor]:
        losses = {"commitment": F.mse_loss(latents, codes.detach())}
        if self.config.learning == "loss":
            losses["codebook"] = F.mse_loss(codes, latents.detach())
        return losses

    def entropy_loss(self, latents: Tensor) -> Tensor:
        """Of latents b ... d: mean entropy of soft assignments minus entropy of their mean (arXiv:2310.05737 eq. 5).

        Low when each latent is sure of its code and all codes are used alike. The 1e-5 in the logarithm is LlamaGen's.
        """
        logits = -self.distances(self.normalize(latents.float()).flatten(0, -2)) / self.config.entropy_temperature
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        mean = probs.mean(0)
        return -(probs * log_probs).sum(-1).mean() + (mean * torch.log(mean + 1e-5)).sum()

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        return self.config.layout_of(*latent_shape)

    def codes(self, indices: Tensor, stages: int | None = None) -> Tensor:
        """b ... -> b ... d; there is one stage."""
        check_stages(stages, 1)
        return self.normalize(self.embedding(indices).float())

    def nearest(self, latents: Tensor) -> Tensor:
        """b ... d -> b ..., for latents as given or already normalised."""
        return self.distances(self.normalize(latents.float())).argmin(-1)

    def neighbours(self, latents: Tensor, count: int) -> Tensor:
        """b ... d -> b ... count, the nearest first."""
        return self.distances(self.normalize(latents.float())).topk(count, largest=False).indices

    def choose(self, latents: Tensor, choice: Choice) -> Tensor:
        """b ... d -> b ..."""
        return choice(self, latents)

    def distances(self, latents: Tensor) -> Tensor:
        """Squared distances of (normalised) latents to all codes: b ... d -> b ... v, float32; of unit vectors if
        they are compared by their direction.
        """
        with torch.autocast(latents.device.type, enabled=False):  # which would multiply matrices in half precision
            codebook, latents = self.normalize(self.embedding.weight.float()), latents.float()
            if self.config.distance == "cosine":
                codebook, latents = F.normalize(codebook, dim=-1), F.normalize(latents, dim=-1)
            squares = latents.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
            return squares - 2 * latents @ codebook.T

    def normalize(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.config.l2_norm else x

    def upkeep(self) -> CodebookUpkeep:
        return CodebookUpkeep(self.codebook_size, self.codebook_dim)


class CodebookUpkeep(nn.Module):
    """What training remembers of a codebook beside its weights: running use (1 is the mean) and sums of latents.

    It belongs to the training task, so that a saved tokenizer holds nothing that only training needs.
    """

    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, codebook_dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def update(
        self, quantizer: VectorQuantizer, latents: Tensor, indices: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """After a training step: running means of used codes (if `learning="ema"`), new places for dead ones.

        latents b ... d before quantisation, indices b ...; `generator` (on the CPU) draws the latents for dead codes.
        All processes end with the same codebook. Returns "codes_used" and "perplexity" of the batch, and "reseeded".
        """
        config = quantizer.config
        latents = quantizer.normalize(latents.detach().float()).flatten(0, -2)
        counts = code_counts(indices, quantizer.codebook_size)
        unit = quantizer.codebook_size / counts.sum()  # counts in units of the mean use: no batch size in them
        self.start(quantizer)
        self.counts.lerp_(counts * unit, 1 - config.ema_decay)
        if config.learning == "ema":
            self.move_to_means(quantizer, latents, indices.flatten(), unit)
        reseeded = self.reseed(quantizer, latents, generator)
        return {"codes_used": (counts > 0).sum(), "perplexity": batch_perplexity(counts), "reseeded": reseeded}

    def start(self, quantizer: VectorQuantizer) -> None:
        """Each code begins as if it had been used as much as all others, by latents equal to it.

        With `begin="latents"` it begins as never used: so all that the first batch hardly uses are re-seeded from it.
        """
        if quantizer.config.begin == "latents":
            self.counts.mul_(self.started)
        begun = quantizer.normalize(quantizer.embedding.weight.float()) * self.counts[:, None]
        self.sums.copy_(torch.where(self.started, self.sums, begun))
        self.started.fill_(True)

    def move_to_means(self, quantizer: VectorQuantizer, latents: Tensor, indices: Tensor, unit: Tensor) -> None:
        sums = torch.zeros_like(self.sums).index_add_(0, indices, latents)
        self.sums.lerp_(sum_over_processes(sums) * unit, 1 - quantizer.config.ema_decay)
        means = self.sums / self.counts.clamp_min(1e-5)[:, None]
        quantizer.embedding.weight.copy_(quantizer.normalize(means))

    def reseed(self, quantizer: VectorQuantizer, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Puts each dead code on a latent drawn from the batch. Shapes are fixed, so nothing waits for the device.

        It begins anew with five times the use at which it would be dead again: soon, if its new place is no better.
        """
        threshold = quantizer.config.reseed_below
        dead = self.counts < threshold
        draw = torch.randint(len(latents), (quantizer.codebook_size,), generator=generator).to(latents.device)
        places = from_first_process(latents[draw])
        weight = quantizer.embedding.weight
        weight.copy_(torch.where(dead[:, None], places, weight))
        self.sums.copy_(torch.where(dead[:, None], places * (5 * threshold), self.sums))
        self.counts.masked_fill_(dead, 5 * threshold)
        return dead.sum()
