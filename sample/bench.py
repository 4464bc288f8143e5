"""Speed of sampling, beside transformers in the same run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from imgtok import hub as tokenizer_hub
from imgtok.generators import hub as generator_hub
from imgtok.generators.condition import LabelConditionConfig, TextFeatures
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.generators.pack import packed
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.hub import build_empty
from imgtok.sample.compiled import can_compile
from imgtok.sample.engine import sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
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
from imgtok.sample.peers import AssistedPeer, LlamaPeer, find_transformers
from imgtok.sample.plain import Plain
from imgtok.sample.recalling import MOST_CODES
from imgtok.sample.scorer import new_cache
from imgtok.sample.strategies import ENTRIES, Parts, build_strategy
from imgtok.sample.strategy import Strategy
from imgtok.tokencache import TokenCache

logger = logging.getLogger(__name__)

STRIDE = 137  # rows of training data between two images: neighbours there are alike


@dataclass(frozen=True, kw_only=True)
class SamplingBench:
    """How fast images are drawn. ValueError for numbers that make no sense."""

    model: str = "llamagen-gpt-b-256"
    """A preset, which gets random weights, or the folder of a trained generator."""
    strategies: tuple[str, ...] = ()
    """What to measure beside plain sampling; none: all that need no draft model."""
    window: int | None = None
    """Of the strategies named; None: theirs."""
    draft: str | None = None
    """A smaller generator of the same tokens, preset or folder, for strategies that need one."""
    batch: int = 1
    """Images drawn together."""
    dtype: DType = "float32"
    tokens: int | None = None
    """Tokens drawn of each image; None: all."""
    guidance: float = 4.0
    """Guidance scale; 1: none, which is half the work."""
    temperature: float = 1.0
    top_k: int = 0
    repeats: int = 3
    """Rounds after the one that warms up, each with images of its own; medians are reported."""
    threads: int | None = None
    """CPU threads; None: torch's choice."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Run our rounds as compiled code; auto: where there is a compiler. Each strategy takes up to a minute more."""
    peer: bool = True
    """Measure transformers too."""
    compile_peer: bool = False
    """Measure transformers under torch.compile as well, which takes minutes."""

    def __post_init__(self) -> None:
        check_counts(
            batch=self.batch, tokens=self.tokens, repeats=self.repeats, threads=self.threads, window=self.window
        )
        check_dtype(self.dtype)
        Guidance(scale=self.guidance)
        unknown = [name for name in self.strategies if name not in ENTRIES]
        if unknown:
            raise ValueError(f"strategy {unknown[0]!r} is unknown; choose from {', '.join(ENTRIES)}")

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0

    @property
    def law(self) -> Law:
        return Law(temperature=self.temperature, top_k=self.top_k)


def bench_sampling(bench: SamplingBench, device: torch.device) -> Report:
    """Draws in turns with our strategies and the peer; how far it is goes to the log.

    ValueError for an unknown model or too many tokens, ImportError if the peer is missing.
    """
    config = generator_hub.next_token_config(bench.model)
    total = config.layout.num_tokens
    drawn = bench.tokens or total
    if drawn > total:
        raise ValueError(f"tokens must be at most {total}, an image of {bench.model}, got {drawn}")
    if bench.peer:
        find_transformers()
    compile = can_compile(device) if bench.compile == "auto" else bench.compile == "on"
    with cpu_threads(bench.threads):
        found = contenders(bench, config, drawn, compile, device)
        runs = [contend(name, build, device) for name, build in found.items()]
        seconds = alternate({run.name: run.work.draw for run in runs}, bench.repeats, device)
        decoding = decode_seconds(bench, device) if drawn == total else None
        circumstances = machine(device)
    settings = asdict(bench) | {"tokens": drawn, "tokens_per_image": total, "decode_seconds": decoding}
    settings["compile"] = compile
    settings["weights"] = "random" if bench.model in GENERATORS else "trained"
    rows = [row(run, runs[0], settings, seconds) for run in runs]
    return Report(machine=circumstances, settings=settings, rows=rows)


