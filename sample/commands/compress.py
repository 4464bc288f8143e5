"""imgtok compress, decompress: a picture to a token file and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from imgtok import tokenfile
from imgtok.compression import Compressor
from imgtok.config import read_json
from imgtok.data import center_crop, read_picture, save_png, to_float
from imgtok.flexible import Quality
from imgtok.generators.condition import LabelConditionConfig
from imgtok.generators.hub import CONFIGS
from imgtok.generators.presets import PRESETS
from imgtok.hub import CONFIG_FILE
from imgtok.metrics.image import psnr, ssim
from imgtok.metrics.perceptual import perceptual_distance
from imgtok.sample.commands.common import Device, Flag, check_positive, find_device, load_tokenizer, set_threads
from imgtok.sample.commands.generate import chosen_labels, load_pair, tokenizer_of
from imgtok.sample.entropy_model import EntropyModel
from imgtok.tokenfile import Coding, TokenFile

Metric = Literal["psnr", "ssim", "lpips-vgg", "lpips-alex", "efficientnet-lite0"]
SMALLEST = 7  # pixels a side that SSIM needs


class Coder(NamedTuple):
    """What --model names: a tokenizer, and if it is a generator's, its law of the tokens."""

    compressor: Compressor
    predictor: EntropyModel | None


