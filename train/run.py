"""From a training configuration to a trained model in a folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from imgtok import hub
from imgtok.data import ImageSource, LabelSet
from imgtok.data import load as load_images
from imgtok.generators.condition import Label
from imgtok.tokencache import TokenCache, encode_source
from imgtok.tokencache import labels_of as labelled
from imgtok.tokenizer import Tokenizer
from imgtok.train.config import LoopConfig, OptimizerConfig, TokenDataConfig, TokenizerTraining
from imgtok.train.data import ImageBatches, Share, TokenBatches
from imgtok.train.flow import FlowTask, FlowTraining
from imgtok.train.folder import prepare_folder
from imgtok.train.generator_config import GeneratorTraining, MaskedSizes, NextScaleSizes, TransformerSizes
from imgtok.train.generator_tasks import GeneratorTask, MaskedTask, NextScaleTask, PrefixTask
from imgtok.train.loop import Outcome, fit
from imgtok.train.proxy import DecoderTask, DecoderTraining, ProxyTask, ProxyTraining, check_source
from imgtok.train.randomness import derived_seed
from imgtok.train.recipes import AnyTokenizerTraining
from imgtok.train.tasks import TokenizerTask

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What `fit` needs."""

    task: Any
    batches: Dataset[Any]
    optimizers: tuple[OptimizerConfig, ...]
    loop: LoopConfig
    accelerator: Accelerator


def train_tokenizer(
    config: AnyTokenizerTraining, out: str | Path, *, resume: bool = False, device: str = "auto"
) -> Outcome:
    """Trains a tokenizer on images; `imgtok.load(out)` reads the result. Raises as `fit` and `prepare_folder` do."""
    out, accelerator = Path(out), accelerator_for(device)
    parts = tokenizer_parts(config, accelerator)
    if accelerator.is_main_process:
        prepare_folder(out, config, resume, parts.task.origins)
    accelerator.wait_for_everyone()
    return fit(*parts[:4], out, accelerator=accelerator, name="tokenizer")


def train_generator(
    config: GeneratorTraining, tokenizer: str | Path, out: str | Path, *, resume: bool = False, device: str = "auto"
) -> Outcome:
    """Trains a generator on the tokens that `tokenizer` (a preset or a folder) makes of the images.

    Tokens are encoded once, to `out`/tokens. The tokenizer is copied to `out`/tokenizer: `out` samples by itself.
    """
    out, accelerator = Path(out), accelerator_for(device)
    share_of(accelerator).of(config.loop, 0)
    if accelerator.is_main_process:
        images = load_images(config.data.source, "train", val_share=config.data.val_share)
        config.model.config(
            hub.load_config(tokenizer), labels_of(labelled(images)[1], config)
        )  # refuses what cannot be
        prepare_folder(out, config, resume)
        copy_tokenizer(tokenizer, out / "tokenizer", resume)
        encode_splits(config.data, out, accelerator.device)
    accelerator.wait_for_everyone()
    parts = generator_parts(config, out, accelerator)
    return fit(*parts[:4], out, accelerator=accelerator, name="generator")


def tokenizer_parts(config: AnyTokenizerTraining, accelerator: Accelerator) -> Parts:
    size = image_size_of(config)
    training = load_images(config.data.source, "train", val_share=config.data.val_share)
    validation = optional_images(config.data.source, config.data.val_share)
    logger.info("tokenizer: %d training pictures, %d for validation", len(training), len(validation or ()))
    batches = ImageBatches(training, size, config.data, config.loop, share_of(accelerator))
    torch.manual_seed(derived_seed(config.loop.seed, "weights"))
    optimizers: tuple[OptimizerConfig, ...] = (config.optimizer,)
    if isinstance(config, (TokenizerTraining, DecoderTraining)):
        optimizers = (config.optimizer, config.discriminator_optimizer)
    return Parts(tokenizer_task(config, validation), batches, optimizers, config.loop, accelerator)


def image_size_of(config: AnyTokenizerTraining) -> int:
    if isinstance(config, DecoderTraining):
        return hub.load_config(check_source(config)).image_size
    return config.tokenizer.image_size


