"""Speed of sampling, beside transformers in the same run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from imgtok import hub as tokenizer_hub
from imgtok.generators import hub as generator_hub
from imgtok.generators.condition import LabelConditionConfig, TextFeatures
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.hub import CONFIG_FILE, build_empty
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.sample.ancestral import sample_tokens
from imgtok.sample.guidance import Guidance
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
from imgtok.sample.noise import image_keys
from imgtok.sample.peers import LlamaPeer, find_transformers
from imgtok.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class SamplingBench:
    """How fast images are drawn. ValueError for numbers that make no sense."""

    model: str = "llamagen-gpt-b-256"
    """A preset, which gets random weights, or the folder of a trained generator."""
    batch: int = 1
    """Images drawn together."""
    dtype: DType = "float32"
    tokens: int | None = None
    """Tokens drawn of each image; None: all."""
    guidance: float = 4.0
    """Guidance scale; 1: none, which is half the work."""
    repeats: int = 3
    """Rounds after the one that warms up; medians are reported."""
    threads: int | None = None
    """CPU threads; None: torch's choice."""
    peer: bool = True
    """Measure transformers too."""

    def __post_init__(self) -> None:
        check_counts(batch=self.batch, tokens=self.tokens, repeats=self.repeats, threads=self.threads)
        check_dtype(self.dtype)
        Guidance(scale=self.guidance)

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0


def bench_sampling(bench: SamplingBench, device: torch.device) -> Report:
    """Draws in turns with our sampler and the peer; how far it is goes to the log.

    ValueError for an unknown model or too many tokens, ImportError if the peer is missing.
    """
    config = generator_hub.load_config(bench.model)
    total = config.layout.num_tokens
    drawn = bench.tokens or total
    if drawn > total:
        raise ValueError(f"tokens must be at most {total}, an image of {bench.model}, got {drawn}")
    if bench.peer:
        find_transformers()
    with cpu_threads(bench.threads):
        runs = [contend("plain", "pathwise", lambda: plain(bench, device), device)]
        if bench.peer:
            runs.append(contend("transformers", None, lambda: transformers(bench, config, drawn, device), device))
        seconds = alternate({run.name: run.draw for run in runs}, bench.repeats, device)
        decoding = decode_seconds(bench, device) if drawn == total else None
        circumstances = machine(device)
    settings = asdict(bench) | {"tokens": drawn, "tokens_per_image": total, "decode_seconds": decoding}
    settings["weights"] = "random" if bench.model in GENERATORS else "trained"
    rows = [row(run, settings, seconds[run.name], seconds.get("transformers")) for run in runs]
    return Report(machine=circumstances, settings=settings, rows=rows)


def row(run: Contender, settings: Mapping[str, Any], seconds: float, base: float | None) -> dict[str, Any]:
    """What is told of a contender that takes `seconds` for a batch, the peer `base`."""
    share = settings["tokens"] / settings["tokens_per_image"]
    return {
        "name": run.name,
        "guarantee": run.guarantee,
        "dtype": settings["dtype"],
        "batch": settings["batch"],
        "parameters": run.parameters,
        "tokens_per_second": settings["batch"] * settings["tokens"] / seconds,
        "images_per_second": settings["batch"] * share / seconds,
        "calls_per_image": run.calls / share,
        "seconds_to_first_image": seconds + (settings["decode_seconds"] or 0.0) if share == 1 else None,
        "peak_bytes": run.peak_bytes,
        "ratio_to_transformers": base / seconds if base else None,
    }


class Work(NamedTuple):
    """Something that draws."""

    model: nn.Module
    head: nn.Module
    """Called once in each evaluation of the network."""
    draw: Callable[[], Tensor]
    """One batch."""


class Contender(NamedTuple):
    """The same, warmed up."""

    name: str
    guarantee: str | None
    """In what sense its images are those of plain sampling; "pathwise": the same images."""
    parameters: int
    calls: int
    """Evaluations of the network for one batch."""
    peak_bytes: int | None
    """Of weights, cache and activations."""
    draw: Callable[[], Tensor]


def contend(name: str, guarantee: str | None, build: Callable[[], Work], device: torch.device) -> Contender:
    """Builds it and draws once, to see what memory and how many calls that takes."""

    def first() -> tuple[Work, int]:
        work = build()
        return work, count_calls(work.head, work.draw)

    (work, calls), peak = with_peak(first, device)
    return Contender(name, guarantee, count_parameters(work.model), calls, peak, work.draw)


def count_calls(module: nn.Module, work: Callable[[], Any]) -> int:
    """How often `work` calls `module`."""
    calls: list[None] = []
    hook = module.register_forward_hook(lambda *_: calls.append(None))
    work()
    hook.remove()
    return len(calls)


def plain(bench: SamplingBench, device: torch.device) -> Work:
    """Our ancestral sampling, token by token."""
    generator = load_generator(bench, device)
    condition, keys = some_condition(generator.config, bench.batch, device), image_keys(0, range(bench.batch), device)
    cache = generator.new_cache(bench.batch * (2 if bench.guided else 1))
    guidance = Guidance(scale=bench.guidance)
    return Work(
        generator,
        generator.head,
        lambda: sample_tokens(generator, condition, keys, guidance=guidance, num_tokens=bench.tokens, cache=cache),
    )


def transformers(bench: SamplingBench, config: GeneratorConfig, drawn: int, device: torch.device) -> Work:
    """A Llama of the same size, drawn from in the same way."""
    rows = bench.batch * (2 if bench.guided else 1)
    peer = LlamaPeer(config, rows, DTYPES[bench.dtype], device)
    return Work(peer.model, peer.model.lm_head, lambda: peer.draw(drawn, bench.guidance, bench.guided))


def load_generator(bench: SamplingBench, device: torch.device) -> Generator:
    if bench.model in GENERATORS:
        return materialize(build_empty(GENERATORS[bench.model].config), device, DTYPES[bench.dtype])
    return generator_hub.load(bench.model, device=device, dtype=DTYPES[bench.dtype])


def some_condition(config: GeneratorConfig, rows: int, device: torch.device) -> Any:
    """Any condition will do; a caption has all its words."""
    if isinstance(config.condition, LabelConditionConfig):
        return torch.zeros(rows, len(config.condition.labels), dtype=torch.int64, device=device)
    slots = config.condition.num_slots
    features = torch.zeros(rows, slots, config.condition.feature_dim, device=device)
    return TextFeatures(features, torch.ones(rows, slots, dtype=torch.bool, device=device))


def decode_seconds(bench: SamplingBench, device: torch.device) -> float | None:
    """For one image, by the tokenizer that belongs to the generator; None if that is unknown."""
    config = tokenizer_config_for(bench.model)
    if config is None:
        return None
    tokenizer = materialize(build_empty(config), device, DTYPES[bench.dtype]).to(memory_format=torch.channels_last)
    indices = torch.zeros(1, config.layout.num_tokens, dtype=torch.int64, device=device)
    tokenizer.decode(indices)
    return alternate({"decoding": lambda: tokenizer.decode(indices)}, bench.repeats, device)["decoding"]


def tokenizer_config_for(generator: str) -> TokenizerConfig | None:
    if generator in GENERATORS:
        name = GENERATORS[generator].tokenizer
        return TOKENIZERS[name].config if name else None
    inside = Path(generator) / "tokenizer"
    return tokenizer_hub.load_config(inside) if (inside / CONFIG_FILE).is_file() else None