def compress(
    *,
    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")],
    model: str,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    tokens: int | None = None,
    quality: float | None = None,
    metric: Metric = "psnr",
    most_bytes: Annotated[int | None, tyro.conf.arg(name="bytes")] = None,
    coding: Coding = "auto",
    size: int | None = None,
    tokenizer: str | None = None,
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    weights: Path | None = None,
    tokenizer_weights: Path | None = None,
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Write a picture's tokens to a file of a few bytes, and print its size and how close it comes (PSNR in dB, SSIM).

    A tokenizer of several scales, or of tokens that are ordered by importance, can leave off the last ones: at most one
    of --tokens, --quality and --bytes says how many. Without them, all tokens are written.

    Args:
        image: A picture file.
        model: Tokenizer: a folder that training or `imgtok convert` wrote, or a preset. Or a next-token or next-scale
            generator that is told labels, whose law of the tokens makes the file smaller.
        out: File to write, such as picture.imtk.
        tokens: Only this many of the first tokens.
        quality: As few of the first tokens as reach this: at least so much PSNR or SSIM, at most so much distance.
        metric: What --quality is in: psnr (dB), ssim, or a perceptual distance.
        most_bytes: As many of the first tokens as fit into a file of this many bytes.
        coding: packed: each token in the same number of bits, may be cut at its end; coded: under a histogram (needs
            the package constriction, as predicted does), for large pictures; predicted: under the generator's law, to
            be read on a machine that computes as this one; auto: the smallest of those that can be written.
        size: Scale the short side to this and crop to a square first; None: as it is.
        tokenizer: The generator's tokenizer, folder or preset; None: the one that belongs to it.
        label: For a generator: NAME=VALUE, as in --label style=noto, if the class of the picture is known.
        weights: The preset's published file, instead of a download.
        tokenizer_weights: The same of --tokenizer.
        overwrite: Replace --out if it is there.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    given = [
        name for name, value in (("tokens", tokens), ("quality", quality), ("bytes", most_bytes)) if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"got --{' and --'.join(given)}; each says how many tokens to keep, give one of them")
    check_positive("tokens", 1 if tokens is None else tokens)
    check_positive("bytes", 1 if most_bytes is None else most_bytes)
    check_positive("size", SMALLEST if size is None else size, SMALLEST)
    check_new_file(out, image, overwrite)
    picture = read_picture(image) if size is None else center_crop(read_picture(image), size)
    compressor, predictor = load_coder(model, weights, tokenizer, tokenizer_weights, label, find_device(device))
    if quality is not None:
        sign, measure = quality_of(metric)
        file = compressor.encode_to_quality(picture, sign * quality, measure)
    elif most_bytes is not None:
        file = compressor.encode_to_bytes(picture, most_bytes, coding, predictor)
    else:
        file = compressor.encode(picture)
        file = file if tokens is None else compressor.shortened(file, tokens)
    written = tokenfile.save(file, out, coding, predictor)
    print(f"{out}: {summary(picture, compressor.decode(file), file, written)}")


def load_coder(
    model: str,
    weights: Path | None,
    tokenizer: str | None,
    tokenizer_weights: Path | None,
    label: tuple[str, ...],
    device: torch.device,
) -> Coder:
    if not is_generator(model):
        for option, given in (("tokenizer", tokenizer), ("tokenizer-weights", tokenizer_weights), ("label", label)):
            if given:
                raise ValueError(f"--{option} goes with a generator as --model, but {model} is none; leave it out")
        return Coder(Compressor(load_tokenizer(model, weights, device)), None)
    generator, own = load_pair(
        model, weights, tokenizer or tokenizer_of(model), tokenizer_weights, device, torch.float32
    )
    condition = generator.config.condition
    numbers = label_numbers(condition, label) if isinstance(condition, LabelConditionConfig) else ()
    return Coder(Compressor(own), EntropyModel(generator, own, numbers))


def is_generator(model: str) -> bool:
    """Whether it names a generator. What is no model at all is left to those that load it."""
    path = Path(model) / CONFIG_FILE
    if model in PRESETS or not path.is_file():
        return model in PRESETS
    return read_json(path).get("type") in {config.__name__ for config in CONFIGS}


def label_numbers(config: LabelConditionConfig, words: tuple[str, ...]) -> tuple[int, ...]:
    """Of NAME=VALUE words; labels that are not named get their null. None for no words."""
    chosen = chosen_labels(config, words)
    return tuple(chosen.get(label.name, label.size) for label in config.labels) if chosen else ()


def summary(picture: Tensor, decoded: Tensor, file: TokenFile, written: int) -> str:
    height, width = file.size
    count, original, result = len(file.tokens), to_float(picture)[None], to_float(decoded)[None]
    told = f"{written} bytes, {8 * written / (height * width):.3f} bits a pixel, "
    told += f"{count} of {file.layout.num_tokens} tokens, PSNR {float(psnr(result, original)):.2f} dB"
    return told + (f", SSIM {float(ssim(result, original)):.4f}" if min(height, width) >= SMALLEST else "")


def quality_of(metric: Metric) -> tuple[int, Quality]:
    """The measure, larger for better pictures, and the sign with which its values are told."""
    if metric in ("psnr", "ssim"):
        return 1, psnr if metric == "psnr" else ssim
    distance = perceptual_distance(metric)
    assert distance is not None
    return -1, lambda images, originals: -distance.to(images.device)(images, originals)


def decompress(
    *,
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")],
    model: str,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    tokenizer: str | None = None,
    weights: Path | None = None,
    tokenizer_weights: Path | None = None,
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Decode a file that `imgtok compress` wrote to a picture (PNG), also one that was cut at its end.

    Args:
        file: A token file.
        model: The tokenizer that made it, or the generator if it was written with one.
        out: File to write, such as picture.png.
        tokenizer: The generator's tokenizer, folder or preset; None: the one that belongs to it.
        weights: The preset's published file, instead of a download.
        tokenizer_weights: The same of --tokenizer.
        overwrite: Replace --out if it is there.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: pictures are written as PNG; give a name that ends in .png")
    check_new_file(out, file, overwrite)
    compressor, predictor = load_coder(model, weights, tokenizer, tokenizer_weights, (), find_device(device))
    content = tokenfile.load(file, predictor)
    try:
        picture = compressor.decode(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    save_png(out, picture)
    height, width = content.size
    print(f"{out}: {width} x {height} pixels from {len(content.tokens)} of {content.layout.num_tokens} tokens")


def check_new_file(out: Path, source: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give the path of a file")
    if out.resolve() == source.resolve():
        raise ValueError(f"--out {out} would replace what is read; choose another")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} is there already; choose another, or add --overwrite to replace it")
    if not source.is_file():
        raise ValueError(f"{source} is not a file")
