"""Speed of encoding and decoding, beside diffusers in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from imgtok import hub
from imgtok.hub import build_empty
from imgtok.sample.measure import (
    DTYPES,
    DType,
    Report,
    alternate,
    check_counts,
    check_dtype,
    count_parameters,
    cpu_threads,
    machine,
    materialize,
    with_peak,
)
from imgtok.sample.peers import VQModelPeer, check_vqmodel, find_diffusers
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.tokens import TokenLayout

AS_LOADED: dict[str, Any] = {"dtype": "float32", "channels_last": False, "compile": False}


@dataclass(frozen=True, kw_only=True)
class TokenizerBench:
    """How fast images are encoded and decoded, with random weights. ValueError for numbers that make no sense."""

    model: str = "llamagen-vq-f16"
    """A preset, or the folder of a tokenizer; only its sizes are read."""
    batch: int = 1
    """Images encoded or decoded together."""
    size: int | None = None
    """Side of the images in pixels; None: the tokenizer's."""
    dtype: DType = "bfloat16"
    channels_last: bool = True
    """Keep the channels of a pixel together in memory, weights included."""
    compile: bool = False
    """Compile encoder and decoder with torch.compile."""
    repeats: int = 3
    """Rounds after the one that warms up; medians are reported."""
    threads: int | None = None
    """CPU threads; None: torch's choice."""
    peer: bool = True
    """Measure diffusers too."""

    def __post_init__(self) -> None:
        check_counts(batch=self.batch, size=self.size, repeats=self.repeats, threads=self.threads)
        check_dtype(self.dtype)

    @property
    def setting(self) -> str:
        """In words; "float32" is how a tokenizer is loaded."""
        words = (self.dtype, "channels_last" if self.channels_last else "", "compiled" if self.compile else "")
        return " ".join(word for word in words if word)


def bench_tokenizer(bench: TokenizerBench, device: torch.device) -> Report:
    """Encodes and decodes in turns: float32 as loaded, the setting asked for, and the peer in float32.

    ValueError for an unknown model, a size that cannot be cut into tokens, or sizes that the peer cannot have;
    ImportError if the peer is missing.
    """
    config = hub.load_config(bench.model)
    side, reduction = bench.size or config.image_size, config.backbone.reduction
    if side % reduction:
        raise ValueError(f"size must be a multiple of {reduction}, the pixels of a token of {bench.model}, got {side}")
    if bench.peer:
        check_vqmodel(config)
        find_diffusers()
    layout, dice = config.layout_of(side, side), torch.Generator().manual_seed(0)
    images = (torch.rand(bench.batch, 3, side, side, generator=dice) * 2 - 1).to(device)
    shape = (bench.batch, layout.num_tokens, *config.quantizer.index_shape)
    indices = torch.randint(config.quantizer.codebook_size, shape, generator=dice).to(device)
    with cpu_threads(bench.threads):
        coders = [warm_up(build, images, indices, device) for build in builders(bench, config, layout, device)]
        works: dict[str, Callable[[], Tensor]] = {}
        for coder, _ in coders:
            works[f"encode {coder.name}"] = partial(coder.encode, images)
            works[f"decode {coder.name}"] = partial(coder.decode, indices)
        seconds = alternate(works, bench.repeats, device)
        circumstances = machine(device)
    rows = [
        row(coder, peak, operation, bench.batch, seconds)
        for operation in ("encode", "decode")
        for coder, peak in coders
    ]
    return Report(machine=circumstances, settings=asdict(bench) | {"weights": "random", "size": side}, rows=rows)


def row(coder: Coder, peak: int | None, operation: str, batch: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What is told of one contender at one operation; `seconds` for a batch, of all of them."""
    own, base = seconds[f"{operation} {coder.name}"], seconds.get(f"{operation} diffusers")
    return {
        "name": coder.name,
        "operation": operation,
        "dtype": coder.dtype,
        "batch": batch,
        "parameters": count_parameters(coder.model),
        "images_per_second": batch / own,
        "peak_bytes": peak,
        "ratio_to_diffusers": base / own if base else None,
    }


class Coder(NamedTuple):
    """Something that encodes and decodes."""

    name: str
    dtype: str
    model: nn.Module
    encode: Callable[[Tensor], Tensor]
    """b 3 h w -> indices."""
    decode: Callable[[Tensor], Tensor]
    """b n -> b 3 h w."""


def builders(
    bench: TokenizerBench, config: TokenizerConfig, layout: TokenLayout, device: torch.device
) -> list[Callable[[], Coder]]:
    """Of all contenders, each different from the others."""
    settings = {each.setting: each for each in (replace(bench, **AS_LOADED), bench)}
    ours = [partial(tokenizer, each, config, layout, device) for each in settings.values()]
    return [*ours, partial(diffusers, config, layout, device)] if bench.peer else [*ours]


def tokenizer(bench: TokenizerBench, config: TokenizerConfig, layout: TokenLayout, device: torch.device) -> Coder:
    """Our tokenizer in the setting of `bench`."""
    model: Tokenizer = materialize(build_empty(config), device, DTYPES[bench.dtype])
    if bench.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if bench.compile:
        model.backbone.encoder.compile()
        model.backbone.decoder.compile()
    side = bench.size or config.image_size
    decode = partial(model.decode, layout=layout, size=(side, side))
    return Coder(bench.setting, bench.dtype, model, model.encode, decode)


def diffusers(config: TokenizerConfig, layout: TokenLayout, device: torch.device) -> Coder:
    """A VQModel of the same size, as it is loaded."""
    peer = VQModelPeer(config, device)
    return Coder(
        "diffusers", "float32", peer.model, peer.encode, lambda indices: peer.decode(indices, *layout.latent_shape)
    )


def warm_up(
    build: Callable[[], Coder], images: Tensor, indices: Tensor, device: torch.device
) -> tuple[Coder, int | None]:
    """Builds it and runs it once: the coder and its peak memory."""

    def first() -> Coder:
        coder = build()
        coder.encode(images)
        coder.decode(indices)
        return coder

    return with_peak(first, device)