def contenders(
    bench: SamplingBench, config: GeneratorConfig, drawn: int, compile: bool, device: torch.device
) -> dict[str, Callable[[], Work]]:
    """Plain sampling first; each is built when its turn has come, so that its memory is its own."""
    loaded = load_generator(bench.model, bench.dtype, device)
    generator, size = loaded if compile else packed(loaded), Size.of(loaded)
    draft = load_generator(bench.draft, bench.dtype, device) if bench.draft else None
    if draft is not None and not compile:
        draft = packed(draft)
    parts = Parts(generator=loaded, draft=draft, codes=code_vectors(bench.model, device))
    names = bench.strategies or usable(config.codebook_size, draft is not None)
    chosen = {name: build_strategy(name, parts, bench.window if bench.strategies else None) for name in names}
    ways: dict[str, Strategy] = {"plain": Plain(), **{name: way for name, way in chosen.items() if name != "plain"}}
    found: dict[str, Callable[[], Work]] = {
        name: partial(strategy_work, bench, generator, size, way, compile, device) for name, way in ways.items()
    }
    if bench.peer:
        found["transformers"] = partial(transformers, bench, config, drawn, device, False)
    if bench.peer and bench.compile_peer:
        found["transformers compiled"] = partial(transformers, bench, config, drawn, device, True)
    if bench.peer and bench.draft and not bench.guided and bench.batch == 1:  # which is all it can do
        sizes = generator_hub.next_token_config(bench.draft)
        found["transformers assisted"] = partial(transformers_assisted, bench, config, sizes, drawn, device)
    return found


def usable(codebook_size: int, draft: bool) -> list[str]:
    """Strategies that can be built with what there is."""
    return [
        name
        for name, entry in ENTRIES.items()
        if (draft or not entry.needs_draft) and not (name == "recalling" and codebook_size > MOST_CODES)
    ]


