"""The whole way on real pictures, offline: train a tokenizer, train a generator, sample, report."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import imgtok
from imgtok.atomic import write_text
from imgtok.data import ImageSource, grid, load, save_png, to_float, to_uint8
from imgtok.generators.generator import Generator
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate
from imgtok.sample.law import Law
from imgtok.sample.report import write_report
from imgtok.tokenizer import Tokenizer
from imgtok.train.calibrate import steps_within
from imgtok.train.config import LoopConfig, TokenizerTraining
from imgtok.train.generator_config import GeneratorTraining
from imgtok.train.loop import Outcome
from imgtok.train.recipes.quickstart import generator as generator_recipe
from imgtok.train.recipes.quickstart import tokenizer as tokenizer_recipe
from imgtok.train.run import (
    accelerator_for,
    copy_tokenizer,
    encode_splits,
    generator_parts,
    tokenizer_parts,
    train_generator,
    train_tokenizer,
)
from imgtok.train.tasks import pairs, spread, validation_images

logger = logging.getLogger(__name__)

OVERHEAD = 45.0  # seconds that no setting changes: start, trials of the speed, encoding, sampling, report
TOKENIZER_SHARE = 0.28  # of the training time
LAW, GUIDANCE = Law(temperature=0.8, top_k=50), Guidance(scale=3.0)


def quickstart(
    *,
    minutes: float = 8.0,
    out: Path = Path("quickstart"),
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
    seed: int = 0,
    tokenizer_steps: int = 0,
    generator_steps: int = 0,
    images_per_category: int = 12,
    overwrite: bool = False,
) -> None:
    """Train a small tokenizer and a small generator on 3,737 embedded pictures, sample every category, write a report.

    Needs no network. Everything goes to one folder: report.html to look at, pictures/, metrics.json, and the trained
    models tokenizer/ and generator/ with their logs, ready for `imgtok generate --model OUT/generator`.

    Args:
        minutes: About how long it may take in all; more gives better pictures.
        out: Folder to write.
        device: Where to compute; auto takes a GPU if there is one.
        threads: CPU threads; 0 leaves the choice to torch.
        seed: Of everything random.
        tokenizer_steps: Training steps of the tokenizer; 0: as many as fit into the time.
        generator_steps: Training steps of the generator; 0: as many as fit into the time.
        images_per_category: Samples drawn of each category.
        overwrite: Replace what an earlier run left in `out`.
    """
    started = time.monotonic()
    check(minutes, threads, tokenizer_steps, generator_steps, images_per_category)
    computer = accelerator_for(device).device
    claim(out, overwrite)
    if threads:
        torch.set_num_threads(threads)
    budget = max(minutes * 60 - OVERHEAD, minutes * 30)

    first = sized_tokenizer(seed, tokenizer_steps, budget * TOKENIZER_SHARE, device)
    tokenized = train_tokenizer(first, out / "tokenizer", device=device)

    copy_tokenizer(out / "tokenizer", out / "generator" / "tokenizer", resume=False)
    second = sized_generator(seed, generator_steps, budget * (1 - TOKENIZER_SHARE), out / "generator", device)
    generated = train_generator(second, out / "tokenizer", out / "generator", device=device)

    source = load("emoji64", "train")
    sampled = draw(generated.model, tokenized.model, source, out / "pictures", seed, images_per_category)
    reconstruct(tokenized.model, out / "pictures" / "reconstructions.png")
    metrics = {
        "tokenizer": facts(tokenized, first.loop, "images_per_second"),
        "generator": facts(generated, second.loop, "sequences_per_second"),
        "sample": sampled,
        "total_seconds": time.monotonic() - started,
        "seed": seed,
        **surroundings(computer),
    }
    write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    print(summary(metrics, write_report(out)))


def check(minutes: float, threads: int, tokenizer_steps: int, generator_steps: int, images_per_category: int) -> None:
    if not 0 < minutes <= 7 * 24 * 60:
        raise ValueError(f"--minutes must be above 0 and at most a week ({7 * 24 * 60}), got {minutes}")
    if min(threads, tokenizer_steps, generator_steps) < 0:
        raise ValueError("--threads, --tokenizer-steps and --generator-steps must be 0 (automatic) or more")
    if not 1 <= images_per_category <= 100:
        raise ValueError(f"--images-per-category must be between 1 and 100, got {images_per_category}")


def claim(out: Path, overwrite: bool) -> None:
    """An empty folder to write to; only what an earlier quickstart left there is ever removed."""
    if out.is_file():
        raise ValueError(f"{out} is a file; choose a folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} is not empty; add --overwrite to replace what is there, or choose another --out")
        if not (out / "tokenizer" / "train.json").is_file():
            raise ValueError(f"{out} does not hold a quickstart, so nothing there is replaced; choose another --out")
        for name in ("tokenizer", "generator", "pictures"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("metrics.json", "report.html"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def sized_tokenizer(seed: int, steps: int, seconds: float, device: str) -> TokenizerTraining:
    """The recipe with as many steps as fit into the time."""
    recipe = tokenizer_recipe()
    recipe = replace(recipe, loop=replace(recipe.loop, seed=seed))
    steps = steps or steps_within(seconds, tokenizer_parts(recipe, accelerator_for(device)))
    return replace(recipe, loop=sized_loop(recipe.loop, steps))


def sized_generator(seed: int, steps: int, seconds: float, out: Path, device: str) -> GeneratorTraining:
    """The recipe with as many steps as fit into the time that encoding the pictures leaves."""
    recipe = generator_recipe()
    recipe = replace(recipe, loop=replace(recipe.loop, seed=seed))
    accelerator = accelerator_for(device)
    encode_splits(recipe.data, out, accelerator.device)
    steps = steps or steps_within(seconds, generator_parts(recipe, out, accelerator))
    return replace(recipe, loop=sized_loop(recipe.loop, steps))


def sized_loop(loop: LoopConfig, steps: int) -> LoopConfig:
    """Four evaluations and checkpoints, however long the run."""
    quarter = -(-steps // 4)
    return replace(
        loop, steps=steps, evaluate_every=quarter, checkpoint_every=quarter, log_every=max(1, min(20, quarter))
    )


def draw(
    generator: Generator, tokenizer: Tokenizer, source: ImageSource, folder: Path, seed: int, each: int
) -> dict[str, Any]:
    """A strip of samples a category; conditions are those of training pictures, spread over its subcategories."""
    categories = source.label_sets[0].values
    conditions = torch.cat([conditions_of(source, category, each) for category in range(len(categories))])
    device = generator.device
    started = time.monotonic()
    config = SamplerConfig(law=LAW, guidance=GUIDANCE, batch_size=4 * each)
    batches = generate(generator, tokenizer, conditions.to(device), config, seed=seed)
    images = to_uint8(torch.cat(list(batches))).cpu()
    seconds = time.monotonic() - started
    strips = []
    for i, (category, strip) in enumerate(zip(categories, images.split(each), strict=True)):
        save_png(folder / "samples" / f"{i:02d}.png", grid(strip, columns=each))
        strips.append({"label": category, "file": f"samples/{i:02d}.png"})
    save_png(folder / "samples.png", grid(images, columns=each))
    write_text(folder / "samples.json", json.dumps(strips, indent=2) + "\n")
    return {
        "seconds_per_image": seconds / len(images),
        "images": len(images),
        "seconds": seconds,
        "guidance": GUIDANCE.scale,
        "temperature": LAW.temperature,
        "top_k": LAW.top_k,
    }


def conditions_of(source: ImageSource, category: int, most: int) -> Tensor:
    """Label rows of `most` pictures of a category, evenly spread over them sorted by subcategory: most k."""
    rows = source.labels[source.labels[:, 0] == category]
    rows = rows[rows[:, 1].argsort(stable=True)]
    return rows[torch.arange(most) * len(rows) // most]


def reconstruct(tokenizer: Tokenizer, path: Path) -> None:
    """Validation pictures over their reconstructions."""
    originals = validation_images(load("emoji64", "val"), tokenizer.config.image_size)
    originals = originals[spread(len(originals), 36)]
    device = tokenizer.from_codes.weight.device
    save_png(path, pairs(originals, to_uint8(tokenizer.reconstruct(to_float(originals).to(device))).cpu()))


def facts(outcome: Outcome, loop: LoopConfig, speed: str) -> dict[str, Any]:
    return outcome.metrics | {
        "seconds": outcome.seconds,
        speed: outcome.rows_per_second,
        "steps": loop.steps,
        "parameters": sum(p.numel() for p in outcome.model.parameters()),
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """Where and with what the numbers were measured."""
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "machine": processor(),
        "versions": {"imgtok": imgtok.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "command": shlex.join(["imgtok", *sys.argv[1:]]),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def summary(metrics: dict[str, Any], page: Path) -> str:
    tokenizer, generator, sample = metrics["tokenizer"], metrics["generator"], metrics["sample"]
    return "\n".join(
        [
            f"tokenizer   {tokenizer['val_psnr']:.2f} dB on validation pictures, "
            f"{tokenizer['code_usage']:.1%} of the codes used, {tokenizer['seconds']:.0f} s",
            f"generator   {generator['val_loss']:.3f} nats a token on validation pictures, "
            f"{generator['seconds']:.0f} s",
            f"samples     {sample['images']} images, {sample['seconds_per_image'] * 1000:.0f} ms each",
            f"report      {page}",
        ]
    )