def tokenizer_task(config: AnyTokenizerTraining, validation: ImageSource | None) -> TokenizerTask | FlowTask:
    """What a tokenizer learns by."""
    if isinstance(config, FlowTraining):
        return FlowTask(config, validation)
    if isinstance(config, ProxyTraining):
        return ProxyTask(config, hub.load(check_source(config)), validation)
    if isinstance(config, DecoderTraining):
        return DecoderTask(config, hub.load(check_source(config)), validation)
    return TokenizerTask(config, validation)


def generator_parts(config: GeneratorTraining, out: Path, accelerator: Accelerator) -> Parts:
    """After `out`/tokenizer and `out`/tokens have been made."""
    tokenizer = hub.load(out / "tokenizer", device=accelerator.device)
    cache = TokenCache(out / "tokens" / "train")
    validation = TokenCache(out / "tokens" / "val") if (out / "tokens" / "val").is_dir() else None
    batches = TokenBatches(cache, config.loop, share_of(accelerator))
    torch.manual_seed(derived_seed(config.loop.seed, "weights"))
    model = config.model.config(tokenizer.config, labels_of(cache.label_sets, config))
    return Parts(
        generator_task(config, model, validation, tokenizer), batches, (config.optimizer,), config.loop, accelerator
    )


def generator_task(
    config: GeneratorTraining, model: Any, validation: TokenCache | None, tokenizer: Tokenizer
) -> GeneratorTask:
    """What a generator of this kind learns by."""
    if isinstance(config.model, NextScaleSizes):
        return NextScaleTask(model, validation, tokenizer, mistakes=config.model.mistakes)
    if isinstance(config.model, MaskedSizes):
        return MaskedTask(model, config.model, validation, tokenizer)
    if isinstance(config.model, TransformerSizes) and config.model.prefix is not None:
        return PrefixTask(config.model.prefix, model, validation, tokenizer)
    return GeneratorTask(model, validation, tokenizer)


def encode_splits(data: TokenDataConfig, out: Path, device: torch.device) -> None:
    """Training images in all versions and validation images as they are, to `out`/tokens."""
    tokenizer = hub.load(out / "tokenizer", device=device)
    images = load_images(data.source, "train", val_share=data.val_share)
    encode_once(tokenizer, images, data, out / "tokens" / "train", data.shifts, data.flip)
    validation = optional_images(data.source, data.val_share)
    if validation is not None:
        encode_once(tokenizer, validation, data, out / "tokens" / "val", 0, False)


def share_of(accelerator: Accelerator) -> Share:
    return Share(accelerator.process_index, accelerator.num_processes)


def accelerator_for(device: str) -> Accelerator:
    """ "auto": what accelerate finds; "cpu": the CPU. Precision is the loop's business."""
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but this machine or this build of torch has none; use cpu or auto")
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def labels_of(sets: tuple[LabelSet, ...], config: GeneratorTraining) -> tuple[Label, ...]:
    """What the generator is conditioned on: the data's label sets, with the configured dropping."""
    drops = config.model.drop_labels
    return tuple(
        Label(name=each.name, size=len(each.values), values=each.values, drop=drops.get(each.name, 0.0))
        for each in sets
    )


def optional_images(source: str, val_share: float) -> ImageSource | None:
    """The validation split, if the data are enough for one."""
    try:
        return load_images(source, "val", val_share=val_share)
    except ValueError as error:
        logger.warning("no validation: %s", error)
        return None


def copy_tokenizer(source: str | Path, target: Path, resume: bool) -> None:
    if resume and (target / hub.CONFIG_FILE).is_file():
        return
    hub.save(hub.load(source), target)


def encode_once(
    tokenizer: Tokenizer, source: ImageSource, data: TokenDataConfig, folder: Path, shifts: int, flip: bool
) -> TokenCache:
    """The cache in `folder`, made now unless the same tokenizer has made it before."""
    fingerprint = hub.fingerprint(tokenizer)
    if folder.is_dir():
        cache = TokenCache(folder)
        if cache.description.tokenizer == fingerprint:
            return cache
        shutil.rmtree(folder)
    logger.info("encoding %d pictures to %s", len(source), folder)
    return encode_source(tokenizer, fingerprint, source, folder, flip=flip, shifts=shifts, max_shift=data.max_shift)
