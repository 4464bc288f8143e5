"""Binary codes without a codebook: of every number of a latent, its sign is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.quantizers.base import Choice, Quantized, check_stages
from imgtok.quantizers.usage import batch_perplexity, code_counts
from imgtok.tokens import GridLayout, SequenceLayout, plain_layout

MOST_BITS = 24  # whose codes can still be counted


@dataclass(frozen=True, kw_only=True)
class SignConfig:
    """Binary spherical quantization (BSQ, arXiv:2406.07548); with both switches off, lookup-free (arXiv:2310.05737)."""

    bits: int = 18
    """Numbers of a latent; there are 2 ** bits codes."""
    unit: bool = True
    """Codes are unit vectors, of numbers 1 / sqrt(bits) and its negative; otherwise their numbers are 1 and -1."""
    l2_norm: bool = True
    """Latents become unit vectors first. Off for stages of a residual quantizer, which sees to it itself."""
    entropy_temperature: float = 1.0
    """Of the soft assignment in the entropy loss: what squared distances are divided by; LFQ's is 0.01."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MOST_BITS:
            raise ValueError(
                f"bits must be from 1 to {MOST_BITS}, got {self.bits}; more go side by side (ProductConfig)"
            )
        if self.entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature must be above 0, got {self.entropy_temperature}")

    @property
    def codebook_size(self) -> int:
        return 2**self.bits

    @property
    def codebook_dim(self) -> int:
        return self.bits

    @property
    def latent_dim(self) -> int:
        """Channels before quantisation."""
        return self.bits

    @property
    def index_shape(self) -> tuple[int, ...]:
        """There is one index for a token."""
        return ()

    @property
    def reach(self) -> float:
        """Size of a code's numbers."""
        return self.bits**-0.5 if self.unit else 1.0

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        """One token per latent."""
        return plain_layout(latent_shape)

    def build(self) -> SignQuantizer:
        return SignQuantizer(self)


class SignQuantizer(nn.Module):
    """The corner of a cube that is nearest to a latent (BSQ, arXiv:2406.07548; LFQ, arXiv:2310.05737).

    No parameters. Of an index, the first number's bit counts least; a bit is set where the number is above 0.
    """

    def __init__(self, config: SignConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.codebook_dim = config.codebook_size, config.codebook_dim

    def forward(self, latents: Tensor) -> Quantized:
        """b ... d -> Quantized, computed in float32. The only loss is "commitment"."""
        latents = self.normalize(latents.float())
        indices = self.nearest(latents)
        codes = self.codes(indices)
        losses = {"commitment": F.mse_loss(latents, codes)} if self.training else {}
        return Quantized(latents + (codes - latents).detach(), indices, losses)

    def entropy_loss(self, latents: Tensor) -> Tensor:
        """Of latents b ... d: mean entropy of soft assignments minus entropy of their mean (arXiv:2310.05737 eq. 5).

        A soft assignment is a softmax over all codes of the negative squared distance divided by the temperature. Its
        bits are independent, each set with the probability sigmoid(4 reach z / temperature): the first term is exact
        and needs no codes. The second takes bits for independent in the mean too, which bounds it from above
        (arXiv:2406.07548, section 3.3). The 1e-5 in the logarithm is LlamaGen's.
        """
        config = self.config
        logits = 4 * config.reach / config.entropy_temperature * self.normalize(latents.float()).flatten(0, -2)
        probs = logits.sigmoid()
        mean = torch.stack([probs.mean(0), 1 - probs.mean(0)])
        return (F.softplus(logits) - logits * probs).sum(-1).mean() + (mean * torch.log(mean + 1e-5)).sum()

    def nearest(self, latents: Tensor) -> Tensor:
        """b ... d -> b ..."""
        return ((latents > 0).long() * self.steps(latents)).sum(-1)

    def steps(self, like: Tensor) -> Tensor:
        """By how much the index grows with each bit."""
        return 2 ** torch.arange(self.config.bits, device=like.device)

    def neighbours(self, latents: Tensor, count: int) -> Tensor:
        """b ... d -> b ... count, the nearest first.

        A code's squared distance grows by 4 reach |z| with each number of the other sign. So the best `count` begin as
        one of the best `count` do that may differ in fewer numbers, and it is enough to go on from these.
        """
        found, sizes = self.nearest(latents)[..., None], latents.float().abs()
        away = torch.zeros_like(found, dtype=torch.float32)
        for number, step in enumerate(self.steps(latents).tolist()):
            away = torch.cat([away, away + sizes[..., number, None]], dim=-1)
            found = torch.cat([found, found ^ step], dim=-1)
            away, best = away.topk(min(count, away.shape[-1]), largest=False)
            found = found.gather(-1, best)
        return found

    def choose(self, latents: Tensor, choice: Choice) -> Tensor:
        """b ... d -> b ..."""
        return choice(self, latents)

    def codes(self, indices: Tensor, stages: int | None = None) -> Tensor:
        """b ... -> b ... d; there is one stage."""
        check_stages(stages, 1)
        bits = (indices[..., None] & self.steps(indices)) != 0
        return (2 * bits.float() - 1) * self.config.reach

    def normalize(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.config.l2_norm else x

    def layout_of(self, *latent_shape: int) -> GridLayout | SequenceLayout:
        return self.config.layout_of(*latent_shape)

    def upkeep(self) -> SignUpkeep:
        return SignUpkeep()


class SignUpkeep(nn.Module):
    """Counts codes; there is nothing to look after."""

    @torch.no_grad()
    def update(
        self, quantizer: SignQuantizer, latents: Tensor, indices: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Returns "codes_used" and "perplexity" of the batch, over all processes, and "reseeded", which is 0."""
        counts = code_counts(indices, quantizer.codebook_size)
        used = (counts > 0).sum()
        return {"codes_used": used, "perplexity": batch_perplexity(counts), "reseeded": torch.zeros_like(used)}
