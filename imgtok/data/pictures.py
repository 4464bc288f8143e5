"""The border between picture files and tensors: any file -> uint8 3 h w, and uint8 3 h w -> PNG."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from imgtok.atomic import write_bytes

# Named, so that a file from anywhere never reaches those of Pillow's readers that start other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class UnreadableImage(ValueError):
    """A file that is no picture, is damaged, or is too large to decode; the message names the file and the reason."""


def read_picture(path: Path) -> Tensor:
    """The picture in a file: uint8 3 h w, RGB, turned upright by its EXIF tag, composed on white, first frame.

    Grey of 16 bits is scaled to 8 (1/257). Grey of 32 bits or floating point does not say its range: it is taken as
    the smallest of [0, 1] (floating point only), [0, 255] and [0, 65535] that holds the picture's maximum, or else as
    [0, maximum]. Colour profiles are not applied.
    Raises UnreadableImage.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            _turn_upright(image)
            return from_pillow(_to_rgb(image))
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise UnreadableImage(f"{path}: {_reason(path, error)}") from error


def header_fault(path: Path) -> str | None:
    """Why the file cannot be opened as a picture; None if it can. Reads the header only."""
    try:
        with Image.open(path, formats=FORMATS):
            return None
    except Exception as error:  # as in read_picture
        return _reason(path, error)


def save_png(path: str | Path, image: Tensor) -> None:
    """Write image (uint8 3 h w) as PNG; the file appears complete or not at all. Raises ValueError as `png_bytes`."""
    write_bytes(path, png_bytes(image))


def png_bytes(image: Tensor) -> bytes:
    """The PNG file of image (uint8 3 h w). Raises ValueError for other tensors."""
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, format="PNG")
    return buffer.getvalue()


def grid(images: Tensor, columns: int, padding: int = 2, background: int = 255) -> Tensor:
    """Images (uint8 n 3 h w) in rows of `columns`, `padding` pixels between and around them: uint8 3 H W.

    Fewer images than columns make one narrower row; places left over in the last row show the background.
    Raises ValueError for other tensors, for no images, and for columns < 1 or padding < 0.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, expected torch.uint8 [n >= 1, 3, h, w]")
    if columns < 1 or padding < 0:
        raise ValueError(f"columns {columns} and padding {padding} must be at least 1 and 0")
    n, c, h, w = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    cells = images.new_full((rows * columns, c, h + padding, w + padding), background)
    cells[:n, :, padding:, padding:] = images
    cells = cells.reshape(rows, columns, c, h + padding, w + padding).permute(2, 0, 3, 1, 4)
    sheet = cells.reshape(c, rows * (h + padding), columns * (w + padding))
    return torch.nn.functional.pad(sheet, (0, padding, 0, padding), value=background)


def to_pillow(image: Tensor) -> Image.Image:
    """Image (uint8 3 h w) as Pillow's. Raises ValueError for other tensors."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image is {image.dtype} {list(image.shape)}, expected torch.uint8 [3, h, w]")
    return Image.fromarray(np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()))


def from_pillow(image: Image.Image) -> Tensor:
    """A Pillow image of mode RGB as uint8 3 h w."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation in place."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged metadata; the pixels are decoded by now and good
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB on white."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _to_8bit(image: Image.Image) -> Image.Image:
    """Grey of mode I;16, I or F as L. Negative values are black, values that are no number too."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    # Pillow before 11 gives 16-bit PNG the mode I.
    is_16bit = image.mode.startswith("I;16") or image.format == "PNG"
    white = 65535.0 if is_16bit else _white_level(float(values.max()), image.mode)
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))


def _white_level(peak: float, mode: str) -> float:
    """The value that means white in a grey image whose range is not known, by its largest value."""
    levels = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    return next((level for level in levels if peak <= level), peak)


def _reason(path: Path, error: Exception) -> str:
    """Why Pillow refused the file, in words that do not repeat its path."""
    if not isinstance(error, UnidentifiedImageError):
        return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if path.stat().st_size == 0:
        return "empty file"
    return f"not a picture of the formats {', '.join(FORMATS)}"
