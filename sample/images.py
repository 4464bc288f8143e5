"""Conditions to images, batch by batch: image i is the same whatever the batch size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from imgtok.generators.cache import KVCache
from imgtok.generators.generator import Generator
from imgtok.sample.ancestral import sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys
from imgtok.tokenizer import Tokenizer


def generate(
    generator: Generator,
    tokenizer: Tokenizer,
    condition: Any,
    *,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 16,
    law: Law | None = None,
    guidance: Guidance | None = None,
) -> Iterator[Tensor]:
    """Draws one image per row of `condition`, yielding batches b 3 h w in [-1, 1] as they are finished.

    Row i becomes image `first + i` of `seed`: it depends on nothing else, so a run may be cut into any batches.
    ValueError if the tokenizer's codes or grid are not the generator's.
    """
    check_pair(generator, tokenizer)
    for tokens in generate_tokens(
        generator, condition, seed=seed, first=first, batch_size=batch_size, law=law, guidance=guidance
    ):
        yield tokenizer.decode(tokens, generator.config.layout)


def generate_tokens(
    generator: Generator,
    condition: Any,
    *,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 16,
    law: Law | None = None,
    guidance: Guidance | None = None,
) -> Iterator[Tensor]:
    """The same without decoding: batches of tokens b n."""
    total, caches = count(condition), dict[int, KVCache]()
    if batch_size < 1 or total < 1:
        raise ValueError(f"batch_size and the number of conditions must be at least 1, got {batch_size} and {total}")
    device = generator.head.logits.weight.device
    for start in range(0, total, batch_size):
        rows = min(batch_size, total - start)
        if rows not in caches:
            caches[rows] = generator.new_cache(2 * rows if guidance else rows)
        yield sample_tokens(
            generator,
            generator.condition.select(condition, slice(start, start + rows)),
            image_keys(seed, range(first + start, first + start + rows), device),
            law=law,
            guidance=guidance,
            cache=caches[rows],
        )


def count(condition: Any) -> int:
    """Rows of a condition, be it one tensor or several."""
    return len(condition if isinstance(condition, Tensor) else condition[0])


def check_pair(generator: Generator, tokenizer: Tokenizer) -> None:
    codes, size = generator.config.codebook_size, tokenizer.quantizer.codebook_size
    if codes != size:
        raise ValueError(
            f"the generator draws from {codes} codes but the tokenizer has {size}; they do not belong together"
        )