def row(run: Contender, plain: Contender, settings: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """What is told of a contender."""
    share, own = settings["tokens"] / settings["tokens_per_image"], seconds[run.name]
    return {
        "name": run.name,
        "guarantee": run.work.guarantee,
        "dtype": settings["dtype"],
        "batch": settings["batch"],
        "parameters": run.work.size.parameters,
        "tokens_per_second": settings["batch"] * settings["tokens"] / own,
        "images_per_second": settings["batch"] * share / own,
        "calls_per_image": run.work.calls_per_image() / share,
        "seconds_to_first_image": own + (settings["decode_seconds"] or 0.0) if share == 1 else None,
        "peak_bytes": run.peak_bytes,
        "ratio_to_plain": seconds[plain.name] / own,
        "ratio_to_transformers": seconds["transformers"] / own if "transformers" in seconds else None,
        **compared(run.work, plain.work),
    }


def compared(work: Work, plain: Work) -> dict[str, float | None]:
    """Images that equal those of plain sampling, and how far the frequencies of tokens are from it, with its noise."""
    if not work.tokens or not plain.tokens:
        return {"same_images": None, "token_tv": None}
    own, others = (torch.cat(each.tokens[: min(len(work.tokens), len(plain.tokens))]) for each in (work, plain))
    size = int(max(own.max(), others.max())) + 1
    shares = [torch.bincount(each.flatten(), minlength=size) / each.numel() for each in (own, others)]
    return {
        "same_images": float((own == others).all(1).float().mean()),
        "token_tv": float((shares[0] - shares[1]).abs().sum() / 2),
    }


class Size(NamedTuple):
    """Of a model as it was loaded."""

    parameters: int
    nbytes: int

    @classmethod
    def of(cls, model: nn.Module) -> Size:
        return cls(count_parameters(model), sum(p.nbytes for p in model.parameters()))


@dataclass
class Work:
    """Something that draws."""

    size: Size
    draw: Callable[[], Any]
    """One batch; each with images of its own."""
    guarantee: str | None
    """In what sense its images are those of plain sampling."""
    calls: list[Tensor] = field(default_factory=list)
    """b for each batch, network calls."""
    tokens: list[Tensor] = field(default_factory=list)
    """b n for each batch."""

    def calls_per_image(self) -> float:
        return float(torch.cat(self.calls).float().mean())


class Contender(NamedTuple):
    """The same, warmed up."""

    name: str
    work: Work
    peak_bytes: int | None
    """Of weights, cache and activations."""


def contend(name: str, build: Callable[[], Work], device: torch.device) -> Contender:
    """Builds it and draws once, to see what memory that takes."""
    logger.info("%s: warming up", name)
    work = build()
    _, peak = with_peak(work.draw, device)
    return Contender(name, work, None if peak is None else peak + work.size.nbytes)


def strategy_work(
    bench: SamplingBench, generator: Generator, size: Size, strategy: Strategy, compile: bool, device: torch.device
) -> Work:
    """Our sampler. What a strategy learns is handed on from batch to batch, as in `generate_tokens`."""
    guidance = Guidance(scale=bench.guidance)
    cache = new_cache(generator, bench.batch, guidance, strategy.window)
    earlier: list[Any] = [None]

    def draw() -> None:
        first = len(work.calls) * bench.batch
        drawn = sample_tokens(
            generator,
            conditions(bench, generator.config, first, device),
            image_keys(0, range(first, first + bench.batch), device),
            law=bench.law,
            guidance=guidance,
            strategy=strategy,
            num_tokens=bench.tokens,
            cache=cache,
            earlier=earlier[0],
            compile=compile,
        )
        earlier[0] = drawn.memory
        work.calls.append(drawn.calls.cpu())
        work.tokens.append(drawn.tokens.cpu())

    work = Work(size, draw, strategy.guarantee)
    return work


def transformers(
    bench: SamplingBench, config: GeneratorConfig, drawn: int, device: torch.device, compiled: bool
) -> Work:
    """A Llama of the same size, drawn from in the same way."""
    rows = bench.batch * (2 if bench.guided else 1)
    peer = LlamaPeer(config, rows, DTYPES[bench.dtype], device, compiled)

    def draw() -> None:
        peer.draw(drawn, bench.guidance, bench.guided, bench.law)
        work.calls.append(torch.full((bench.batch,), drawn))

    work = Work(Size.of(peer.model), draw, None)
    return work


def transformers_assisted(
    bench: SamplingBench, config: GeneratorConfig, draft: GeneratorConfig, drawn: int, device: torch.device
) -> Work:
    """Its own speculative sampling, with a Llama of the draft model's size."""
    peer = AssistedPeer(config, draft, DTYPES[bench.dtype], device)

    def draw() -> None:
        peer.draw(drawn, bench.law)
        work.calls.append(torch.tensor([peer.calls]))

    work = Work(Size.of(peer.model), draw, "exact")
    return work


def load_generator(model: str, dtype: DType, device: torch.device) -> Generator:
    if model in GENERATORS:
        return materialize(build_empty(GENERATORS[model].config), device, DTYPES[dtype])
    return generator_hub.load_next_token(model, device=device, dtype=DTYPES[dtype])


def conditions(bench: SamplingBench, config: GeneratorConfig, first: int, device: torch.device) -> Any:
    """Of a batch: those of training pictures, where the model's folder has them; a caption has all its words."""
    rows = bench.batch
    if isinstance(config.condition, LabelConditionConfig):
        folder = Path(bench.model) / "tokens" / "train"
        if folder.is_dir():
            labels = torch.from_numpy(np.array(TokenCache(folder).labels))
            return labels[(first + torch.arange(rows)) * STRIDE % len(labels)].to(device)
        return torch.zeros(rows, len(config.condition.labels), dtype=torch.int64, device=device)
    slots = config.condition.num_slots
    features = torch.zeros(rows, slots, config.condition.feature_dim, device=device)
    return TextFeatures(features, torch.ones(rows, slots, dtype=torch.bool, device=device))


def code_vectors(model: str, device: torch.device) -> Tensor | None:
    """Of the tokenizer inside a generator's folder; random ones for a preset."""
    source = generator_hub.tokenizer_source(model)
    if source is None:
        return None
    config = tokenizer_hub.load_config(source)
    if model in GENERATORS:
        shape = (config.quantizer.codebook_size, config.quantizer.codebook_dim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    tokenizer = tokenizer_hub.load(source, device=device)
    return tokenizer.quantizer.codes(torch.arange(config.quantizer.codebook_size, device=device))


def decode_seconds(bench: SamplingBench, device: torch.device) -> float | None:
    """For one image, by the tokenizer that belongs to the generator; None if that is unknown."""
    source = generator_hub.tokenizer_source(bench.model)
    if source is None:
        return None
    config = tokenizer_hub.load_config(source)
    tokenizer = materialize(build_empty(config), device, DTYPES[bench.dtype]).to(memory_format=torch.channels_last)
    indices = torch.zeros(1, config.layout.num_tokens, dtype=torch.int64, device=device)
    tokenizer.decode(indices)
    return alternate({"decoding": lambda: tokenizer.decode(indices)}, bench.repeats, device)["decoding"]
