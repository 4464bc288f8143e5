"""From a tokenizer and a generator of its tokens to a tokenizer that decodes what the generator draws better."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from tqdm import tqdm

from imgtok import hub
from imgtok.data import ImageSource
from imgtok.data import load as load_images
from imgtok.generators.hub import AnyGenerator
from imgtok.generators.hub import load as load_generator
from imgtok.generators.pack import packed
from imgtok.tokencache import labels_of
from imgtok.tokenizer import Tokenizer
from imgtok.train.best import Best
from imgtok.train.folder import prepare_folder
from imgtok.train.loop import Outcome, fit
from imgtok.train.posttrain import DecoderPostTraining, PairBatches, PairSet, PostTraining
from imgtok.train.preserved import check_post_training, condition_of, make_pairs, open_pairs
from imgtok.train.randomness import derived_seed
from imgtok.train.run import Parts, accelerator_for, optional_images, share_of
from imgtok.train.tasks import spread

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    tokenizer: Tokenizer
    generator: AnyGenerator

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"tokenizer": hub.fingerprint(self.tokenizer), "generator": hub.fingerprint(self.generator)}


def post_train(
    config: PostTraining,
    tokenizer: str | Path,
    generator: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    device: str = "auto",
) -> Outcome:
    """Trains the decoder of `tokenizer` on tokens that `generator` has drawn in part; both a preset or a folder.

    The tokens are drawn once, to `out`/tokens; `imgtok.load(out)` reads the result, a tokenizer with the same encoder
    and codes. ValueError if the two do not belong together, if the pictures lack the labels that the generator is
    told, and as `fit` and `prepare_folder` raise it.
    """
    out, accelerator = Path(out), accelerator_for(device)
    share_of(accelerator).of(config.loop, 0)
    if accelerator.is_main_process:
        pair = load_pair(config, tokenizer, generator, accelerator.device)
        prepare_folder(out, config, resume, pair.fingerprints)
        make_splits(config, pair, out / "tokens")
    accelerator.wait_for_everyone()
    parts = parts_of(config, tokenizer, out / "tokens", accelerator)
    best = Best("val_loss", config.patience) if parts.task.validation else None
    return fit(*parts[:4], out, accelerator=accelerator, name="post-training", best=best)


def load_pair(config: PostTraining, tokenizer: str | Path, generator: str | Path, device: torch.device) -> Pair:
    """The two on `device`, if they and the data go together."""
    pair = Pair(hub.load(tokenizer, device=device), load_generator(generator, device=device))
    check_post_training(*pair)
    labels, sets = labels_of(load_images(config.data.source, "train", val_share=config.data.val_share))
    condition_of(pair.generator.config.condition, sets, labels)  # which refuses what cannot be
    return pair


def make_splits(config: PostTraining, pair: Pair, folder: Path) -> None:
    """Own and mixed tokens, to folder/train and folder/val."""
    fingerprint, drawing = pair.fingerprints["tokenizer"], packed(pair.generator)
    for name, source in splits(config).items():
        logger.info("post-training: tokens of %d pictures to %s", len(source), folder / name)
        with counter(f"tokens ({name})", len(source)) as progress:
            make_pairs(pair.tokenizer, fingerprint, drawing, source, config, folder / name, progress)


@contextmanager
def counter(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar for what is counted as (done, total), where there is a terminal."""
    with tqdm(total=total, desc=name, unit="image", disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield progress


def splits(config: PostTraining) -> dict[str, ImageSource]:
    """The pictures in use: train, and val if the data are enough for one."""
    data = config.data
    training = load_images(data.source, "train", val_share=data.val_share)
    validation = optional_images(data.source, data.val_share)
    chosen = {"train": training.select(spread(len(training), data.pictures or len(training)))}
    if validation is not None:
        chosen["val"] = validation.select(spread(len(validation), data.val_pictures))
    return chosen


def parts_of(config: PostTraining, tokenizer: str | Path, folder: Path, accelerator: Accelerator) -> Parts:
    """After `make_splits`."""
    model = hub.load(tokenizer, device=accelerator.device)
    pairs: dict[str, PairSet] = {
        name: open_pairs(source, folder / name, model.config.image_size) for name, source in splits(config).items()
    }
    batches = PairBatches(pairs["train"], config.clean_share, config.loop, share_of(accelerator))
    torch.manual_seed(derived_seed(config.loop.seed, "weights"))
    task = DecoderPostTraining(config, model, pairs.get("val"))
    return Parts(task, batches, (config.optimizer, config.discriminator_optimizer), config.loop, accelerator)
