"""Scores of a tokenizer over a set of pictures: of its reconstructions, its codes, and its tokens as a language."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from imgtok.data import ImageSource
from imgtok.metrics.features import FeatureExtractor
from imgtok.metrics.frechet import frechet_distance
from imgtok.metrics.image import psnr, ssim
from imgtok.metrics.language import (
    Growth,
    conditional_entropy,
    growth,
    heaps,
    huffman_bits,
    huffman_saving,
    ngram_counts,
    zipf,
)
from imgtok.metrics.perceptual import PerceptualDistance
from imgtok.metrics.tokens import CodeCounts, entropy_bits
from imgtok.quantizers.perturb import Dice, Draws, draw, perturbed
from imgtok.sample.evaluate import Average, Collector, FeatureSet, Measures, Rounding, Score, compare, pictures, rounded
from imgtok.tokenizer import Tokenizer, size_of

PERTURBED_RATES = (0.9, 0.8, 0.7, 0.6, 0.5)
# Of RobusTok's figures, by codebook size; other sizes follow the largest in proportion.
PERTURBED_NEIGHBOURS = {16384: (200, 280, 360), 8192: (100, 140, 180), 4096: (50, 70, 90), 1024: (10, 15, 20)}
NGRAMS = 4

OnProgress = Callable[[int], None]


@dataclass
class TokenizerScores:
    """What was found."""

    count: int
    scores: dict[str, Score]
    codebooks: list[dict[str, Any]]
    """Use of each codebook, and of it in each group of tokens (scales), if there are several."""
    language: dict[str, Any]
    growth: Growth
    """Of the first codebook's tokens, the pictures shuffled."""
    ngrams: list[Tensor] = field(default_factory=list)
    """Counts of n-grams, n from 1."""


