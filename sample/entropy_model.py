"""A generator's law of the tokens of a picture, in whole numbers: what token files are coded under."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from imgtok.generators.condition import LabelConditionConfig
from imgtok.generators.generator import Generator
from imgtok.generators.hub import AnyGenerator
from imgtok.generators.masked import MaskedGenerator
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.hub import fingerprint
from imgtok.payload import Integers, Laws
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import check_pair
from imgtok.sample.next_scale import Stages, new_cache
from imgtok.sample.scorer import Scorer
from imgtok.sample.stage_scorer import StageScorer
from imgtok.tokenizer import Tokenizer
from imgtok.tokens import TokenLayout

STEPS = 16  # levels of likelihood in a factor of e
LARGEST = 1 << 24
# Weight of each level, down to 1. Wherever exp is off by its last digit, these whole numbers are the same.
WEIGHTS = np.rint(LARGEST * np.exp(-np.arange(int(np.log(LARGEST) * STEPS) + 2) / STEPS)).astype(np.int64).clip(1)

Levels = npt.NDArray[np.uint16]
Ask = Callable[[Integers], Levels]


class EntropyModel:
    """Says the law of each token of a picture given those before it, to whoever writes a token file and who reads it.

    Both must get equal laws to the last bit, so both go through the same calls: token by token, or map by map, one
    picture at a time, in float64 wherever the network does not insist on less, and then rounded to `STEPS` levels.
    """

    def __init__(self, generator: AnyGenerator, tokenizer: Tokenizer, condition: tuple[int, ...] = ()) -> None:
        """`condition`: the numbers of the labels when tokens are coded; none: the null condition.

        ValueError for a masked generator, for one that is told texts, for another tokenizer's, and for labels that
        there are not.
        """
        if isinstance(generator, MaskedGenerator):
            raise ValueError(
                "a masked generator knows no law of a token given those before it; token files need a next-token or "
                "next-scale generator"
            )
        if not isinstance(generator.config.condition, LabelConditionConfig):
            raise ValueError(
                "this generator is told texts, which token files do not hold; take one that is told labels"
            )
        check_pair(generator, tokenizer)
        self.identity, self.tokenizer, self.condition = fingerprint(generator)[:8], fingerprint(tokenizer), condition
        self.labels = generator.config.condition.labels
        self.generator = in_float64(generator)
        self.quantizer: Any = deepcopy(cast(nn.Module, tokenizer.quantizer)).to(self.generator.device)
        self.last: dict[tuple[int, ...], Remembered] = {}
        self.told(condition)

    def check(self, layout: TokenLayout, index_shape: tuple[int, ...], codebook_size: int) -> None:
        """ValueError for tokens that the generator does not predict."""
        config = self.generator.config
        if layout != config.layout:
            raise ValueError(
                f"the generator predicts tokens of {config.layout}, but these are of {layout}; scale the picture to "
                "the size that it was trained on (--size), or code without the generator"
            )
        if index_shape or codebook_size != config.codebook_size:
            raise ValueError(
                f"the generator predicts one index of {config.codebook_size} codes a token, but these tokens are "
                f"indices of shape {index_shape} of {codebook_size} codes"
            )

    def laws(self, condition: tuple[int, ...]) -> Laws:
        """Those of the picture before are remembered: the first tokens of the same one are not predicted again."""
        told = self.told(condition)
        if condition not in self.last:
            self.last = {condition: Remembered(lambda: self.begin(told))}
        return self.last[condition].replay()

    def told(self, condition: tuple[int, ...]) -> Tensor:
        """1 k; the number after a label's last class is its null."""
        sizes = [label.size for label in self.labels]
        numbers = list(condition) or sizes
        if len(numbers) != len(sizes) or any(
            not 0 <= number <= size for number, size in zip(numbers, sizes, strict=True)
        ):
            names = ", ".join(f"{label.name} (0 to {label.size})" for label in self.labels)
            raise ValueError(f"the labels {condition} are none of this generator's, which takes {names}")
        return torch.tensor([numbers], device=self.generator.device)

    def begin(self, told: Tensor) -> Ask:
        if isinstance(self.generator, NextScaleGenerator):
            return MapByMap(self.generator, self.quantizer, told)
        return TokenByToken(self.generator, told)


