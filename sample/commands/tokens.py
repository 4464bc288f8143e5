"""imgtok reconstruct, encode, decode: pictures to tokens and back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from imgtok.data import FolderSource, ImageSource, UnreadableImage, center_crop, grid, save_png, to_float, to_uint8
from imgtok.data import load as load_images
from imgtok.data.pictures import header_fault
from imgtok.hub import fingerprint
from imgtok.metrics import image as metrics
from imgtok.sample.commands.common import (
    Device,
    Flag,
    check_pictures_place,
    check_positive,
    check_replaced_place,
    command_line,
    find_device,
    load_tokenizer,
    picture_names,
    progress,
    set_threads,
)
from imgtok.tokencache import DESCRIPTION, LABELS, NAMES, TOKENS, TokenCache, encode_source
from imgtok.tokenizer import Tokenizer, size_of
from imgtok.tokens import sizes_text

logger = logging.getLogger(__name__)

COMPARISON = "comparison.png"
COMPARED_AT_MOST = 32
SMALLEST = 7  # pixels a side that SSIM needs


class Pair(NamedTuple):
    """A picture and what became of it, uint8 3 h w, with its scores."""

    original: Tensor
    reconstruction: Tensor
    psnr: float
    ssim: float


def reconstruct(
    *,
    images: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGES ...", help_behavior_hint="(one or more)")
    ],
    model: str,
    out: Path,
    size: int | None = None,
    scales: int | None = None,
    num_tokens: int | None = None,
    weights: Path | None = None,
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Turn images to tokens and back, write what came back, and print how close it is (PSNR in dB, SSIM).

    Images may have any size: what does not fill whole tokens is cut off at the edges, evenly.

    Args:
        images: Image files, folders of them, or embedded sets (emoji64, photos).
        model: Tokenizer: a folder that training or `imgtok convert` wrote, or a preset.
        out: Folder for the reconstructions and comparison.png, originals beside reconstructions.
        size: Scale the short side to this and crop to a square first; None: as they are.
        scales: Decode from this many of the coarsest scales only, for a tokenizer that has several; None: all.
        num_tokens: Decode from this many of the first tokens only, where these matter most; None: all.
        weights: The preset's published file, instead of a download.
        overwrite: Replace files of equal names in --out.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_pictures_place(out, overwrite)
    sources = [open_source(name) for name in images]
    if not sources:
        raise ValueError("no images were given; name files, folders or an embedded set (emoji64, photos)")
    targets = picture_names((name for source in sources for name in source.names), reserved=[COMPARISON])
    check_originals_stay(sources, {(out / name).resolve() for name in (*targets, COMPARISON)})
    tokenizer = load_tokenizer(model, weights, find_device(device))
    check_size(size, tokenizer)
    check_scales(scales, tokenizer)
    if num_tokens is not None:
        tokenizer.config.check_prefix(num_tokens, tokenizer.config.layout)
    width = min(max(map(len, targets)), 48)
    scores, compared = list[tuple[float, float]](), list[Pair]()
    for target, pair in zip(targets, reconstructed(tokenizer, sources, size, scales, num_tokens), strict=True):
        if pair is not None:
            save_png(out / target, pair.reconstruction)
            print(score_line(target, pair.psnr, pair.ssim, width))
            scores.append((pair.psnr, pair.ssim))
            compared += [pair] if len(compared) < COMPARED_AT_MOST else []
    if not scores:
        raise ValueError("not one of the images can be read; the log has the reasons")
    save_png(out / COMPARISON, compare(compared, tokenizer.config.image_size))
    means = [sum(column) / len(column) for column in zip(*scores, strict=True)]
    print(score_line(f"mean of {len(scores)}", means[0], means[1], width))
    print(f"{out}: {len(scores)} reconstructions, {COMPARISON}")


def score_line(name: str, psnr: float, ssim: float, width: int) -> str:
    return f"{name:<{width}}  PSNR {psnr:6.2f} dB  SSIM {ssim:.4f}"


def open_source(name: str) -> ImageSource:
    """What one of the words IMAGES names."""
    path = Path(name).expanduser()
    if not path.is_file():
        return load_images(name)
    fault = header_fault(path)
    if fault is not None:
        raise ValueError(f"{name} cannot be read: {fault}")
    return FolderSource([path], torch.zeros(1, 0, dtype=torch.int64), (), [path.name])


def check_originals_stay(sources: list[ImageSource], targets: set[Path]) -> None:
    """No picture that is read may be written over."""
    for source in sources:
        for path in source.paths if isinstance(source, FolderSource) else ():
            if path.resolve() in targets:
                raise ValueError(f"--out would replace the original {path}; choose another folder")


def check_size(size: int | None, tokenizer: Tokenizer) -> None:
    reduction = tokenizer.config.backbone.reduction
    if size is not None and (size < SMALLEST or size % reduction):
        raise ValueError(f"--size must be a multiple of {reduction}, the tokenizer's pixels per token, got {size}")


def check_scales(scales: int | None, tokenizer: Tokenizer) -> None:
    there = len(tokenizer.config.layout.group_sizes)
    if scales is not None and not 1 <= scales <= there:
        raise ValueError(f"--scales must be from 1 to {there}, the scales of this tokenizer, got {scales}")


def reconstructed(
    tokenizer: Tokenizer,
    sources: list[ImageSource],
    size: int | None,
    scales: int | None = None,
    num_tokens: int | None = None,
) -> Iterator[Pair | None]:
    """One by one; None for a picture that cannot be read or is smaller than a token, which the log tells."""
    for source in sources:
        for i, name in enumerate(source.names):
            try:
                image = prepare(source.image(i), name, tokenizer.config.backbone.reduction, size)
            except UnreadableImage as error:
                logger.warning("skipped: %s", error)
                yield None
            else:
                yield reconstruct_one(tokenizer, image, scales, num_tokens)


def prepare(image: Tensor, name: str, reduction: int, size: int | None) -> Tensor:
    """The picture in a size that the tokenizer takes."""
    if size is not None:
        return center_crop(image, size)
    h, w = image.shape[-2:]
    height, width = h - h % reduction, w - w % reduction
    if min(height, width) < SMALLEST:
        raise UnreadableImage(f"{name}: {w} x {h} pixels are too few; --size scales it up")
    if (height, width) != (h, w):
        logger.info("%s: cropped from %d x %d to %d x %d pixels", name, w, h, width, height)
    top, left = (h - height) // 2, (w - width) // 2
    return image[:, top : top + height, left : left + width].contiguous()


def reconstruct_one(
    tokenizer: Tokenizer, image: Tensor, scales: int | None = None, num_tokens: int | None = None
) -> Pair:
    original = to_float(image)[None]
    indices = tokenizer.encode(original.to(tokenizer.from_codes.weight.device), num_tokens)
    result = tokenizer.decode(indices, stages=scales, size=size_of(original)).cpu()
    psnr, ssim = metrics.psnr(result, original), metrics.ssim(result, original)
    return Pair(image, to_uint8(result)[0], float(psnr), float(ssim))


def compare(pairs: list[Pair], size: int) -> Tensor:
    """Originals beside their reconstructions, up to four pairs a row; of one size, cropped if they differ."""
    images = [image for pair in pairs for image in (pair.original, pair.reconstruction)]
    if len({image.shape for image in images}) > 1:
        images = [center_crop(image, size) for image in images]
    return grid(torch.stack(images), columns=8)


def encode(
    *,
    model: str,
    data: str,
    out: Path,
    split: Literal["train", "val"] | None = None,
    val_share: float = 0.1,
    flip: Flag = False,
    shifts: int = 0,
    max_shift: int = 4,
    weights: Path | None = None,
    batch_size: int = 64,
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Encode images to a folder of tokens: small integers, with labels and names, one row per version of an image.

    Each image is scaled and cropped to the tokenizer's size.

    Args:
        model: Tokenizer: a folder that training or `imgtok convert` wrote, or a preset.
        data: A folder of images, classes as sub-folders, or an embedded set (emoji64, photos).
        out: Folder to write.
        split: Only the images for training or for validation; None: all.
        val_share: Share of a folder that counts as validation.
        flip: Mirrored versions too.
        shifts: How many randomly translated versions of each image to add.
        max_shift: Their largest translation in pixels.
        weights: The preset's published file, instead of a download.
        batch_size: Images encoded at a time.
        overwrite: Replace tokens that are there already.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_positive("batch-size", batch_size)
    check_positive("shifts", shifts, least=0)
    check_positive("max-shift", max_shift, least=0)
    check_replaced_place(out, (DESCRIPTION, TOKENS, LABELS, NAMES), overwrite)
    source = load_images(data, split, val_share=val_share)
    tokenizer = load_tokenizer(model, weights, find_device(device))
    with progress("encode", "image", len(source)) as bar:
        cache = encode_source(
            tokenizer,
            fingerprint(tokenizer),
            source,
            out,
            flip=flip,
            shifts=shifts,
            max_shift=max_shift,
            batch_size=batch_size,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    layout, versions = cache.description.layout, f" x {cache.versions} versions" if cache.versions > 1 else ""
    print(f"{out}: {cache.images} images{versions} of {sizes_text([layout.latent_shape])} tokens")
    print(f"next: {command_line(['imgtok', 'decode', out, '--model', model, '--out', 'decoded'])}")


def decode(
    *,
    tokens: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TOKENS")],
    model: str,
    out: Path,
    weights: Path | None = None,
    force: Flag = False,
    batch_size: int = 16,
    overwrite: Flag = False,
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Decode a folder of tokens to images: the first version of each, neither mirrored nor translated.

    Args:
        tokens: A folder that `imgtok encode` wrote.
        model: The tokenizer that made them.
        out: Folder for the images.
        weights: The preset's published file, instead of a download.
        force: Decode tokens that another tokenizer made.
        batch_size: Images decoded at a time.
        overwrite: Replace files of equal names in --out.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_positive("batch-size", batch_size)
    check_pictures_place(out, overwrite)
    cache = TokenCache(tokens)
    tokenizer = load_tokenizer(model, weights, find_device(device))
    check_made_by(cache, tokenizer, f"{tokens} was made by another tokenizer than {model}", force)
    rows = torch.arange(cache.images) * cache.versions
    targets = iter(picture_names(cache.names))
    with progress("decode", "image", cache.images) as bar:
        for part in rows.split(batch_size):
            indices = cache.rows(part)[0].to(tokenizer.from_codes.weight.device)
            for image in to_uint8(tokenizer.decode(indices, cache.description.layout)).cpu():
                save_png(out / next(targets), image)
            bar.update(len(part))
    print(f"{out}: {cache.images} images")


def check_made_by(cache: TokenCache, tokenizer: Tokenizer, problem: str, force: bool) -> None:
    """ValueError if the tokens are another tokenizer's (unless `force`) or not all in its codebook."""
    if not force and cache.description.tokenizer != fingerprint(tokenizer):
        raise ValueError(f"{problem}; use that one, or add --force")
    largest, size = int(cache.tokens.max()), tokenizer.quantizer.codebook_size
    if largest >= size:
        raise ValueError(f"{problem}: token {largest} is not among its codes 0 to {size - 1}")
