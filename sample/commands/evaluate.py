"""imgtok evaluate: scores of tokenizers, of generators, and of pictures from anywhere, each with its whole recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imgtok.config import to_dict
from imgtok.data import to_float, to_uint8
from imgtok.generators.generator import Generator
from imgtok.generators.hub import load_config
from imgtok.generators.pack import packed
from imgtok.hub import fingerprint
from imgtok.metrics.adm import read_pictures, write_pictures, write_statistics
from imgtok.metrics.perceptual import perceptual_distance
from imgtok.pack import packed_tokenizer
from imgtok.sample.commands.common import (
    Device,
    Flag,
    check_positive,
    check_replaced_place,
    find_device,
    load_tokenizer,
    progress,
    set_threads,
)
from imgtok.sample.commands.evaluation import (
    PARTIAL,
    RESULT,
    Extractor,
    Network,
    Perceptual,
    Resize,
    batches_of,
    blocks_for,
    check_alone,
    check_new_file,
    check_unfinished,
    codebook_lines,
    compared,
    conditions,
    distance_name,
    hashed,
    opened,
    other_split,
    real_features,
    reference_recipe,
    scored,
    shown,
    summary,
    table,
    write_result,
)
from imgtok.sample.commands.generate import load_pair, on_device, suited, tokenizer_of
from imgtok.sample.commands.token_plots import PLOT, save_plot
from imgtok.sample.evaluate import (
    Processes,
    Rounding,
    Score,
    collect,
    compare,
    described,
    is_first,
    launched,
    rounded,
    with_floors,
)
from imgtok.sample.evaluate_tokenizer import evaluate_tokenizer, perturbation_grid, perturbed_distances
from imgtok.sample.feature_cache import FeatureCache
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig
from imgtok.sample.images import generate as draw
from imgtok.sample.law import Law
from imgtok.sample.masked import Unmasking
from imgtok.sample.partial import Partial, collect_drawn
from imgtok.sample.plain import Plain
from imgtok.sample.tuner import Tuner


def tokenizer(
    *,
    tokenizer: str,
    data: str,
    split: Literal["train", "val", "all"] = "val",
    val_share: float = 0.1,
    images: int | None = None,
    weights: Path | None = None,
    extractor: Extractor = "efficientnet-lite0",
    extractor_weights: Path | None = None,
    resize: Resize | None = None,
    rounding: Rounding = "round",
    perceptual: Perceptual = "none",
    pfid: Flag = False,
    neighbours: int = 3,
    splits: int = 10,
    seed: int = 0,
    batch_size: int = 16,
    no_cache: Flag = False,
    out: Path = Path("evaluation"),
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Score a tokenizer: its reconstructions beside the pictures, the use of its codes, its tokens as a language.

    Scores have honest names: FID, KID and IS only with --extractor inception. The floor is what pictures of the other
    split score in place of the reconstructions.

    Args:
        tokenizer: A folder that training or `imgtok convert` wrote, or a preset.
        data: A folder of images, or an embedded set (emoji64, photos); scaled and cropped to the tokenizer's size.
        split: Which images.
        val_share: Share of a folder that counts as validation.
        images: At most this many, evenly spread; None: all.
        weights: The preset's published file, instead of a download.
        extractor: Network whose features are compared.
        extractor_weights: Its file; None: from its package, or for inception from the torch hub cache.
        resize: How images are brought to the network's size; None: the extractor's own rule.
        rounding: Of reconstructions to 8 bits: to the nearest level, truncated (TiTok, IBQ), or none (pytorch-fid).
        perceptual: A perceptual distance too.
        pfid: Also the distance for perturbed codes, 15 times the work.
        neighbours: k of precision, recall, density and coverage.
        splits: Of the inception score.
        seed: Of the perturbations.
        batch_size: Images reconstructed at a time.
        no_cache: Compute the features of real pictures again, and do not keep them for the next time.
        out: Folder for evaluation.json and tokens.png, the plots of the token statistics.
        overwrite: Replace what is there already.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_alone("evaluate tokenizer")
    check_positive("batch-size", batch_size)
    check_replaced_place(out, (RESULT, PLOT), overwrite)
    network, where = Network(extractor, extractor_weights, resize, neighbours, splits), find_device(device)
    measures, source = network.measures, opened(data, split, val_share, images)
    model, features = load_tokenizer(tokenizer, weights, where), network.load(where)
    grid = perturbation_grid(model) if pfid else []
    distance = perceptual_distance(perceptual)
    distances = {} if distance is None else {distance_name(perceptual): distance.to(where)}
    cache, processes = FeatureCache(enabled=not no_cache), Processes(where)
    truth = real_features("originals", source, model.config.image_size, features, cache, processes)
    with progress("reconstruct", "image", len(source)) as bar:
        found, originals = evaluate_tokenizer(
            model,
            source,
            features,
            measures=measures,
            rounding=rounding,
            perceptual=distances,
            batch_size=batch_size,
            originals=truth.features,
            on_progress=bar.update,
        )
    scores, cells, cached = found.scores, list[dict[str, float]](), False
    real = other_split(data, split, val_share, found.count)
    if real is not None:
        floor, cached = real_features("floor", real, model.config.image_size, features, cache, processes)
        scores = with_floors(scores, compare(floor, originals, features, measures, prefix="r"))
    if grid:
        with progress("perturb", "image", len(source) * len(grid)) as bar:
            cells = perturbed_distances(
                model,
                source,
                features,
                originals,
                rounding=rounding,
                seed=seed,
                batch_size=batch_size,
                on_progress=bar.update,
            )
        scores |= {f"p{features.naming.frechet}": Score(sum(cell["distance"] for cell in cells) / len(cells))}
    recipe = {
        "tokenizer": tokenizer,
        "weights": fingerprint(model),
        "data": data,
        "split": split,
        "images": found.count,
        "cached": truth.cached,
        "image_size": model.config.image_size,
        "preprocessing": "short side scaled to image_size (Pillow bicubic), centre crop",
        "rounding": rounding,
        "extractor": described(features),
        "measures": asdict(measures),
        "floor": None if real is None else {"images": len(real), "cached": cached},
        "perturbation": {"seed": seed, "cells": cells} if cells else None,
    }
    save_plot(out / PLOT, found.ngrams, found.growth, model.quantizer.codebook_size)
    write_result(out, "tokenizer", recipe, scores, {"codebooks": found.codebooks, "language": found.language})
    print("\n".join([*table(scores), *codebook_lines(found.codebooks), summary(out, features, found.count)]))


def generator(
    *,
    model: str,
    reference: str,
    images: int = 1000,
    split: Literal["train", "val", "all"] = "train",
    val_share: float = 0.1,
    tokenizer: str | None = None,
    weights: Path | None = None,
    tokenizer_weights: Path | None = None,
    features: Path | None = None,
    seed: int = 0,
    guidance: float | None = None,
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant",
    guidance_power: float = 1.0,
    guidance_steps: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float = 1.0,
    unmasking_steps: int = 8,
    unmasking_noise: float = 1.0,
    unmasking_anneal: Flag = False,
    extractor: Extractor = "efficientnet-lite0",
    extractor_weights: Path | None = None,
    resize: Resize | None = None,
    rounding: Rounding = "round",
    neighbours: int = 3,
    splits: int = 10,
    intervals: int | None = None,
    batch_size: int = 16,
    save_pictures: Path | None = None,
    no_cache: Flag = False,
    resume: Flag = False,
    out: Path = Path("evaluation"),
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Draw images from a generator and score them beside a reference set.

    Where the reference has the generator's label sets, conditions are its pictures' labels, shuffled; else every class
    in turn. The floor is what real pictures of the other split score in place of the images.

    Args:
        model: Generator: a folder that training or `imgtok convert` wrote, or a preset.
        reference: A folder of images, an embedded set (emoji64, photos), or an .npz of ADM (statistics or images).
        images: How many to draw.
        split: Which images of a reference that is no .npz.
        val_share: Share of a folder that counts as validation.
        tokenizer: Its tokenizer; None: the one inside the generator's folder, or the preset's.
        weights: The generator preset's published file, instead of a download.
        tokenizer_weights: The tokenizer preset's published file, instead of a download.
        features: For text: the captions' features, as for `imgtok generate`.
        seed: Any integer.
        guidance: How far past the unconditional law; 1: no guidance. None: what suits a pair of the zoo, for others 3.
        guidance_schedule: How guidance rises over an image from 1 to its full strength.
        guidance_power: For cosine: above 1, it rises later.
        guidance_steps: Guide only the first tokens, this many; None: all.
        temperature: Below 1: likelier tokens are favoured. None: as for guidance, else 1.
        top_k: Draw among this many likeliest tokens; 0: all. None: as for guidance, else all.
        top_p: Draw among the likeliest tokens that have this probability together.
        unmasking_steps: For masked generators: network calls an image.
        unmasking_noise: For masked generators: how random the first choice of tokens, and of which of them stay, is.
        unmasking_anneal: For masked generators: unlikely tokens become less likely over the steps.
        extractor: Network whose features are compared.
        extractor_weights: Its file; None: from its package, or for inception from the torch hub cache.
        resize: How images are brought to the network's size; None: the extractor's own rule.
        rounding: Of images to 8 bits: to the nearest level, truncated, or none.
        neighbours: k of precision, recall, density and coverage.
        splits: Of the inception score.
        intervals: Blocks of samples for 90 % intervals by jackknife; 0: no intervals; None: 20 where there is no floor.
        batch_size: Images drawn at a time; changes none of them.
        save_pictures: Also write the images to this .npz, which ADM's evaluator reads.
        no_cache: Compute the features of real pictures again, and do not keep them for the next time.
        resume: Go on with an interrupted evaluation in --out.
        out: Folder for evaluation.json; until that is there, also for what an interrupted evaluation goes on from.
        overwrite: Replace what is there already.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_positive("batch-size", batch_size)
    check_positive("images", images, least=max(2, launched()))
    check_new_file("save-pictures", save_pictures, overwrite)
    if save_pictures is not None and (resume or launched() > 1):
        raise ValueError("--save-pictures is for one process that draws all images; leave out --resume and launchers")
    if is_first():
        check_unfinished(out, overwrite, resume)
    processes = Processes(find_device(device))
    processes.wait()  # what follows writes to the place that was checked
    network, where = Network(extractor, extractor_weights, resize, neighbours, splits), processes.device
    measures, condition_config = network.measures, load_config(model).condition
    blocks_for(intervals, images, True)
    partner = tokenizer or tokenizer_of(model)
    loaded, decoder = load_pair(model, weights, partner, tokenizer_weights, where, torch.float32)
    extract, size = network.load(where), decoder.config.image_size
    cache = FeatureCache(enabled=not no_cache, agree=processes.agree)
    target = compared(reference, split, val_share, size, images, extract, batch_size, cache, processes)
    condition, told = conditions(condition_config, target.source, features, images, seed)
    law, strength = suited(
        model,
        guidance,
        temperature,
        top_k,
        Law(top_p=top_p),
        Guidance(schedule=guidance_schedule, power=guidance_power, steps=guidance_steps),
    )
    unmasking = Unmasking(steps=unmasking_steps, noise=unmasking_noise, anneal=unmasking_anneal)
    source: Any = packed(loaded)
    coder = packed_tokenizer(decoder)
    way = Tuner(source, strength, min(batch_size, images)) if isinstance(loaded, Generator) else Plain()
    config = SamplerConfig(law=law, guidance=strength, strategy=way, unmasking=unmasking, batch_size=batch_size)
    recipe = {
        "model": model,
        "weights": fingerprint(loaded),
        "tokenizer": partner,
        "tokenizer_weights": fingerprint(decoder),
        "images": images,
        "conditions": told,
        "seed": seed,
        "guidance": to_dict(strength),
        "law": to_dict(law),
        "unmasking": to_dict(unmasking),
        "image_size": size,
        "rounding": rounding,
    }

    def drawn(numbers: range) -> Iterator[Tensor]:
        rows = on_device(loaded.condition.select(condition, slice(numbers.start, numbers.stop)), where)
        pictures = draw(source, coder, rows, config, seed=seed, first=numbers.start)
        batches = shown("generate", pictures, len(numbers))
        if save_pictures is not None:  # drawn once: what is written is read again
            write_pictures(save_pictures, (to_uint8(batch).cpu() for batch in batches), images)
            batches = (to_float(batch) for batch in read_pictures(save_pictures, batch_size))
        return (rounded(batch, rounding) for batch in batches)

    partial = Partial(out / PARTIAL, {**recipe, "drawn_of": hashed(condition), "extractor": described(extract)})
    if processes.is_first:
        partial.start(resume)
    processes.wait()
    kept = partial if save_pictures is None else None  # the pixels would be missing
    samples = processes.gathered(collect_drawn(extract, drawn, processes.share(images), kept))
    if processes.is_first:
        scores, told_of = scored(samples, target, extract, measures, intervals, prefix="g")
        write_result(out, "generator", recipe | reference_recipe(target, split, extract, measures, told_of), scores, {})
        partial.remove()
        print("\n".join([*table(scores), summary(out, extract, samples.count)]))
    processes.close()


def images(
    *,
    images: str,
    reference: str,
    size: int,
    split: Literal["train", "val", "all"] = "train",
    val_share: float = 0.1,
    extractor: Extractor = "efficientnet-lite0",
    extractor_weights: Path | None = None,
    resize: Resize | None = None,
    neighbours: int = 3,
    splits: int = 10,
    intervals: int | None = None,
    batch_size: int = 16,
    save_statistics: Path | None = None,
    no_cache: Flag = False,
    out: Path = Path("evaluation"),
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Score images from anywhere beside a reference set.

    Args:
        images: A folder of images, or an .npz with ADM's arr_0.
        reference: A folder of images, an embedded set (emoji64, photos), or an .npz of ADM (statistics or images).
        size: Both sets are scaled and cropped to squares of this size first; images in an .npz stay as they are.
        split: Which images of a reference that is no .npz.
        val_share: Share of a folder that counts as validation.
        extractor: Network whose features are compared.
        extractor_weights: Its file; None: from its package, or for inception from the torch hub cache.
        resize: How images are brought to the network's size; None: the extractor's own rule.
        neighbours: k of precision, recall, density and coverage.
        splits: Of the inception score.
        intervals: Blocks of samples for 90 % intervals by jackknife; 0: no intervals; None: 20 where there is no floor.
        batch_size: Images read at a time.
        save_statistics: Also write the statistics of --images to this .npz, for use as a reference.
        no_cache: Compute the features of real pictures again, and do not keep them for the next time.
        out: Folder for evaluation.json.
        overwrite: Replace what is there already.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_alone("evaluate images")
    check_positive("batch-size", batch_size)
    check_positive("size", size)
    check_replaced_place(out, (RESULT,), overwrite)
    check_new_file("save-statistics", save_statistics, overwrite)
    network, where = Network(extractor, extractor_weights, resize, neighbours, splits), find_device(device)
    measures = network.measures
    given, count = batches_of(images, size, batch_size)
    blocks_for(intervals, count, True)
    extract = network.load(where)
    samples = collect(extract, shown("images", given, count))
    cache = FeatureCache(enabled=not no_cache)
    target = compared(reference, split, val_share, size, samples.count, extract, batch_size, cache, Processes(where))
    scores, told_of = scored(samples, target, extract, measures, intervals)
    if save_statistics is not None:
        write_statistics(save_statistics, samples.moments, samples.spatial)
    recipe = {
        "pictures": images,
        "images": samples.count,
        "image_size": size,
        **reference_recipe(target, split, extract, measures, told_of),
    }
    write_result(out, "images", recipe, scores, {})
    print("\n".join([*table(scores), summary(out, extract, samples.count)]))
