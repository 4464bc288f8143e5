"""Pictures from the first tokens alone, and as few of them as a quality needs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from imgtok.tokenizer import Tokenizer, TokenizerConfig, size_of
from imgtok.tokens import ScaleLayout

Quality = Callable[[Tensor, Tensor], Tensor]
"""Pictures and originals, b 3 h w in [-1, 1] -> b, larger for better ones: a function of `imgtok.metrics.image`, or a
perceptual distance with its sign changed."""


def prefixes(config: TokenizerConfig, size: tuple[int, int]) -> tuple[int, ...]:
    """How many of the first tokens of a picture, height x width, can be decoded; rising, the last is all.

    Any number of those that lie in a sequence in order of importance, whole maps of several, and otherwise only all.
    """
    layout = config.layout_of(*size)
    if isinstance(layout, ScaleLayout):
        return tuple(accumulate(layout.group_sizes))
    if config.backbone.ordered:
        return tuple(range(1, layout.num_tokens + 1))
    return (layout.num_tokens,)


@torch.no_grad()
def decode_prefix(tokenizer: Tokenizer, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The first tokens b n (b n k) of pictures of height x width -> b 3 h w in [-1, 1].

    Tokens of a map that is not whole are passed over. ValueError if the tokens are too few to decode anything.
    """
    layout, possible = tokenizer.config.layout_of(*size), prefixes(tokenizer.config, size)
    given = tokens.shape[1]
    if given < possible[0] or given > layout.num_tokens:
        others = f"; {possible[0]} are the fewest it can decode" if len(possible) > 1 else ", it can decode only all"
        raise ValueError(f"{given} tokens were given, but a picture has {layout.num_tokens} of this tokenizer{others}")
    count = max(number for number in possible if number <= given)
    if count == layout.num_tokens:
        return tokenizer.decode(tokens, layout, size=size)
    if not isinstance(layout, ScaleLayout):
        return tokenizer.decode(tokens[:, :count], size=size)
    whole = tokens.new_zeros(len(tokens), layout.num_tokens, *tokens.shape[2:])
    whole[:, :count] = tokens[:, :count]
    return tokenizer.decode(whole, layout, stages=possible.index(count) + 1, size=size)


class Shortest(NamedTuple):
    tokens: Tensor
    """All tokens: b n, or b n k."""
    lengths: Tensor
    """How many of the first ones each picture needs: b, int64; all where even they do not reach the target."""
    quality: Tensor
    """Of each picture, decoded from these: b."""


@torch.no_grad()
def shortest(tokenizer: Tokenizer, images: Tensor, target: float, quality: Quality) -> Shortest:
    """The fewest first tokens with which each of the images, b 3 h w in [-1, 1], has at least the quality `target`.

    By bisection, so about log2(n) decodings, under the assumption that more tokens are never worse; where that fails
    the length returned still reaches the target, but a shorter one might too.
    """
    possible = torch.tensor(prefixes(tokenizer.config, size_of(images)))
    tokens = tokenizer.encode(images)
    low = torch.zeros(len(images), dtype=torch.int64)
    high = torch.full_like(low, len(possible) - 1)
    while bool((low < high).any()):
        middle = (low + high) // 2
        enough = prefix_quality(tokenizer, tokens, images, possible[middle], quality) >= target
        low, high = torch.where(enough, low, (middle + 1).minimum(high)), torch.where(enough, middle, high)
    lengths = possible[low]
    return Shortest(tokens, lengths, prefix_quality(tokenizer, tokens, images, lengths, quality))


def prefix_quality(tokenizer: Tokenizer, tokens: Tensor, images: Tensor, lengths: Tensor, quality: Quality) -> Tensor:
    """Quality b, on the CPU, of the images decoded from their first `lengths` tokens, equal lengths together."""
    found = torch.empty(len(images))
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        there = rows.to(tokens.device)
        decoded = decode_prefix(tokenizer, tokens[there, :length], size_of(images))
        found[rows] = quality(decoded, images[there]).float().cpu()
    return found
