"""Pictures that the page holds: whole sheets, or cut out of them; as PNG, or where they are too large as JPEG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from einops import rearrange
from PIL import Image
from torch import Tensor

from imgtok.data import UnreadableImage, png_bytes, read_picture
from imgtok.data.pictures import to_pillow

PADDING = 2  # of the sheets that imgtok.data.grid lays out
PAGE_WIDTH = 1100  # in pixels, of what the page shows
QUALITIES = (92, 80, 65)  # of JPEG, tried in turn
LEAST_SIDE = 64  # pixels of a picture that is shrunk to fit
LEAST_ROOM = 8_000  # bytes for a picture worth showing
MOST_PREVIEWS = 6


def progress(folder: Path, room: int) -> str:
    """The last preview of a run, and behind a click those before it, evenly spread."""
    paths = sorted(path for path in folder.glob("step-*.png") if re.fullmatch(r"step-\d+", path.stem))
    count = min(len(paths), MOST_PREVIEWS, max(room // LEAST_ROOM, 1))
    chosen = [paths[-1 - i * len(paths) // count] for i in range(count)]
    sheets = [part for path in chosen if (part := preview(path, room // count))]
    if not sheets:
        return ""
    earlier = f"<details><summary>{len(sheets) - 1} earlier</summary>\n{''.join(sheets[1:])}\n</details>"
    return sheets[0] + (earlier if sheets[1:] else "")


def preview(path: Path, room: int) -> str:
    step = int(path.stem.removeprefix("step-"))
    return sheet_of(path, f"after step {step:,}", room, caption=True)


def sheet_of(path: Path, text: str, room: int, *, caption: bool = False, plot: bool = False) -> str:
    """A file as it is, twice as large if it fits the page; empty if it cannot be read."""
    try:
        picture = read_picture(path)
    except UnreadableImage:
        return ""
    kind = "sheet plot" if plot else "sheet"
    below = f"<figcaption>{escape(text)}</figcaption>" if caption else ""
    return (
        f'<figure class="{kind}" style="max-width:{shown_width(picture)}px">{element(picture, text, room)}{below}'
        "</figure>\n"
    )


def shown_width(picture: Tensor) -> int:
    width = picture.shape[2]
    return width * (2 if width <= PAGE_WIDTH // 2 else 1)


def captioned(pictures: Sequence[tuple[Path, str]], room: int) -> str:
    """Files as tiles with their captions; those that cannot be read are left out."""
    cells, widest = [], 1
    for path, text in pictures:
        try:
            image = read_picture(path)
        except UnreadableImage:
            continue
        cells.append(
            f"<figure>{element(image, text, room // len(pictures))}<figcaption>{escape(text)}</figcaption></figure>"
        )
        widest = max(widest, image.shape[2])
    return f'<div class="tiles"{tile_width(widest)}>{"".join(cells)}</div>' if cells else ""


def inside(folder: Path, name: str) -> Path | None:
    """The file that a list names, if it is there and does not lie elsewhere."""
    path = folder / name
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None


def element(picture: Tensor, text: str, room: int | None = None) -> str:
    """An <img> that holds its file (uint8 3 h w), in `room` bytes if there is a limit."""
    kind, data = "png", png_bytes(picture.contiguous())
    height, width = picture.shape[1:]
    if room is not None and len(data) > room:
        kind, data = "jpeg", jpeg_within(to_pillow(picture), room)
    source = f'src="data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}"'
    return f'<img {source} width="{width}" height="{height}" alt="{escape(text)}">'


def jpeg_within(picture: Image.Image, room: int) -> bytes:
    """JPEG of the best quality that fits, of half the size if none does, and so on; the least may be too large."""
    while True:
        for quality in QUALITIES:
            data = jpeg(picture, quality)
            if len(data) <= room:
                return data
        if min(picture.size) < 2 * LEAST_SIDE:
            return data
        picture = picture.reduce(2)


def jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling=0)  # optimised, noise overflows its buffer
    return buffer.getvalue()


def tiles(sheet: Tensor, size: int) -> Tensor | None:  # 3 H W -> rows columns 3 h w
    """The pictures that `imgtok.data.grid` has laid out on a sheet; None if it does not look like one."""
    pitch = size + PADDING
    if any(side < pitch or (side - PADDING) % pitch for side in sheet.shape[1:]):
        return None
    inner = sheet[:, PADDING:, PADDING:]
    cells = rearrange(inner, "c (rows h) (columns w) -> rows columns c h w", h=pitch, w=pitch)
    return cells[..., :size, :size]


def without_blanks(images: Tensor, keep: int) -> Tensor:
    """Without the white places at the end, where a sheet's last row was not full; the first `keep` are never blank."""
    number = len(images)
    while number > keep and bool((images[number - 1] == 255).all()):
        number -= 1
    return images[:number]


def tile_width(size: int) -> str:
    """The attribute that says how wide pictures are shown: small ones enlarged by a whole number."""
    return f' style="--tile:{size * max(1, 128 // size)}px"'
