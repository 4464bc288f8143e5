"""Iterative unmasking: every call guesses all unknown tokens, and the surest guesses stay (MaskGIT, arXiv:2202.04200).

As TiTok publishes it (arXiv:2406.07550), which differs from the paper: tokens are chosen by the noise that decides
which of them stay, it falls to none, and how sure a guess is, is its logit and not its probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imgtok.generators.masked import MaskedGenerator
from imgtok.sample.engine import Clock, Drawn, check_numeric
from imgtok.sample.guidance import Guidance, guide, wide
from imgtok.sample.kept import Kept
from imgtok.sample.law import Law
from imgtok.sample.noise import gumbel
from imgtok.sample.strategy import AnyLaw

OnStep = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Unmasking:
    """How masked generators are drawn from, in addition to law and guidance."""

    steps: int = 8
    """Network calls an image."""
    noise: float = 1.0
    """How random the first choice of tokens, and of which of them stay; it falls linearly to none at the last step."""
    anneal: bool = False
    """Divide logits by a number that falls from 1.3 to 0.5 over the steps."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"unmasking steps must be at least 1, got {self.steps}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"unmasking noise must be a finite number of at least 0, got {self.noise}")

    def temperature(self, step: int) -> float:
        """Of the noise that is added to logits."""
        return self.noise * (1 - (step + 1) / self.steps)

    def divisor(self, step: int) -> float:
        """Of the logits."""
        return 0.5 + 0.8 * (1 - (step + 1) / self.steps) if self.anneal else 1.0

    def left(self, unknown: int) -> list[int]:
        """How many of `unknown` tokens are masked after each step: a cosine, at least one fewer each time, last 0."""
        counts, before = list[int](), unknown
        for step in range(1, self.steps):
            share = math.acos(step / self.steps) / (math.pi / 2)
            before = max(min(1, before), min(before - 1, math.floor(unknown * share)))
            counts.append(before)
        return [*counts, 0]


@torch.no_grad()
def sample_masked(
    generator: MaskedGenerator,
    condition: Tensor,
    keys: Tensor,
    *,
    law: AnyLaw | None = None,
    guidance: Guidance | None = None,
    unmasking: Unmasking | None = None,
    kept: Kept | None = None,
    on_step: OnStep | None = None,
    clock: Clock | None = None,
) -> Drawn:
    """Draws tokens b n for conditions b k; keys b 2 (`image_keys`) decide them, whatever else is in the batch.

    The noise belongs to a token's place and step. In a step with temperature t, tokens are drawn from `law` of the
    logits / t. Guidance counts steps: "linear" rises from none at the first to its full scale at the last. `kept`: its
    tokens are known from the beginning. `on_step` sees the tokens b n after each step, `mask_token` where they are
    unknown, and the guesses of all. ValueError if the generator gives logits that are no numbers.
    """
    law, guidance, unmasking = law or Law(), guidance or Guidance(), unmasking or Unmasking()
    rows, total, device, mask = len(keys), generator.num_tokens, generator.device, generator.mask_token
    places = torch.arange(total, device=device).expand(rows, -1)
    tokens = torch.full_like(places, mask) if kept is None else kept.tokens.masked_fill(kept.tokens < 0, mask)
    to_do = torch.tensor([[n, *unmasking.left(n)] for n in range(total + 1)], device=device)
    left = to_do[(tokens == mask).sum(1)]
    scales, both = guidance.scales(unmasking.steps), generator.condition.with_null(condition)
    numeric = torch.ones(rows, dtype=torch.bool, device=device)
    tick: Callable[[str], None] = (lambda part: None) if clock is None else clock.stop
    if clock is not None:
        clock.start()
    for step, scale in enumerate(scales):
        if scale == 1:
            logits = wide(generator(tokens, both[:rows]))
        else:
            logits = guide(generator(tokens.repeat(2, 1), both), scale)
        tick("model")
        temperature, logits = unmasking.temperature(step), logits / unmasking.divisor(step)
        chosen = choose(law, logits, keys, places, step, temperature)
        tick("law")
        sure = logits.gather(-1, chosen[..., None])[..., 0]
        sure = sure + temperature * gumbel(keys, places, 1, purpose(keys, 2 * step + 1))[..., 0]
        unknown = tokens == mask
        guesses = torch.where(unknown, chosen, tokens)
        tokens = guesses.masked_fill(unknown & least(sure.masked_fill(~unknown, torch.inf), left[:, step + 1]), mask)
        numeric = numeric & logits.sum((1, 2)).isfinite()
        tick("couple")
        if on_step is not None:
            on_step(tokens, guesses)
    check_numeric(numeric)
    counts = torch.bincount((left[:, :-1] - left[:, 1:]).flatten(), minlength=2)
    return Drawn(tokens, torch.full((rows,), unmasking.steps), counts, None)


def choose(law: AnyLaw, logits: Tensor, keys: Tensor, places: Tensor, step: int, temperature: float) -> Tensor:
    """Tokens b n drawn from `law` of the logits b n v over the temperature; for 0, the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    log_law = law(logits / temperature)
    return (log_law + gumbel(keys, places, log_law.shape[-1], purpose(keys, 2 * step))).argmax(-1)


def least(values: Tensor, count: Tensor) -> Tensor:
    """Where the `count` (b) smallest of each row of b n are; of equals, the first ones count as smaller."""
    order = values.argsort(dim=-1, stable=True)
    ranks = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks) < count[:, None]


def purpose(keys: Tensor, number: int) -> Tensor:
    """As a tensor, so that large numbers wrap around: 1 1."""
    return torch.full((1, 1), number, device=keys.device)


@dataclass(frozen=True)
class MaskedLoop:
    """Draws batch after batch of a run."""

    generator: MaskedGenerator
    law: Law
    guidance: Guidance
    unmasking: Unmasking

    def draw(
        self,
        condition: Tensor,
        keys: Tensor,
        kept: Kept | None,
        clock: Clock | None,
        look: Callable[[Tensor], None] | None,
        every: int,
    ) -> Drawn:
        """`look` sees the guesses of all tokens, every so many steps."""
        done = 0

        def after(tokens: Tensor, guesses: Tensor) -> None:
            nonlocal done
            done += 1
            if look is not None and done % every == 0:
                look(guesses)

        return sample_masked(
            self.generator,
            condition,
            keys,
            law=self.law,
            guidance=self.guidance,
            unmasking=self.unmasking,
            kept=kept,
            clock=clock,
            on_step=after,
        )

    def forget(self) -> None:
        """There is no memory from batch to batch."""