def in_float64(generator: Generator | NextScaleGenerator) -> Generator | NextScaleGenerator:
    """A copy, on the CPU where the device knows no float64."""
    device = torch.device("cpu") if generator.device.type == "mps" else generator.device
    return deepcopy(generator).to(device=device, dtype=torch.float64).eval()


def levels_of(logits: Tensor) -> Levels:
    """Logits m v -> how far below the likeliest each code is, m v. ValueError for what is no number."""
    if not bool(logits.isfinite().all()):
        raise ValueError("the generator gives logits that are no numbers; its weights may be damaged")
    below = (logits.amax(-1, keepdim=True) - logits) * STEPS
    return below.round().clamp_max(len(WEIGHTS) - 1).to(torch.int32).cpu().numpy().astype(np.uint16)


class TokenByToken:
    """One network call a token, each with a cache of the calls before."""

    def __init__(self, generator: Generator, told: Tensor) -> None:
        self.scorer = Scorer(generator, told, Guidance(), rows=1, spare=0)
        self.device, self.place = generator.device, -1  # of the token that is read next; -1 is the condition

    @torch.no_grad()
    def __call__(self, before: Integers) -> Levels:
        token = int(before[0]) if len(before) else 0  # at place -1, any
        start = torch.tensor([self.place], device=self.device)
        logits = self.scorer(torch.tensor([[token]], device=self.device), start, self.scorer.columns(self.place + 1))
        self.place += 1
        return levels_of(logits[0])


class MapByMap:
    """One network call for all tokens of a map, each with the latents that the maps before add up to."""

    def __init__(self, generator: NextScaleGenerator, quantizer: Stages, told: Tensor) -> None:
        self.scorer = StageScorer(generator, told, Guidance(), 1, new_cache(generator, 1, Guidance()))
        self.quantizer, self.layout, self.device = quantizer, generator.config.layout, generator.device
        self.latents = torch.zeros(1, *self.layout.latent_shape, generator.config.codebook_dim, device=self.device)
        self.stage = 0

    @torch.no_grad()
    def __call__(self, before: Integers) -> Levels:
        seen = self.seen(torch.from_numpy(before)) if self.stage else None
        logits = self.scorer(self.stage, seen)
        self.stage += 1
        return levels_of(logits[0])

    def seen(self, tokens: Tensor) -> Tensor:
        """What the next map sees when the last one has these tokens: 1 n d."""
        indices = tokens.to(self.device).reshape(1, *self.layout.sizes[self.stage - 1])
        self.latents = self.quantizer.accumulate(self.latents, indices, self.stage - 1, self.layout)
        return self.quantizer.seen(self.latents, self.stage, self.layout).flatten(1, 2)


@dataclass
class Remembered:
    """What was asked of one picture, and the answers."""

    begin: Callable[[], Ask]
    asked: list[Integers] = field(default_factory=list)
    answers: list[Levels] = field(default_factory=list)
    ask: Ask | None = None

    def replay(self) -> Laws:
        """Laws from the front; where the tokens become others than those asked before, those are forgotten."""
        place = 0

        def laws(before: Integers) -> Integers:
            nonlocal place
            if place < len(self.asked) and not np.array_equal(before, self.asked[place]):
                self.forget(place)
            if place == len(self.asked):
                self.extend(before)
            place += 1
            return WEIGHTS[self.answers[place - 1]]

        return laws

    def forget(self, place: int) -> None:
        """All from `place` on; the network reads what came before again, as its cache has gone on."""
        del self.asked[place:], self.answers[place:]
        self.ask = None

    def extend(self, before: Integers) -> None:
        if self.ask is None:
            self.ask = self.begin()
            for earlier in self.asked:
                self.ask(earlier)
        self.asked.append(before.copy())
        self.answers.append(self.ask(before))
