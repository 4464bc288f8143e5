"""From a training configuration to a trained model in a folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from imgtok import hub
from imgtok.data import ImageSource
from imgtok.data import load as load_images
from imgtok.generators.condition import Label
from imgtok.tokencache import TokenCache, encode_source
from imgtok.tokenizer import Tokenizer
from imgtok.train.config import GeneratorTraining, TokenDataConfig, TokenizerTraining
from imgtok.train.data import ImageBatches, Share, TokenBatches
from imgtok.train.loop import Outcome, fit, prepare_folder
from imgtok.train.randomness import derived_seed
from imgtok.train.tasks import GeneratorTask, TokenizerTask

logger = logging.getLogger(__name__)


def train_tokenizer(
    config: TokenizerTraining, out: str | Path, *, resume: bool = False, device: str = "auto"
) -> Outcome:
    """Trains a tokenizer on images; `imgtok.load(out)` reads the result. Errors as `fit` and `prepare_folder` raise them."""
    out, accelerator = Path(out), accelerator_for(device)
    training = load_images(config.data.source, "train", val_share=config.data.val_share)
    validation = optional_images(config.data.source, config.data.val_share)
    share = Share(accelerator.process_index, accelerator.num_processes)
    batches = ImageBatches(training, config.tokenizer.image_size, config.data, config.loop, share)
    if accelerator.is_main_process:
        prepare_folder(out, config, resume)
    accelerator.wait_for_everyone()
    logger.info("tokenizer: %d training pictures, %d for validation", len(training), len(validation or ()))
    torch.manual_seed(derived_seed(config.loop.seed, "weights"))
    task = TokenizerTask(config, validation)
    optimizers = (config.optimizer, config.discriminator_optimizer)
    return fit(task, batches, optimizers, config.loop, out, accelerator=accelerator, name="tokenizer")


def train_generator(
    config: GeneratorTraining, tokenizer: str | Path, out: str | Path, *, resume: bool = False, device: str = "auto"
) -> Outcome:
    """Trains a generator on the tokens that `tokenizer` (a preset or a folder) makes of the images.

    Tokens are encoded once, to `out`/tokens. The tokenizer is copied to `out`/tokenizer, so that `out` samples by itself.
    """
    out, accelerator = Path(out), accelerator_for(device)
    share = Share(accelerator.process_index, accelerator.num_processes)
    share.of(config.loop, 0)
    if accelerator.is_main_process:
        images = load_images(config.data.source, "train", val_share=config.data.val_share)
        prepare_folder(out, config, resume)
        copy_tokenizer(tokenizer, out / "tokenizer", resume)
        model = hub.load(out / "tokenizer").to(accelerator.device)
        encode_once(model, images, config.data, out / "tokens" / "train", config.data.shifts, config.data.flip)
        validation_source = optional_images(config.data.source, config.data.val_share)
        if validation_source is not None:
            encode_once(model, validation_source, config.data, out / "tokens" / "val", 0, False)
    accelerator.wait_for_everyone()
    frozen = hub.load(out / "tokenizer", device=accelerator.device)
    cache = TokenCache(out / "tokens" / "train")
    validation = TokenCache(out / "tokens" / "val") if (out / "tokens" / "val").is_dir() else None
    torch.manual_seed(derived_seed(config.loop.seed, "weights"))
    task = GeneratorTask(config.model.config(frozen.config, labels_of(cache, config)), validation, frozen)
    batches = TokenBatches(cache, config.loop, share)
    return fit(task, batches, (config.optimizer,), config.loop, out, accelerator=accelerator, name="generator")


def accelerator_for(device: str) -> Accelerator:
    """"auto": what accelerate finds; "cpu": the CPU. Precision is the loop's business."""
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but this machine or this build of torch has none; use cpu or auto")
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def labels_of(cache: TokenCache, config: GeneratorTraining) -> tuple[Label, ...]:
    """The data's label sets; data without classes count as one class."""
    drops = config.model.drop_labels
    labels = tuple(
        Label(name=labels.name, size=len(labels.values), values=labels.values, drop=drops.get(labels.name, 0.0))
        for labels in cache.label_sets
    )
    return labels or (Label(name="class", size=1, values=("image",)),)


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
    return encode_source(
        tokenizer, fingerprint, source, folder, flip=flip, shifts=shifts, max_shift=data.max_shift
    )
