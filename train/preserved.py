"""Tokens between a picture's own and a generator's: each is the picture's own with a given probability.

Published as "preservation ratio" sigma (RobusTok, arXiv:2509.12474, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgtok.data import ImageSource, LabelSet
from imgtok.data.transforms import to_float, to_uint8
from imgtok.generators.condition import LENGTH, Label, LabelConditionConfig
from imgtok.generators.hub import AnyGenerator
from imgtok.sample.images import SamplerConfig, check_pair, generate_tokens
from imgtok.sample.kept import Kept
from imgtok.sample.noise import image_keys, uniform
from imgtok.tokencache import TokenCache, encode_source, write_cache
from imgtok.tokenizer import Tokenizer
from imgtok.train.posttrain import PairSet, PostTraining, check_decoder, cropped
from imgtok.train.randomness import derived_seed

OnProgress = Callable[[int, int], None]


@torch.no_grad()
def mixed_tokens(
    generator: AnyGenerator,
    tokenizer: Tokenizer,
    images: Tensor,
    tokens: Tensor,
    condition: Any,
    preservation: float,
    sampler: SamplerConfig,
    *,
    seed: int,
    first: int = 0,
) -> Tensor:
    """Draws tokens b n for images b 3 h w in [-1, 1] whose own `tokens` are b n, of which some are kept.

    Each stays with probability `preservation`, independently, before the next ones are drawn: they see it. Row i is
    picture `first + i` of `seed` and depends on nothing else. Next-token and masked generators keep the own tokens.
    Next-scale ones keep the picture: a kept place gets the code nearest to it after what was drawn before, as its own
    token codes what is left of the picture after its own coarser tokens.
    """
    keys = image_keys(derived_seed(seed, "preserved"), range(first, first + len(images)), tokens.device)
    free = ~preserved(keys, tokens.shape[1], preservation)
    kept = Kept(tokens.masked_fill(free, -1), tokenizer.latents(images).float())
    drawn = generate_tokens(
        generator,
        condition,
        sampler,
        quantizer=tokenizer.quantizer,
        kept=kept,
        seed=derived_seed(seed, "drawn"),
        first=first,
    )
    return torch.cat(list(drawn))


def preserved(keys: Tensor, num_tokens: int, preservation: float) -> Tensor:
    """Where the own tokens of pictures with keys b 2 stay: b n, each with this probability."""
    places = torch.arange(num_tokens, device=keys.device).expand(len(keys), -1)
    return uniform(keys, places) < preservation


def encoded_again(tokenizer: Tokenizer, tokens: Tensor) -> Tensor:
    """What the encoder sees in the pictures, rounded to bytes as in files, that the tokens b n become: b n."""
    return tokenizer.encode(to_float(to_uint8(tokenizer.decode(tokens))))


def make_pairs(
    tokenizer: Tokenizer,
    fingerprint: str,
    generator: AnyGenerator,
    source: ImageSource,
    config: PostTraining,
    folder: Path,
    progress: OnProgress | None = None,
) -> PairSet:
    """Own and mixed tokens of all pictures that can be read, in folder/own and folder/mixed, unless they are there."""
    if not (folder / "own").is_dir():
        encode_source(tokenizer, fingerprint, source, folder / "own")
    if not (folder / "mixed").is_dir():
        mix(tokenizer, generator, source, TokenCache(folder / "own"), config, folder / "mixed", progress)
    return open_pairs(source, folder, tokenizer.config.image_size)


def mix(
    tokenizer: Tokenizer,
    generator: AnyGenerator,
    source: ImageSource,
    own: TokenCache,
    config: PostTraining,
    folder: Path,
    progress: OnProgress | None = None,
) -> None:
    """Mixed tokens of the pictures that `own` has tokens of, in one move."""
    pictures, device, mixed = readable_part(source, own), generator.device, list[Tensor]()
    for rows in torch.arange(len(own)).split(config.draw_batch):
        images, (tokens, labels) = cropped(pictures, rows, tokenizer.config.image_size), own.rows(rows)
        condition = condition_of(generator.config.condition, own.label_sets, labels)
        part = mixed_tokens(
            generator,
            tokenizer,
            to_float(images).to(device),
            tokens.to(device),
            condition.to(device),
            config.preservation,
            config.sampler,
            seed=config.loop.seed,
            first=int(rows[0]),
        )
        mixed.append((encoded_again(tokenizer, part) if config.reencode else part).cpu())
        if progress is not None:
            progress(int(rows[-1]) + 1, len(own))
    small = torch.cat(mixed).numpy().astype(own.tokens.dtype)
    write_cache(folder, own.description, small[:, None], np.array(own.labels), own.names)


def open_pairs(source: ImageSource, folder: Path, image_size: int) -> PairSet:
    """What `make_pairs` has written."""
    own, mixed = TokenCache(folder / "own"), TokenCache(folder / "mixed")
    if own.names != mixed.names:
        raise ValueError(f"the tokens in {folder} are of different pictures; remove it to make them again")
    return PairSet(readable_part(source, own), own, mixed, image_size)


def readable_part(source: ImageSource, cache: TokenCache) -> ImageSource:
    """The pictures that the cache has tokens of, in its order. ValueError if there are others now."""
    position = {name: i for i, name in enumerate(source.names)}
    missing = [name for name in cache.names if name not in position]
    if missing:
        raise ValueError(f"the picture {missing[0]} has tokens but is not in the data any more")
    return source.select([position[name] for name in cache.names])


def check_post_training(tokenizer: Tokenizer, generator: AnyGenerator) -> None:
    """ValueError if a decoder cannot be trained on what this generator draws."""
    if not tokenizer.quantizer.codebook_size:
        raise ValueError("this tokenizer's tokens are vectors, but post-training needs codes that a generator draws")
    check_decoder(tokenizer)
    check_pair(generator, tokenizer)
    shape, own, layout = tokenizer.config.quantizer.index_shape, generator.config.layout, tokenizer.config.layout
    if shape or own != layout:
        raise ValueError(
            f"the generator draws {own}, but the tokenizer codes its pictures of {tokenizer.config.image_size} pixels "
            f"in {layout}{f', {shape[0]} codes a token' if shape else ''}; they do not belong together"
        )


def condition_of(config: Any, sets: tuple[LabelSet, ...], labels: Tensor) -> Tensor:
    """Labels b k of pictures, numbers in `sets`, as the generator with the condition `config` takes them: b k'.

    By the names of sets and values; where the generator's classes have no names, by their numbers. The number of tokens
    is left out, if it is told that: the sampler adds it. ValueError if the pictures lack a label, or have a value that
    the generator does not know.
    """
    if not isinstance(config, LabelConditionConfig):
        raise ValueError("this generator is told texts, but pictures come with labels; post-train with one for labels")
    told = [label for label in config.labels if label.name != LENGTH]
    if len(told) == len(sets) == 1:  # whatever its name
        return numbers_in(told[0], sets[0])[labels]
    names = [each.name for each in sets]
    for label in told:
        if label.name not in names:
            raise ValueError(
                f"the generator is told {label.name!r}, but the pictures are labelled by {', '.join(names)}; "
                "use the data that it was trained on"
            )
    if not told:
        return labels[:, :0]
    columns = [(label, names.index(label.name)) for label in told]
    return torch.stack([numbers_in(label, sets[column])[labels[:, column]] for label, column in columns], dim=1)


def numbers_in(label: Label, labels: LabelSet) -> Tensor:
    """The generator's number of each value of the pictures' label."""
    if not label.values and len(labels.values) == label.size:
        return torch.arange(label.size)
    unknown = [value for value in labels.values if value not in label.values]
    if unknown:
        known = ", ".join(label.values) if label.values else f"{label.size} classes without names"
        raise ValueError(
            f"the pictures' {labels.name} {unknown[0]!r} is none that the generator is told ({known}); "
            "sort them into sub-folders that are named like its classes"
        )
    return torch.tensor([label.values.index(value) for value in labels.values])
