"""Randomness as a function of (seed, step, purpose): a resumed run draws what an uninterrupted one would draw."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for one purpose; different parts give unrelated seeds."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def derived_generator(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU generator with `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *parts))
