"""From uint8 pictures to training batches: value range, crops, flips, shifts. Randomness comes from a generator."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from imgtok.data.pictures import from_pillow, to_pillow


def to_float(images: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [-1, 1], any shape."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Floating point, clamped to [-1, 1] -> nearest uint8 [0, 255], any shape. The inverse of `to_float`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def center_crop(image: Tensor, size: int) -> Tensor:
    """The middle of image (uint8 3 h w, on the CPU), its short side scaled to `size`: uint8 3 size size.

    Raises ValueError for other tensors and for size < 1.
    """
    h, w = _scaled(image, _checked(size))
    return _window(image, (h, w), (h - size) // 2, (w - size) // 2, size)


def random_crop(
    image: Tensor, size: int, scale: tuple[float, float] = (1.0, 1.25), *, generator: torch.Generator
) -> Tensor:
    """A place of image (uint8 3 h w, on the CPU) at a drawn scale: uint8 3 size size.

    The short side is scaled to a length drawn from size * scale, then the place is drawn (LlamaGen, arXiv:2406.06525,
    whose range is the default). Small images are scaled up. Takes three numbers from a generator on the CPU.
    Raises ValueError for other tensors, for size < 1 and if not 1 <= scale[0] <= scale[1].
    """
    low, high = scale
    if not 1 <= low <= high:
        raise ValueError(f"scale {scale} must be two rising numbers from 1 up, as in (1.0, 1.25)")
    at = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    shortest, longest = round(_checked(size) * low), round(size * high)
    h, w = _scaled(image, shortest + int(at[0] * (longest - shortest + 1)))
    return _window(image, (h, w), int(at[1] * (h - size + 1)), int(at[2] * (w - size + 1)), size)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of b 3 h w mirrored left to right with probability one half."""
    chance = torch.rand(len(images), generator=generator, device=generator.device).to(images.device)
    return torch.where((chance < 0.5)[:, None, None, None], images.flip(-1), images)


def random_shift(images: Tensor, max_pixels: int, generator: torch.Generator, fill: int = 255) -> Tensor:
    """Each image of b 3 h w moved by whole pixels, at most `max_pixels` a side; what moves in is `fill`.

    Raises ValueError for max_pixels < 0.
    """
    if max_pixels < 0:
        raise ValueError(f"max_pixels {max_pixels} must not be negative")
    b, _, h, w = images.shape
    corners = torch.randint(2 * max_pixels + 1, (2, b), generator=generator, device=generator.device)
    top, left = corners.to(images.device)
    padded = F.pad(images, (max_pixels,) * 4, value=fill)
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # b 3 top left h w, a view
    return windows[torch.arange(b, device=images.device), :, top, left]


def _checked(size: int) -> int:
    if size < 1:
        raise ValueError(f"size {size} must be at least 1")
    return size


def _scaled(image: Tensor, short_side: int) -> tuple[int, int]:
    """Height and width of image with its short side at `short_side`."""
    h, w = image.shape[-2:]
    return round(h * short_side / min(h, w)), round(w * short_side / min(h, w))


def _window(image: Tensor, scaled: tuple[int, int], top: int, left: int, size: int) -> Tensor:
    """A size x size window of image scaled to `scaled`, without computing the rest. Antialiased bicubic.

    Pillow's and not torch's resize: integer arithmetic, so the same pixels on every machine.
    """
    h, w = image.shape[-2:]
    y, x = h / scaled[0], w / scaled[1]
    box = (left * x, top * y, min((left + size) * x, w), min((top + size) * y, h))
    return from_pillow(to_pillow(image).resize((size, size), Image.Resampling.BICUBIC, box=box))
