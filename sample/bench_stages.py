"""Speed of next-scale sampling, pictures included, beside the published way of doing it in the same run."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from imgtok import hub as tokenizer_hub
from imgtok.generators import hub as generator_hub
from imgtok.generators.next_scale import NextScaleConfig, NextScaleGenerator
from imgtok.generators.pack import packed
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.hub import build_empty
from imgtok.pack import packed_tokenizer
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.sample.bench import SamplingBench
from imgtok.sample.eager_stages import decoding_plainly, draw_eagerly
from imgtok.sample.guidance import Guidance
from imgtok.sample.measure import DTYPES, DType, Report, alternate, cpu_threads, machine, materialize, with_peak
from imgtok.sample.next_scale import new_cache, sample_stages
from imgtok.sample.noise import image_keys
from imgtok.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def bench_stages(bench: SamplingBench, config: NextScaleConfig, device: torch.device) -> Report:
    """Draws and decodes in turns: our way in the type asked for; the published way in float32, and in that type.

    ValueError for settings that next-scale generators do not know, and if the generator's tokenizer is unknown.
    """
    check(bench, config)
    with cpu_threads(bench.threads):
        pair = load_pair(bench, device)
        found = contenders(bench, pair, device)
        peaks = {name: warm_up(name, one, device) for name, one in found.items()}
        works = {name: one.draw for name, one in found.items()}
        decoding = {f"{name}, decoding": one.decode for name, one in found.items()}
        seconds = alternate(works | decoding, bench.repeats, device)
        circumstances = machine(device)
    settings = asdict(bench) | {
        "tokens": config.layout.num_tokens,
        "tokens_per_image": config.layout.num_tokens,
        "stages": len(config.layout.group_sizes),
        "weights": "random" if bench.model in GENERATORS else "trained",
    }
    whole = {name: seconds[name] + seconds[f"{name}, decoding"] for name in found}
    rows = [
        {
            "name": name,
            "dtype": one.dtype,
            "batch": bench.batch,
            "seconds_per_image": whole[name] / bench.batch,
            "seconds_of_decoding": seconds[f"{name}, decoding"] / bench.batch,
            "peak_bytes": peaks[name],
            "ratio_to_published": whole[PUBLISHED] / whole[name] if PUBLISHED in whole else None,
        }
        for name, one in found.items()
    ]
    return Report(machine=circumstances, settings=settings, rows=rows)


PUBLISHED = "published way, float32"


@dataclass
class Pair:
    generator: NextScaleGenerator
    tokenizer: Tokenizer
    """Both in float32."""


class Contender:
    """A way to draw tokens of one batch, and to make pictures of its last ones."""

    tokenizer: Tokenizer

    def __init__(self, bench: SamplingBench, pair: Pair, dtype: DType, device: torch.device) -> None:
        config = pair.generator.config
        self.dtype, self.layout = dtype, config.layout
        self.guidance = Guidance(scale=bench.guidance, schedule="linear")
        self.law, self.rows = bench.law, bench.batch
        self.labels = torch.zeros(bench.batch, len(config.condition.labels), dtype=torch.int64, device=device)
        self.tokens = torch.zeros(bench.batch, config.layout.num_tokens, dtype=torch.int64, device=device)
        self.batches = 0

    def draw(self) -> None:
        """Another batch each time."""
        first = self.batches * self.rows
        self.batches += 1
        self.tokens = self.drawn(image_keys(0, range(first, first + self.rows), self.labels.device))

    def drawn(self, keys: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self) -> None:
        self.tokenizer.decode(self.tokens, self.layout)


class Ours(Contender):
    """As `generate` does it; on a CPU with packed weights."""

    def __init__(self, bench: SamplingBench, pair: Pair, dtype: DType, device: torch.device) -> None:
        super().__init__(bench, pair, dtype, device)
        self.generator = packed(cast_copy(pair.generator, DTYPES[dtype]))
        self.tokenizer = packed_tokenizer(
            cast_copy(pair.tokenizer, DTYPES[dtype]).to(memory_format=torch.channels_last)
        )
        self.cache = new_cache(self.generator, bench.batch, self.guidance)

    def drawn(self, keys: Tensor) -> Tensor:
        quantizer: Any = self.tokenizer.quantizer
        return sample_stages(
            self.generator, quantizer, self.labels, keys, law=self.law, guidance=self.guidance, cache=self.cache
        ).tokens


class Published(Contender):
    """VAR's published loop: see `draw_eagerly`."""

    def __init__(self, bench: SamplingBench, pair: Pair, dtype: DType, device: torch.device) -> None:
        super().__init__(bench, pair, dtype, device)
        self.generator = cast_copy(pair.generator, DTYPES[dtype])
        self.tokenizer = decoding_plainly(cast_copy(pair.tokenizer, DTYPES[dtype]))

    def drawn(self, keys: Tensor) -> Tensor:
        dice = torch.Generator(keys.device).manual_seed(self.batches)

        def choose(logits: Tensor, start: int) -> Tensor:
            probs = self.law(logits).exp()
            return torch.multinomial(probs.flatten(0, 1), 1, generator=dice).unflatten(0, logits.shape[:2])[..., 0]

        quantizer: Any = self.tokenizer.quantizer
        scales = self.guidance.scales(self.generator.num_stages)
        return draw_eagerly(self.generator, quantizer, self.labels, scales, choose)


def contenders(bench: SamplingBench, pair: Pair, device: torch.device) -> dict[str, Contender]:
    found: dict[str, Contender] = {f"imgtok, {bench.dtype}": Ours(bench, pair, bench.dtype, device)}
    if bench.peer:
        found[PUBLISHED] = Published(bench, pair, "float32", device)
    if bench.peer and bench.dtype != "float32":
        found[f"published way, {bench.dtype}"] = Published(bench, pair, bench.dtype, device)
    return found


def warm_up(name: str, contender: Contender, device: torch.device) -> int | None:
    """Draws once; bytes in use at most, beyond the weights."""
    logger.info("%s: warming up", name)

    def once() -> None:
        contender.draw()
        contender.decode()

    return with_peak(once, device)[1]


def load_pair(bench: SamplingBench, device: torch.device) -> Pair:
    tokenizer = generator_hub.tokenizer_source(bench.model)
    if tokenizer is None:
        raise ValueError(f"{bench.model} names no tokenizer, which a next-scale generator needs; choose another preset")
    if bench.model not in GENERATORS:
        generator = generator_hub.load(bench.model, device=device)
        assert isinstance(generator, NextScaleGenerator)
        return Pair(generator, tokenizer_hub.load(tokenizer, device=device))
    generator, decoder = (build_empty(part.config) for part in (GENERATORS[bench.model], TOKENIZERS[tokenizer]))
    return Pair(materialize(generator, device), materialize(decoder, device))


def cast_copy(model: Any, dtype: torch.dtype) -> Any:
    return deepcopy(model).to(dtype)


def check(bench: SamplingBench, config: NextScaleConfig) -> None:
    wrong = {
        "strategies": bool(bench.strategies),
        "window": bench.window is not None,
        "draft model": bench.draft is not None,
        "unfinished images": bench.tokens is not None,
        "compiled rounds": bench.compile == "on" or bench.compile_peer,
    }
    named = [name for name, given in wrong.items() if given]
    if named:
        raise ValueError(
            f"{bench.model} is a next-scale generator, for which there are no {named[0]}; it is drawn stage by stage, "
            "beside the published loop: leave that option out"
        )
