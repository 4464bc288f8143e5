"""imgtok bench: speed beside other libraries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from imgtok.generators import hub
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.sample.bench import SamplingBench, bench_sampling
from imgtok.sample.bench_stages import bench_stages
from imgtok.sample.bench_tokenizer import TokenizerBench, bench_tokenizer
from imgtok.sample.commands.common import Device, Flag, find_device, millions
from imgtok.sample.measure import DType, Report

SAMPLING, TOKENIZER = SamplingBench(), TokenizerBench()
NONE = "-"


def sample(
    *,
    preset: str | None = None,
    model: Path | None = None,
    strategy: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    window: int | None = None,
    draft_model: str | None = None,
    batch: int = SAMPLING.batch,
    dtype: DType = SAMPLING.dtype,
    tokens: int | None = None,
    guidance: float = SAMPLING.guidance,
    temperature: float = SAMPLING.temperature,
    top_k: int = SAMPLING.top_k,
    repeats: int = SAMPLING.repeats,
    threads: int | None = None,
    device: Device = "auto",
    compile: Literal["auto", "on", "off"] = SAMPLING.compile,
    peer: bool = True,
    compile_peer: Flag = False,
    json: Path | None = None,
) -> None:
    """Measure how fast images are drawn by each strategy, beside a Llama of the same size from transformers.

    Next-scale generators are drawn stage by stage and decoded, beside VAR's published loop with the same weights;
    guidance rises linearly with the stages.

    Args:
        preset: Generator to build, with random weights, as speed does not depend on them; llamagen-gpt-b-256 if
            nothing is given.
        model: Folder of a trained generator instead. How many calls a strategy saves is only known for one of these.
        strategy: Strategies to measure beside plain sampling, as in --strategy jacobi --strategy branched; all that
            need no draft model if not given.
        window: Tokens that they score at a time; theirs if not given.
        draft_model: Smaller generator of the same tokens, preset or folder, for strategies that need one.
        batch: Images drawn together.
        dtype: Numbers in weights, cache and activations.
        tokens: Draw only so many tokens of each image.
        guidance: Guidance scale; 1 is none and half the work.
        temperature: Of the law.
        top_k: Draw among this many likeliest tokens; 0: all.
        repeats: Rounds, after one to warm up; the table tells their medians.
        threads: CPU threads.
        device: Where to compute; auto is CUDA if there is one.
        compile: Run our rounds as compiled code, which takes up to a minute a strategy; auto: if there is a compiler.
        peer: Measure transformers too.
        compile_peer: Measure transformers under torch.compile as well, which takes minutes.
        json: File for the numbers.
    """
    bench = SamplingBench(
        model=chosen(preset, model, SAMPLING.model),
        strategies=strategy,
        window=window,
        draft=draft_model,
        batch=batch,
        dtype=dtype,
        tokens=tokens,
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        repeats=repeats,
        threads=threads,
        compile=compile,
        peer=peer,
        compile_peer=compile_peer,
    )
    check_file(json)
    config, where = hub.load_config(bench.model), find_device(device)
    if isinstance(config, NextScaleConfig):
        report = bench_stages(bench, config, where)
        finish(report, json, stage_lines(report))
    else:
        report = bench_sampling(bench, where)
        finish(report, json, sampling_lines(report))


def tokenizer(
    *,
    preset: str | None = None,
    model: Path | None = None,
    batch: int = TOKENIZER.batch,
    size: int | None = None,
    dtype: DType = TOKENIZER.dtype,
    channels_last: bool = TOKENIZER.channels_last,
    compile: bool = TOKENIZER.compile,
    repeats: int = TOKENIZER.repeats,
    threads: int | None = None,
    device: Device = "auto",
    peer: bool = True,
    json: Path | None = None,
) -> None:
    """Measure how fast images are encoded and decoded, beside a VQModel of the same size from diffusers in float32.

    Args:
        preset: Tokenizer to build, with random weights, as speed does not depend on them; llamagen-vq-f16 if
            nothing is given.
        model: Folder of a tokenizer whose sizes to take instead.
        batch: Images encoded or decoded together.
        size: Side of the images in pixels; that of the tokenizer if not given.
        dtype: Numbers in weights and activations; images stay float32.
        channels_last: Keep the channels of a pixel together in memory.
        compile: Compile encoder and decoder first, which takes minutes.
        repeats: Rounds, after one to warm up; the table tells their medians.
        threads: CPU threads.
        device: Where to compute; auto is CUDA if there is one.
        peer: Measure diffusers too.
        json: File for the numbers.
    """
    bench = TokenizerBench(
        model=chosen(preset, model, TOKENIZER.model),
        batch=batch,
        size=size,
        dtype=dtype,
        channels_last=channels_last,
        compile=compile,
        repeats=repeats,
        threads=threads,
        peer=peer,
    )
    check_file(json)
    report = bench_tokenizer(bench, find_device(device))
    finish(report, json, tokenizer_lines(report))


def chosen(preset: str | None, model: Path | None, default: str) -> str:
    if preset is not None and model is not None:
        raise ValueError(f"--preset {preset} and --model {model} exclude each other; leave one out")
    return preset or (str(model) if model else default)


def check_file(path: Path | None) -> None:
    """ValueError if a file could not be written there. Makes nothing."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--json {path} is a folder; give the path of a file")
    there = next(place for place in path.absolute().parents if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--json {path} cannot be written, {there} is no folder that you may write to; choose another")


def finish(report: Report, path: Path | None, lines: Sequence[str]) -> None:
    print("\n".join(lines))
    if path is not None:
        report.save(path)


def sampling_lines(report: Report) -> list[str]:
    settings = report.settings
    part = "" if settings["tokens"] == settings["tokens_per_image"] else f" of {settings['tokens_per_image']}"
    about = (
        f"{settings['model']}: {settings['tokens']}{part} tokens an image, batch {settings['batch']}, "
        f"guidance {settings['guidance']:g}, temperature {settings['temperature']:g}, top-k {settings['top_k']}, "
        f"{settings['dtype']}{', compiled' if settings['compile'] else ''}"
    )
    speeds = ("tokens/s", "images/s", "first image", "calls/image", "x plain", "x transformers")
    columns = ("", "guarantee", *speeds, "same images", "token TV", "peak memory")
    cells = [
        (
            row["name"],
            row["guarantee"] or NONE,
            shown(row["tokens_per_second"]),
            shown(row["images_per_second"]),
            shown(row["seconds_to_first_image"], " s"),
            shown(row["calls_per_image"]),
            shown(row["ratio_to_plain"]),
            shown(row["ratio_to_transformers"]),
            NONE if row["same_images"] is None else f"{row['same_images']:.0%}",
            NONE if row["token_tv"] is None else f"{row['token_tv']:.3f}",
            memory(row["peak_bytes"]),
        )
        for row in report.rows
    ]
    note = "the weights are random: calls an image say nothing about trained ones"
    notes = [note] if settings["weights"] == "random" and len(report.rows) > 2 else []
    return [about, circumstances(report), *table([columns, *cells], words=2), *notes]


def stage_lines(report: Report) -> list[str]:
    settings = report.settings
    about = (
        f"{settings['model']}: {settings['tokens']} tokens an image in {settings['stages']} calls, "
        f"batch {settings['batch']}, guidance {settings['guidance']:g}, temperature {settings['temperature']:g}, "
        f"top-k {settings['top_k']}, decoding included"
    )
    columns = ("", "s/image", "of it decoding", "images/s", "x published", "peak memory")
    cells = [
        (
            row["name"],
            shown(row["seconds_per_image"]),
            shown(row["seconds_of_decoding"]),
            shown(1 / row["seconds_per_image"]),
            shown(row["ratio_to_published"]),
            memory(row["peak_bytes"]),
        )
        for row in report.rows
    ]
    return [about, circumstances(report), *table([columns, *cells], words=1)]


def tokenizer_lines(report: Report) -> list[str]:
    settings = report.settings
    about = f"{settings['model']}: {settings['size']} x {settings['size']} pixels, batch {settings['batch']}"
    columns = ("", "setting", "parameters", "images/s", "peak memory", "x diffusers")
    cells = [
        (
            row["operation"],
            f"diffusers {row['dtype']}" if row["name"] == "diffusers" else row["name"],
            millions(row["parameters"]),
            shown(row["images_per_second"]),
            memory(row["peak_bytes"]),
            shown(row["ratio_to_diffusers"]),
        )
        for row in report.rows
    ]
    return [about, circumstances(report), *table([columns, *cells], words=2)]


def circumstances(report: Report) -> str:
    machine, settings = report.machine, report.settings
    place = f"{machine['threads']} threads of {machine['cpu']}" if machine["device"] == "cpu" else machine["device"]
    return f"{settings['weights']} weights, medians of {settings['repeats']}, {place}, torch {machine['torch']}"


def table(lines: Sequence[Sequence[str]], words: int) -> list[str]:
    """Aligned columns: the first `words` of them to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) if i < words else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]


def shown(value: float | None, unit: str = "") -> str:
    """Three figures."""
    if value is None:
        return NONE
    return (f"{value:,.0f}" if value >= 100 else f"{value:#.3g}") + unit


def memory(count: int | None) -> str:
    return NONE if count is None else f"{count / 2**30:.2f} GiB"
