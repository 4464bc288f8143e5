"""Parts of pictures drawn anew by a generator that was never trained to: in- and outpainting, class-conditional edits.

The tokens of what stays are forced on the loops that draw; all else is ordinary sampling, with the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.data import to_float, to_uint8
from imgtok.generators.hub import AnyGenerator
from imgtok.sample.images import SamplerConfig, Statistics, check_pair, count, generate_tokens
from imgtok.sample.kept import keep
from imgtok.tokenizer import Tokenizer
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout


def edit(
    generator: AnyGenerator,
    tokenizer: Tokenizer,
    images: Tensor,
    mask: Tensor,
    condition: Any,
    config: SamplerConfig | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    border: int | None = None,
    statistics: Statistics | None = None,
) -> Iterator[Tensor]:
    """Draws what mask b h w (bool) covers of images b 3 h w anew, yielding batches b 3 h w in [-1, 1] when finished.

    Inpainting: mask what shall go. Outpainting: `on_canvas`. Class-conditional edit: a condition of another class. One
    row of `condition` an image; row i is drawn with the noise of image `first + i` of `seed`, as in `generate`, and
    masked pixels have no influence. Further than `border` pixels from the mask (default: half the side of a token's
    cell) the result equals the image exactly; nearer, it passes over to what was drawn. ValueError for sizes that the
    pair does not draw, an image with nothing to draw, and a strategy that is not exact.
    """
    config, layout = config or SamplerConfig(), maps_of(generator)
    check_pair(generator, tokenizer)
    images, mask = images.to(generator.device), mask.to(generator.device)
    check_edit(images, mask, count(condition), picture_size(generator, tokenizer))
    if border is None:
        border = tokenizer.config.backbone.reduction // 2
    kept, done = keep(tokenizer, layout, images, mask, config.batch_size), 0
    for tokens in generate_tokens(
        generator,
        condition,
        config,
        quantizer=tokenizer.quantizer,
        kept=kept,
        seed=seed,
        first=first,
        statistics=statistics,
    ):
        here = slice(done, done + len(tokens))
        yield blend(tokenizer.decode(tokens, layout), images[here], mask[here], border)
        done += len(tokens)


def maps_of(generator: AnyGenerator) -> GridLayout | ScaleLayout:
    """How its tokens lie over a picture. ValueError if they lie in a sequence."""
    layout = generator.config.layout
    if isinstance(layout, SequenceLayout):
        raise ValueError(
            "this generator's tokens lie in a sequence, so none of them belongs to a part of the picture; "
            "edit with a pair whose tokens lie on a grid"
        )
    return layout


def picture_size(generator: AnyGenerator, tokenizer: Tokenizer) -> tuple[int, int]:
    """Height and width in pixels of what the pair draws."""
    height, width = maps_of(generator).latent_shape
    return height * tokenizer.config.backbone.reduction, width * tokenizer.config.backbone.reduction


def check_edit(images: Tensor, mask: Tensor, conditions: int, size: tuple[int, int]) -> None:
    height, width = size
    if images.shape[1:] != (3, height, width) or not images.is_floating_point():
        given = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images are {given}, but this pair draws float [b, 3, {height}, {width}]; scale or crop them")
    if mask.dtype != torch.bool or mask.shape != images[:, 0].shape:
        expected = f"torch.bool {list(images[:, 0].shape)}, True where a pixel is to be drawn"
        raise ValueError(f"the mask is {mask.dtype} {list(mask.shape)}, expected {expected}")
    if conditions != len(images):
        raise ValueError(f"{conditions} conditions were given for {len(images)} images; give one row for each")
    empty = (~mask.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"there is nothing to draw in image {empty[0]}: its mask is False everywhere")


def blend(drawn: Tensor, images: Tensor, mask: Tensor, border: int) -> Tensor:
    """`drawn` in mask b h w (bool), `images` further than `border` pixels from it, a linear passage between the two.

    Distance is the larger of those down and across. Both b 3 h w, the result too.
    """
    if border < 0:
        raise ValueError(f"border must be 0 or more pixels, got {border}")
    reached = mask[:, None].float()
    share = reached
    for _ in range(border):
        reached = F.max_pool2d(reached, 3, stride=1, padding=1)
        share = share + reached
    return torch.lerp(images.float(), drawn, share / (border + 1))


class Box(NamedTuple):
    """A rectangle in pixels; x and y are those of its upper left corner."""

    x: int
    y: int
    width: int
    height: int


def box_mask(box: Box, size: tuple[int, int]) -> Tensor:
    """h w, True inside the box. ValueError if it is empty or leaves a picture of size (height, width)."""
    height, width = size
    right, below = box.x + box.width, box.y + box.height
    if box.width < 1 or box.height < 1 or box.x < 0 or box.y < 0 or right > width or below > height:
        given = f"{box.width} x {box.height} at ({box.x}, {box.y})"
        raise ValueError(f"the box is {given} pixels, which is not inside a picture of {width} x {height}")
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[box.y : below, box.x : right] = True
    return mask


def on_canvas(image: Tensor, box: Box, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """image (uint8 3 h w), scaled and cropped to fill `box` of a canvas of size (height, width), and what is left.

    Returns uint8 3 height width and the mask height width of what lies around the box: for outpainting.
    """
    inside = box_mask(box, size)
    canvas = image.new_full((3, *size), 127)
    canvas[:, inside] = fitted(image, (box.height, box.width)).flatten(1)
    return canvas, ~inside


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of image (uint8 3 h w), scaled to just cover size (height, width): uint8 3 height width."""
    (height, width), (h, w) = size, image.shape[-2:]
    scale = max(height / h, width / w)
    covering = max(height, round(h * scale)), max(width, round(w * scale))
    if covering != (h, w):
        image = to_uint8(F.interpolate(to_float(image)[None], covering, mode="bicubic", antialias=True))[0]
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return image[:, top : top + height, left : left + width]
