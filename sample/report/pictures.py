"""The sections made of pictures, each cut out of its sheet and held by the page."""

from __future__ import annotations

import base64
from html import escape

from einops import rearrange
from torch import Tensor

from imgtok.data import png_bytes, read_picture, to_float
from imgtok.metrics.image import psnr
from imgtok.sample.report.formatting import section
from imgtok.sample.report.run import Run

PADDING = 2  # of the sheets that imgtok.data.grid lays out
PAGE_WIDTH = 1100  # in pixels, of what the page shows


def reconstructions(run: Run) -> str:
    path = run.folder / "pictures" / "reconstructions.png"
    if not path.is_file():
        return ""
    sheet = read_picture(path)
    cells = tiles(sheet, run)
    if cells is None or len(cells) % 2:
        return section("Reconstructions", "Originals above their reconstructions.", whole(sheet, "reconstructions"))
    before, after = (
        rearrange(rows, "rows columns c h w -> (rows columns) c h w") for rows in (cells[::2], cells[1::2])
    )
    scores = psnr(to_float(after), to_float(before)).tolist()
    pairs = [pair(*values) for values in zip(before, after, scores, strict=True)]
    text = "Pictures held back from training. Left: the original; right: painted from its tokens, with their PSNR."
    return section("Reconstructions", text, pair_grids(pairs, tile_width(before)))


def pair_grids(pairs: list[str], style: str) -> str:
    """Up to 16 at once, evenly spread; the others behind a click."""
    step = -(-len(pairs) // 16)
    visible, rest = pairs[::step], [one for number, one in enumerate(pairs) if number % step]
    first, others = (f'<div class="pairs"{style}>\n{"".join(some)}\n</div>' for some in (visible, rest))
    return first + (f"\n<details><summary>{len(rest)} more</summary>\n{others}\n</details>" if rest else "")


def pair(original: Tensor, reconstruction: Tensor, score: float) -> str:
    images = picture(original, "original") + picture(reconstruction, "reconstruction")
    return f"<figure>{images}<figcaption>{score:.1f} dB</figcaption></figure>\n"


def samples(run: Run) -> str:
    strips = "\n".join(strip(run, str(row.get("label", "")), str(row.get("file", ""))) for row in run.samples)
    law = (("guidance", "guidance"), ("temperature", "temperature"), ("top_k", "top-k"))
    known = [f"{name} {value:g}" for key, name in law if (value := run.number(f"sample.{key}")) is not None]
    text = "Drawn by the generator, category by category" + (f", with {', '.join(known)}." if known else ".")
    return section("Samples", text, strips) if strips.strip() else ""


def strip(run: Run, label: str, file: str) -> str:
    path = run.folder / "pictures" / file
    if not path.is_file():
        return ""
    return f'<div class="strip"><h3>{escape(label)}</h3>\n{strip_pictures(read_picture(path), label, run)}</div>'


def strip_pictures(sheet: Tensor, label: str, run: Run) -> str:
    cells = tiles(sheet, run)
    if cells is None:
        return whole(sheet, label)
    images = without_blanks(rearrange(cells, "rows columns c h w -> (rows columns) c h w"), keep=cells.shape[1])
    pictures = "".join(picture(image, f"{label}, sample {number}") for number, image in enumerate(images, 1))
    return f'<div class="tiles"{tile_width(images)}>{pictures}</div>'


def tiles(sheet: Tensor, run: Run) -> Tensor | None:  # 3 H W -> rows columns 3 h w
    """The pictures that `imgtok.data.grid` has laid out on a sheet; None if it does not look like one."""
    if run.tokenizer is None:
        return None
    size = run.tokenizer.image_size
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


def picture(image: Tensor, text: str) -> str:
    """An <img> that holds its file (uint8 3 h w)."""
    height, width = image.shape[1:]
    data = base64.b64encode(png_bytes(image.contiguous())).decode("ascii")
    source = f'src="data:image/png;base64,{data}"'
    return f'<img {source} width="{width}" height="{height}" alt="{escape(text)}">'


def whole(sheet: Tensor, text: str) -> str:
    """A sheet as it is, twice as large if it fits the page."""
    width = sheet.shape[2] * (2 if sheet.shape[2] <= PAGE_WIDTH // 2 else 1)
    return f'<div class="sheet" style="max-width:{width}px">{picture(sheet, text)}</div>'


def tile_width(images: Tensor) -> str:
    """The attribute that says how wide pictures are shown: small ones enlarged by a whole number."""
    size = images.shape[-1]
    return f' style="--tile:{size * max(1, 128 // size)}px"'
