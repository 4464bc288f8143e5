"""imgtok edit: parts of a picture drawn anew."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from imgtok.config import to_dict
from imgtok.data import grid as sheet
from imgtok.data import read_picture, save_png, to_float
from imgtok.generators.condition import LabelConditionConfig, TextConditionConfig
from imgtok.generators.generator import Generator
from imgtok.generators.hub import load_config
from imgtok.generators.pack import packed
from imgtok.pack import packed_tokenizer
from imgtok.sample.commands.common import (
    Device,
    Flag,
    check_pictures_place,
    check_positive,
    find_device,
    set_threads,
)
from imgtok.sample.commands.generate import (
    DTYPES,
    FEW,
    GRID,
    Wanted,
    check_one_way,
    check_strategy,
    load_pair,
    on_device,
    save_all,
    speed,
    start_folder,
    suited,
    tokenizer_of,
    told,
    wanted_images,
)
from imgtok.sample.edit import Box, box_mask, fitted, on_canvas, picture_size
from imgtok.sample.edit import edit as draw
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, Statistics
from imgtok.sample.law import Law
from imgtok.sample.plain import Plain
from imgtok.sample.strategies import ENTRIES, STAGE_ENTRIES, Parts, build_strategy
from imgtok.sample.strategy import Strategy
from imgtok.sample.tuner import Tuner

GREY = 127

Size = tuple[int, int]  # height and width in pixels


class Region(NamedTuple):
    """What to draw; exactly one of them is given."""

    mask: Path | None
    box: str | None
    outpaint: str | None


def edit(
    *,
    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")],
    model: str,
    mask: Path | None = None,
    box: str | None = None,
    outpaint: str | None = None,
    tokenizer: str | None = None,
    weights: Path | None = None,
    tokenizer_weights: Path | None = None,
    label: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    features: Path | None = None,
    num: int = FEW,
    seed: int = 0,
    border: int | None = None,
    guidance: float | None = None,
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float = 1.0,
    strategy: str = "auto",
    window: int | None = None,
    out: Path = Path("edits"),
    overwrite: Flag = False,
    batch_size: int = 16,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Device = "auto",
    threads: int | None = None,
) -> None:
    """Draw a part of a picture anew: what --mask or --box covers, or what lies around the picture (--outpaint).

    The picture is scaled and cropped to the size that the generator draws. What is kept stays exactly as it was, but
    for --border. Version i of a seed is the same whatever the batch size and the number of versions.

    Args:
        image: A picture file.
        model: Generator: a folder that training or `imgtok convert` wrote, or a preset.
        mask: A picture of IMAGE's size, white where to draw, black where to keep.
        box: X,Y,WIDTH,HEIGHT of the rectangle to draw, from the upper left corner, in pixels of the size that the
            generator draws; with a decimal point in one of them (0.5,0,0.5,1.0), in shares of it.
        outpaint: The rectangle to put the picture in, written as for --box; all around it is drawn.
        tokenizer: Its tokenizer, a folder or a preset; None: the one inside the generator's folder, or the preset's.
        weights: The generator preset's published file, instead of a download.
        tokenizer_weights: The tokenizer preset's published file, instead of a download.
        label: NAME=VALUE, as in --label category="Food & Drink" --label style=noto: what to draw, as far as the
            picture lets it. Without: whatever goes with the picture, and --guidance has no effect.
        features: For text: a .safetensors file as for `imgtok generate`.
        num: Number of versions.
        seed: Any integer.
        border: Pixels outside of the mask in which the picture passes over to what was drawn; 0: a sharp seam; None:
            half the side of a token.
        guidance: How far past the unconditional law; 1: no guidance. None: what suits a pair of the zoo, for others 3.
        guidance_schedule: How guidance rises over an image from 1 to its full strength.
        temperature: Below 1: likelier tokens are favoured; 0: always the likeliest. None: as for guidance, else 1.
        top_k: Draw among this many likeliest tokens; 0: all. None: as for guidance, else all.
        top_p: Draw among the likeliest tokens that have this probability together.
        strategy: How tokens are drawn, one of `imgtok strategies` that needs no draft model.
        window: Tokens scored at a time beside the last, for strategies that have a window; None: theirs.
        out: Folder for 00000.png and so on, grid.png (what was kept, then the versions) and samples.json.
        overwrite: Replace the images of an earlier run in --out.
        batch_size: Versions drawn at a time.
        dtype: Of the generator's parameters and arithmetic; the tokenizer works in float32.
        device: auto: CUDA if there is one, else the CPU.
        threads: CPU threads; None: torch's choice.
    """
    set_threads(threads)
    check_positive("batch-size", batch_size)
    check_positive("num", num)
    check_way(strategy, window)
    if border is not None:
        check_positive("border", border, least=0)
    region = Region(mask, box, outpaint)
    check_region(region)
    check_pictures_place(out, overwrite)
    check_inputs_stay(out, image, mask)
    picture = read_picture(image)
    law, strength = suited(model, guidance, temperature, top_k, Law(top_p=top_p), Guidance(schedule=guidance_schedule))
    where, wanted = find_device(device), wanted_versions(load_config(model).condition, label, features, num)
    is_told = bool(label) or features is not None
    if not is_told:
        strength = Guidance()
    partner = tokenizer or tokenizer_of(model)
    generator, decoder = load_pair(model, weights, partner, tokenizer_weights, where, DTYPES[dtype])
    original, drawn = prepared(picture, region, picture_size(generator, decoder))
    fast: Any = packed(generator)
    coder = packed_tokenizer(decoder)
    way: Strategy | Tuner = Plain()
    if not isinstance(generator, Generator):
        check_one_way(model, strategy, False)
    elif strategy == "auto":
        way = Tuner(fast, strength, min(batch_size, num))
    else:
        way = build_strategy(strategy, Parts(generator=generator), window)
    settings = {"model": model, "tokenizer": partner, "seed": seed, "dtype": dtype, "device": str(where)}
    settings |= {"image": str(image), "mask": mask and str(mask), "box": box, "outpaint": outpaint, "border": border}
    settings |= {"strategy": strategy, "window": window, "guidance": to_dict(strength), "law": to_dict(law)}
    start_folder(out, settings, wanted.rows)
    started, condition, statistics = time.monotonic(), on_device(wanted.condition, where), Statistics()
    config = SamplerConfig(law=law, guidance=strength, strategy=way, batch_size=batch_size)
    images, masks = to_float(original).expand(num, -1, -1, -1), drawn.expand(num, -1, -1)
    versions = draw(fast, coder, images, masks, condition, config, seed=seed, border=border, statistics=statistics)
    first = save_all(versions, out, num)
    seconds = time.monotonic() - started
    shown = original.masked_fill(drawn, GREY)
    save_png(out / GRID, sheet(torch.cat([shown[None], first]), columns=8))
    print("\n".join([f"{out}: {speed(num, statistics.tokens, seconds)}", *told(statistics)]))


def check_way(name: str, window: int | None) -> None:
    entry = ENTRIES.get(name) or STAGE_ENTRIES.get(name)
    if entry is not None and entry.needs_draft:
        raise ValueError(f"--strategy {name} needs a draft model, which edit has no option for; use auto")
    check_strategy(name, window, None, 0.0)


def check_region(region: Region) -> None:
    given = [name for name, value in region._asdict().items() if value is not None]
    if len(given) != 1:
        found = f"got {' and '.join(f'--{name}' for name in given)}" if given else "none was given"
        raise ValueError(f"say what to draw with one of --mask FILE, --box X,Y,W,H and --outpaint X,Y,W,H; {found}")


def check_inputs_stay(out: Path, *inputs: Path | None) -> None:
    """--out is emptied of earlier pictures, among which those that are read must not be."""
    for path in inputs:
        if path is not None and path.resolve().parent == out.resolve():
            raise ValueError(f"--out {out} holds {path}, which could be replaced; choose another folder")


def wanted_versions(
    config: LabelConditionConfig | TextConditionConfig, words: tuple[str, ...], features: Path | None, num: int
) -> Wanted:
    """As for `imgtok generate`, but where nothing is said about labels, none is told."""
    if words or features is not None or isinstance(config, TextConditionConfig):
        return wanted_images(config, words, features, num)
    nothing = [label.size for label in config.labels]
    return Wanted(torch.tensor([nothing] * num), [{} for _ in range(num)])


def prepared(picture: Tensor, region: Region, size: Size) -> tuple[Tensor, Tensor]:
    """The picture, uint8 3 h w of `size`, and where to draw, h w."""
    if region.outpaint is not None:
        original, drawn = on_canvas(picture, parsed("outpaint", region.outpaint, size), size)
    elif region.box is not None:
        original, drawn = fitted(picture, size), box_mask(parsed("box", region.box, size), size)
    else:
        assert region.mask is not None
        original, drawn = fitted(picture, size), read_mask(region.mask, picture, size)
    if not drawn.any():
        raise ValueError("there is nothing to draw: the mask is black, or the picture to paint around fills all of it")
    return original, drawn


def read_mask(path: Path, picture: Tensor, size: Size) -> Tensor:
    """h w of `size`, cropped as the picture is: where the mask is more white than black."""
    mask = read_picture(path)
    if mask.shape != picture.shape:
        given, expected = (f"{each.shape[-1]} x {each.shape[-2]}" for each in (mask, picture))
        raise ValueError(f"--mask {path} has {given} pixels but the picture {expected}; they must be of one size")
    return fitted(mask, size).float().mean(0) > GREY


def parsed(option: str, text: str, size: Size) -> Box:
    """X,Y,WIDTH,HEIGHT in pixels, or where there is a decimal point in shares of `size`."""
    height, width = size
    try:
        numbers = [float(word) for word in text.split(",")]
        x, y, w, h = numbers if "." in text else [int(word) for word in text.split(",")]
    except ValueError:
        example = f"{width // 4},{height // 4},{width // 2},{height // 2} or 0.25,0.25,0.5,0.5"
        raise ValueError(f"--{option} {text} is not four numbers X,Y,WIDTH,HEIGHT, such as {example}") from None
    if "." in text:
        left, top = round(x * width), round(y * height)
        return Box(left, top, round((x + w) * width) - left, round((y + h) * height) - top)
    return Box(int(x), int(y), int(w), int(h))