@torch.no_grad()
def evaluate_tokenizer(
    tokenizer: Tokenizer,
    source: ImageSource,
    extractor: FeatureExtractor,
    *,
    measures: Measures,
    rounding: Rounding = "round",
    perceptual: dict[str, PerceptualDistance] | None = None,
    batch_size: int = 16,
    originals: FeatureSet | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[TokenizerScores, FeatureSet]:
    """Reconstructs every picture (centre-cropped to the tokenizer's size) and compares both sets.

    The Fréchet distance of reconstructions is called rFID, or `r` and the name of what stands in for it. Returns the
    features of the originals too, for what else is to be compared with them; `originals`: these, if they are known.
    """
    layout, quantizer, size = tokenizer.config.layout, tokenizer.quantizer, tokenizer.config.image_size
    device = tokenizer.from_codes.weight.device
    seen, results = Collector(extractor), Collector(extractor)
    distances = {"PSNR": psnr, "SSIM": ssim, "SSIM-gaussian11": lambda x, y: ssim(x, y, "gaussian11")}
    averages = {name: Average() for name in (*distances, *(perceptual or {}))}
    tokens, counts = list[Tensor](), None
    for images in pictures(source, size, batch_size):
        images = images.to(device)
        indices = tokenizer.encode(images)
        decoded = rounded(tokenizer.decode(indices, layout, size=size_of(images)), rounding)
        if originals is None:
            seen.add(images)
        results.add(decoded)
        for name, distance in (distances | (perceptual or {})).items():
            averages[name].add(distance(decoded, images))
        tokens.append(indices.cpu().int())
        if counts is None:
            counts = CodeCounts(quantizer.codebook_size, layout.group_sizes, math.prod(indices.shape[2:]))
        counts.update(indices)
        if on_progress is not None:
            on_progress(len(images))
    if counts is None:
        raise ValueError("not one of the pictures can be read; the log has the reasons")
    truth = seen.collected() if originals is None else originals
    scores = compare(results.collected(), truth, extractor, measures, prefix="r")
    scores |= {name: average.score() for name, average in averages.items()}
    first = torch.cat(tokens).flatten(2)[..., 0] if tokens[0].ndim > 2 else torch.cat(tokens)
    # The growth of a vocabulary is that over pictures in any order; data sets come sorted by class.
    first = first[torch.randperm(len(first), generator=torch.Generator().manual_seed(0))]
    ngrams = [ngram_counts(first, n) for n in range(1, min(NGRAMS, first.shape[1]) + 1)]
    found = TokenizerScores(
        count=truth.count,
        scores=scores,
        codebooks=codebook_rows(counts),
        language=language(first, ngrams, quantizer.codebook_size),
        growth=growth(first),
        ngrams=ngrams,
    )
    return found, truth


def codebook_rows(counts: CodeCounts) -> list[dict[str, Any]]:
    rows = []
    for whole, groups in zip(counts.use(), counts.use_by_group(), strict=True):
        parts = [{"tokens": size, **use._asdict()} for size, use in zip(counts.group_sizes, groups, strict=True)]
        rows.append({**whole._asdict(), **({"groups": parts} if len(parts) > 1 else {})})
    return rows


def language(tokens: Tensor, ngrams: list[Tensor], codebook_size: int) -> dict[str, Any]:
    """Statistics of N x L tokens as JSON takes them; a law that has too few points is left out."""
    seen = growth(tokens).types
    found: dict[str, Any] = {
        "tokens": tokens.numel(),
        "entropy_bits": {f"{n}-gram": entropy_bits(counts) for n, counts in enumerate(ngrams, 1)},
        "huffman_bits": huffman_bits(ngrams[0]),
        "huffman_saving": huffman_saving(ngrams[0], codebook_size),
        "types_after_pictures": {n: int(seen[n - 1]) for n in (1, 10, 30, 100, 300, 1000) if n <= len(seen)},
        "new_types_in_last_picture": int(seen.diff()[-1]) if len(seen) > 1 else int(seen[-1]),
    }
    if len(ngrams) > 1:
        found["entropy_of_next_bits"] = conditional_entropy(tokens)
    laws = {f"zipf_{n}-gram": lambda counts=counts: zipf(counts) for n, counts in enumerate(ngrams, 1)}
    for name, fit in {**laws, "heaps": lambda: heaps(tokens)}.items():
        try:
            found[name] = fit()._asdict()
        except ValueError:  # one type only, or all types in the first token
            continue
    return found


def perturbed_neighbours(codebook_size: int) -> tuple[int, ...]:
    """The three numbers of neighbours of pFID: published ones, or in proportion to those of 16,384 codes."""
    if codebook_size in PERTURBED_NEIGHBOURS:
        return PERTURBED_NEIGHBOURS[codebook_size]
    largest = max(PERTURBED_NEIGHBOURS)
    return tuple(max(2, round(number * codebook_size / largest)) for number in PERTURBED_NEIGHBOURS[largest])


def perturbation_grid(tokenizer: Tokenizer) -> list[tuple[float, int]]:
    """Rates and numbers of neighbours of pFID, 15 pairs. ValueError for a tokenizer whose tokens are no codes."""
    size = tokenizer.quantizer.codebook_size
    if not size:
        raise ValueError("pFID swaps codes for their neighbours, but this tokenizer's tokens are continuous")
    return list(product(PERTURBED_RATES, perturbed_neighbours(size)))


@torch.no_grad()
def perturbed_distances(
    tokenizer: Tokenizer,
    source: ImageSource,
    extractor: FeatureExtractor,
    originals: FeatureSet,
    *,
    rounding: Rounding = "round",
    seed: int = 0,
    batch_size: int = 16,
    on_progress: OnProgress | None = None,
) -> list[dict[str, float]]:
    """The Fréchet distances of pFID (RobusTok): reconstructions from perturbed codes against the originals.

    One for each rate and number of neighbours of the published grid; pFID is their mean. Every picture is perturbed;
    its draws depend on the seed, the place in the grid and its number alone. ValueError as `perturbation_grid`.
    Published with one codebook; where several codes stand for a vector, each of them is swapped alike.
    """
    cells, size = perturbation_grid(tokenizer), tokenizer.config.image_size
    collectors, done = [Collector(extractor, moments_only=True) for _ in cells], 0
    device = tokenizer.from_codes.weight.device
    for images in pictures(source, size, batch_size):
        latents = tokenizer.latents(images.to(device))
        for place, ((rate, number), collector) in enumerate(zip(cells, collectors, strict=True)):
            dice = dice_of_pictures(seed * len(cells) + place, range(done, done + len(images)))
            read = perturbed(tokenizer.quantizer, latents, dice, rate=rate, neighbours=number).latents
            collector.add(rounded(tokenizer.decode_latents(read, size_of(images)), rounding))
            if on_progress is not None:
                on_progress(len(images))
        done += len(images)
    return [
        {
            "rate": rate,
            "neighbours": number,
            "distance": frechet_distance(collector.collected().moments, originals.moments),
        }
        for (rate, number), collector in zip(cells, collectors, strict=True)
    ]


def dice_of_pictures(seed: int, numbers: Iterable[int]) -> Dice:
    """Draws that each picture has for itself, by its number: batches do not matter."""
    # CPU seeds have 32 bits: below a million pictures, none has another's draws.
    dice = [torch.Generator().manual_seed((seed * 2**20 + number) % 2**32) for number in numbers]

    def roll(shape: tuple[int, ...], neighbours: int) -> Draws:
        draws = [draw(shape[1:], neighbours, generator) for generator in dice]
        return Draws(*(torch.stack(each) for each in zip(*draws, strict=True)))

    return roll
