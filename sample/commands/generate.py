"""imgtok generate: images from a generator and its tokenizer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from imgtok import __version__, zoo
from imgtok.atomic import write_text
from imgtok.config import to_dict
from imgtok.convert import read_state
from imgtok.data import grid as sheet
from imgtok.data import save_png, to_uint8
from imgtok.generators.condition import LabelConditionConfig, TextConditionConfig, TextFeatures
from imgtok.generators.generator import Generator
from imgtok.generators.hub import AnyGenerator, load, load_config, load_next_token, tokenizer_source
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.generators.pack import packed
from imgtok.generators.presets import PRESETS
from imgtok.pack import packed_tokenizer
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.sample.commands.common import (
    Device,
    Flag,
    check_pictures_place,
    check_positive,
    check_weights,
    find_device,
    load_tokenizer,
    progress,
    set_threads,
)
from imgtok.sample.commands.stagewise import check_stage_options, stage_way
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, Statistics, check_length, check_pair
from imgtok.sample.images import generate as draw
from imgtok.sample.law import Law
from imgtok.sample.masked import Unmasking
from imgtok.sample.next_scale import StageStrategy
from imgtok.sample.plain import Plain
from imgtok.sample.smooth import Smooth
from imgtok.sample.strategies import ENTRIES, STAGE_ENTRIES, Entry, Parts, StageEntry, build_strategy
from imgtok.sample.strategy import Strategy
from imgtok.sample.tuner import Tuner
from imgtok.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRID, SETTINGS = "grid.png", "samples.json"
IN_GRID_AT_MOST = 64
FEW = 8  # images, where there are no classes to show one by one


class Wanted(NamedTuple):
    """What to draw."""

    condition: Any
    """What the generator takes, one row an image."""
    rows: list[dict[str, str | int]]
    """The same for the reader."""


def generate(
    *,
    model: str = zoo.DEFAULT,
    tokenizer: str | None = None,
    weights: Path | None = None,
    tokenizer_weights: Path | None = None,
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    features: Path | None = None,
    num: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant",
    guidance_power: float = 1.0,
    guidance_steps: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    top_h: float = 0.0,
    strategy: str = "auto",
    window: int | None = None,
    draft_model: str | None = None,
    draft_weights: Path | None = None,
    draft_stages: int | None = None,
    exit_depth: int | None = None,
    epsilon: float = 0.1,
    smooth: Flag = False,
    num_tokens: int | None = None,
    unmasking_steps: int = 8,
    unmasking_noise: float = 1.0,
    unmasking_anneal: Flag = False,
    out: Path = Path("samples"),
    grid: bool = True,
    overwrite: Flag = False,
    batch_size: int = 16,
    compile: Flag = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Draw images. Image i of a seed is the same whatever the batch size and the number of images.

    Without --label, every class of the generator's first label set is drawn in turn; of a pair of the zoo, what its
    card names. Without anything at all, the best pair of the zoo draws.

    Args:
        model: Generator: a pair of the zoo (`imgtok presets` lists them), a folder that training or `imgtok convert`
            wrote, or a preset.
        tokenizer: Its tokenizer, a folder or a preset; None: the one inside the generator's folder, or the preset's.
        weights: The generator preset's published file, instead of a download.
        tokenizer_weights: The tokenizer preset's published file, instead of a download.
        label: NAME=VALUE, as in --label category="Food & Drink" --label style=noto; VALUE is a class or its number.
        features: For text: a .safetensors file with "features" (captions slots width) and "visible" (captions slots).
        num: Number of images; None: one per class or caption, or 8 if labels are given.
        seed: Any integer.
        guidance: How far past the unconditional law; 1: no guidance. None: what suits a pair of the zoo, for others 3.
        guidance_schedule: How guidance rises over an image from 1 to its full strength.
        guidance_power: For cosine: above 1, it rises later.
        guidance_steps: Guide only the first tokens, this many; None: all.
        temperature: Below 1: likelier tokens are favoured; 0: always the likeliest. None: as for guidance, else 1.
        top_k: Draw among this many likeliest tokens; 0: all. None: as for guidance, else all.
        top_p: Draw among the likeliest tokens that have this probability together.
        min_p: Drop tokens less likely than this share of the likeliest.
        typical: Draw among the tokens of most typical likelihood that have this probability together; 1: all.
        top_h: Draw among the likeliest tokens whose entropy is this share of the law's; 0: all.
        strategy: How tokens are drawn; `imgtok strategies` lists them. auto measures which window of `jacobi` pays
            here; auto, plain, jacobi and others that are pathwise give the same images.
        window: Tokens scored at a time beside the last, for strategies that have a window; None: theirs.
        draft_model: A smaller generator of the same tokenizer, folder or preset, for strategies that need one.
        draft_weights: The draft preset's published file, instead of a download.
        draft_stages: Stages that the draft model draws: the first ones in `staged-draft`, the last ones in
            `smaller-tail`; None: 2.
        exit_depth: Blocks that draft in `early-exit`; None: a third.
        epsilon: For `certified`: most that each token's law may be off, in total variation.
        smooth: For next-scale generators: mixtures of codes in place of single ones, for smoother pictures.
        num_tokens: Draw and decode only the first tokens of a sequence, this many; None: all. Generators that are
            trained for it are told how many.
        unmasking_steps: For masked generators: network calls an image.
        unmasking_noise: For masked generators: how random the first choice of tokens, and of which of them stay, is.
        unmasking_anneal: For masked generators: unlikely tokens become less likely over the steps.
        out: Folder for 00000.png and so on, grid.png and samples.json, the settings of the run.
        grid: Write grid.png with the first 64 images.
        overwrite: Replace the images of an earlier run in --out.
        batch_size: Images drawn at a time.
        compile: Compile the rounds first: a minute or more, then faster, so it pays for some hundred images.
        dtype: Of the generator's parameters and arithmetic; the tokenizer decodes in float32.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_positive("batch-size", batch_size)
    check_strategy(strategy, window, draft_model, epsilon)
    check_pictures_place(out, overwrite)
    law, strength = suited(
        model,
        guidance,
        temperature,
        top_k,
        Law(top_p=top_p, min_p=min_p, typical=typical, top_h=top_h),
        Guidance(schedule=guidance_schedule, power=guidance_power, steps=guidance_steps),
    )
    unmasking = Unmasking(steps=unmasking_steps, noise=unmasking_noise, anneal=unmasking_anneal)
    model_config, where = load_config(model), find_device(device)
    check_stage_options(
        model,
        model_config,
        strategy=strategy,
        window=window,
        compile=compile,
        draft_stages=draft_stages,
        smooth=smooth,
    )
    shown = zoo.card(model).shown if model in zoo.names() and not label else ()
    wanted = wanted_images(model_config.condition, label, features, num, shown)
    partner = tokenizer or tokenizer_of(model)
    loaded, decoder = load_pair(model, weights, partner, tokenizer_weights, where, DTYPES[dtype])
    generator: Any = loaded if compile else packed(loaded)
    way: Strategy | Tuner | StageStrategy = Plain()
    if isinstance(loaded, NextScaleGenerator):
        way = stage_way(loaded, strategy, draft_model, draft_weights, draft_stages)
    elif not isinstance(loaded, Generator):
        check_one_way(model, strategy, compile)
    elif strategy == "auto":
        way = Tuner(generator, strength, min(batch_size, len(wanted.rows)), compile=compile)
    else:
        draft = load_draft(draft_model, draft_weights, where, DTYPES[dtype])
        if draft is not None and not compile:
            draft = packed(draft)
        codes = decoder.quantizer.codes(torch.arange(decoder.quantizer.codebook_size, device=where))
        parts = Parts(generator=loaded, draft=draft, codes=codes, depth=exit_depth, epsilon=epsilon)
        way = build_strategy(strategy, parts, window)
    settings = {"model": model, "tokenizer": partner, "seed": seed, "dtype": dtype, "device": str(where)}
    settings |= {"strategy": strategy, "window": window, "draft_model": draft_model, "compile": compile}
    settings |= {
        "guidance": to_dict(strength),
        "law": to_dict(law),
        "unmasking": to_dict(unmasking),
        "num_tokens": num_tokens,
    }
    settings |= {"draft_stages": draft_stages, "smooth": smooth}
    config = SamplerConfig(
        law=law,
        guidance=strength,
        strategy=way,
        smooth=Smooth() if smooth else None,
        unmasking=unmasking,
        num_tokens=num_tokens,
        batch_size=batch_size,
        compile=compile,
    )
    check_length(loaded, config)
    start_folder(out, settings, wanted.rows)
    started, condition, statistics = time.monotonic(), on_device(wanted.condition, where), Statistics()
    images = draw(generator, packed_tokenizer(decoder), condition, config, seed=seed, statistics=statistics)
    first = save_all(images, out, len(wanted.rows))
    seconds = time.monotonic() - started
    if grid:
        save_png(out / GRID, sheet(first, columns=8))
    print(f"{out}: {speed(len(wanted.rows), statistics.tokens, seconds)}")
    if isinstance(way, Tuner):
        print(
            f"auto: {f'jacobi with a window of {way.window}' if way.window else 'plain'}, the fastest as measured here"
        )
    print("\n".join(told(statistics)))


def check_one_way(model: str, strategy: str, compile: bool) -> None:
    """A generator that draws many tokens at a time has one way to be drawn from."""
    if strategy not in ("auto", "plain"):
        raise ValueError(f"--strategy {strategy} is for next-token generators; {model} is none and has its own way")
    if compile:
        raise ValueError(f"--compile is for next-token generators; {model} is none")


def check_strategy(name: str, window: int | None, draft_model: str | None, epsilon: float) -> None:
    """What can be checked before anything is loaded."""
    entries: dict[str, Entry | StageEntry] = {**ENTRIES, **STAGE_ENTRIES}
    if name != "auto" and name not in entries:
        raise ValueError(f"--strategy {name} is unknown; choose from {', '.join(['auto', *entries])}")
    if window is not None:
        check_positive("window", window)
        if name == "auto":
            raise ValueError("--window is chosen by --strategy auto; name a strategy, such as jacobi, or leave it out")
    if not 0 <= epsilon <= 1:
        raise ValueError(f"--epsilon must be between 0 and 1, got {epsilon}")
    needs = name in entries and entries[name].needs_draft
    if needs and draft_model is None:
        raise ValueError(f"--strategy {name} needs --draft-model, a smaller generator of the same tokenizer")
    if draft_model is not None and not needs:
        raise ValueError(f"--draft-model {draft_model} is of no use to --strategy {name}; leave one of them out")


def load_draft(model: str | None, weights: Path | None, device: torch.device, dtype: torch.dtype) -> Generator | None:
    if model is None:
        return None
    check_weights("draft-weights", weights, model, PRESETS)
    return load_next_token(model, weights=weights, device=device, dtype=dtype)


def speed(images: int, tokens: int, seconds: float) -> str:
    return f"{images} images in {seconds:.1f} s, {images / seconds:.3g} images/s, {tokens / seconds:.3g} tokens/s"


def told(statistics: Statistics) -> list[str]:
    """Statistics for the reader."""
    calls = sum(statistics.accepted)
    lengths = [f"{n}: {count / calls:.0%}" for n, count in enumerate(statistics.accepted) if count / calls >= 0.005]
    parts = [f"{part} {seconds:.1f} s" for part, seconds in statistics.seconds.items()]
    return [
        f"{statistics.calls_per_image:.1f} network calls an image; tokens gained a call: {', '.join(lengths)}",
        f"time: {', '.join(parts)}; memory at most {statistics.peak_bytes / 2**30:.2f} GiB beyond the model",
    ]


def wanted_images(
    config: LabelConditionConfig | TextConditionConfig,
    words: Sequence[str],
    features: Path | None,
    num: int | None,
    shown: Sequence[Mapping[str, str]] = (),
) -> Wanted:
    """What --label or --features, and --num, ask for; `shown`: labels of what is drawn, in turn, without --label."""
    if num is not None:
        check_positive("num", num)
    if isinstance(config, TextConditionConfig):
        if words:
            raise ValueError(f"--label {words[0]}: this generator is told texts, not labels; give --features FILE")
        return captioned(config, features, num)
    if features is not None:
        raise ValueError(f"--features {features}: this generator is told labels, not texts; {known_labels(config)}")
    return labelled(config, words, num, shown)


def labelled(
    config: LabelConditionConfig, words: Sequence[str], num: int | None, shown: Sequence[Mapping[str, str]] = ()
) -> Wanted:
    chosen, first = chosen_labels(config, words), config.labels[0]
    if chosen:
        rows = [chosen] * (num or FEW)
    elif shown:
        each = [chosen_labels(config, [f"{name}={value}" for name, value in row.items()]) for row in shown]
        rows = [each[i % len(each)] for i in range(num or len(each))]
    else:
        few = first.size if first.size > 1 else FEW
        rows = [{first.name: i % first.size} for i in range(num or few)]
    numbers = [[row.get(label.name, label.size) for label in config.labels] for row in rows]
    values = {label.name: label.values or range(label.size) for label in config.labels}
    return Wanted(torch.tensor(numbers), [{name: values[name][number] for name, number in row.items()} for row in rows])


def chosen_labels(config: LabelConditionConfig, words: Sequence[str]) -> dict[str, int]:
    """NAME=VALUE words as numbers by name; ValueError for a name or a value that the generator does not know."""
    known, chosen = {label.name: label for label in config.labels}, dict[str, int]()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--label {word} must be NAME=VALUE; {known_labels(config)}")
        if name in chosen:
            raise ValueError(f"--label {word}: {name} was given twice; draw one value at a time")
        chosen[name] = known[name].index(value)
    return chosen


def known_labels(config: LabelConditionConfig) -> str:
    names = ", ".join(f"{label.name} ({label.size} classes)" for label in config.labels)
    return f"this generator knows {names}"


def captioned(config: TextConditionConfig, path: Path | None, num: int | None) -> Wanted:
    shape = (config.num_slots, config.feature_dim)
    layout = f'"features" (captions {shape[0]} {shape[1]}) and "visible" (captions {shape[0]})'
    if path is None:
        raise ValueError(f"this generator is told texts: give --features FILE.safetensors with the tensors {layout}")
    state = read_state(path)
    features, visible = state.get("features"), state.get("visible")
    if features is None or visible is None or not features.is_floating_point():
        raise ValueError(f"--features {path} must hold {layout}, it holds {', '.join(sorted(state))}")
    if features.shape != (len(visible), *shape) or visible.shape != features.shape[:2] or len(visible) == 0:
        found = f"{tuple(features.shape)} and {tuple(visible.shape)}"
        raise ValueError(f"--features {path} must hold {layout}, it holds shapes {found}")
    rows = torch.arange(num or len(features)) % len(features)
    return Wanted(TextFeatures(features[rows], visible[rows]), [{"caption": row} for row in rows.tolist()])


def suited(
    model: str, scale: float | None, temperature: float | None, top_k: int | None, law: Law, guidance: Guidance
) -> tuple[Law, Guidance]:
    """Law and guidance with these values, or where they are None with those that suit the model."""
    best = zoo.card(model).sampling if model in zoo.names() else zoo.Sampling()
    temperature = best.temperature if temperature is None else temperature
    top_k = best.top_k if top_k is None else top_k
    scale = best.guidance if scale is None else scale
    return replace(law, temperature=temperature, top_k=top_k), replace(guidance, scale=scale)


def tokenizer_of(model: str) -> str:
    """The tokenizer that belongs to a generator."""
    found = tokenizer_source(model)
    if found is None:
        raise ValueError(f"{model} comes without its tokenizer; name a folder or a preset with --tokenizer")
    return found


def load_pair(
    model: str,
    weights: Path | None,
    tokenizer: str,
    tokenizer_weights: Path | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[AnyGenerator, Tokenizer]:
    check_weights("weights", weights, model, PRESETS)
    check_weights("tokenizer-weights", tokenizer_weights, tokenizer, TOKENIZERS)
    generator = load(model, weights=weights, device=device, dtype=dtype)
    decoder = load_tokenizer(tokenizer, tokenizer_weights, device)
    check_pair(generator, decoder)
    return generator, decoder


def on_device(condition: Any, device: torch.device) -> Any:
    """A condition, be it one tensor or several."""
    return (
        condition.to(device)
        if isinstance(condition, Tensor)
        else TextFeatures(*(part.to(device) for part in condition))
    )


def start_folder(out: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Removes what an earlier run drew, and writes the settings of this one before its first image."""
    if (out / SETTINGS).is_file():
        for path in out.iterdir():
            if re.fullmatch(r"\d{5,}\.png|grid\.png", path.name):
                path.unlink()
    images = [{"file": file_name(i), "condition": row} for i, row in enumerate(rows)]
    versions = {"imgtok": __version__, "torch": torch.__version__}
    write_text(out / SETTINGS, json.dumps({**versions, **settings, "images": images}, indent=1) + "\n")


def save_all(batches: Iterable[Tensor], out: Path, total: int) -> Tensor:
    """Writes each image when it is there; returns the first of them for the grid, uint8 b 3 h w."""
    done, first = 0, list[Tensor]()
    with progress("generate", "image", total) as bar:
        for batch in batches:
            for image in to_uint8(batch).cpu():
                save_png(out / file_name(done), image)
                first += [image] if done < IN_GRID_AT_MOST else []
                done += 1
            bar.update(len(batch))
    return torch.stack(first)


def file_name(image: int) -> str:
    return f"{image:05d}.png"
