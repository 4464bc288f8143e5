import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgtok.data import UnreadableImage, grid, png_bytes, read_picture, save_png

ORIENTATION = 0x0112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels(path: Path) -> list[tuple[int, ...]]:
    """The pixels of the first row."""
    image = read_picture(path)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    return [tuple(pixel) for pixel in image[:, 0].T.tolist()]


# Modes


def test_rgb_is_read_as_it_is(tmp_path):
    image = noise(3, 5, 7)
    path = saved(tmp_path, Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert torch.equal(read_picture(path), image)


def test_grey_becomes_three_equal_channels(tmp_path):
    values = np.arange(256, dtype=np.uint8)[None]
    assert pixels(saved(tmp_path, Image.fromarray(values))) == [(i, i, i) for i in range(256)]


def test_black_and_white_is_read(tmp_path):
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(saved(tmp_path, image)) == [(0, 0, 0), WHITE]


def test_alpha_is_composed_on_white(tmp_path):
    values = np.array([[[0, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    assert pixels(saved(tmp_path, Image.fromarray(values))) == [WHITE, RED, (204, 204, 204)]


def test_grey_with_alpha_is_composed_on_white(tmp_path):
    values = np.array([[[0, 0], [100, 255], [0, 51]]], dtype=np.uint8)
    image = Image.fromarray(values)
    assert image.mode == "LA"
    assert pixels(saved(tmp_path, image)) == [WHITE, (100, 100, 100), (204, 204, 204)]


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    for x in range(3):
        image.putpixel((x, 0), x)
    return image


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.bmp", "a.tif"])
def test_a_palette_is_resolved(tmp_path, name):
    assert pixels(saved(tmp_path, palette_image(), name)) == [RED, GREEN, BLUE]


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_transparent_palette_colour_becomes_white(tmp_path, name):
    assert pixels(saved(tmp_path, palette_image(), name, transparency=1)) == [RED, WHITE, BLUE]


def test_a_palette_with_an_alpha_per_colour_is_composed_on_white(tmp_path):
    path = saved(tmp_path, palette_image(), transparency=bytes([255, 0, 51]))
    assert pixels(path) == [RED, WHITE, (204, 204, 255)]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", RED), ("L", 7)])
def test_a_transparent_colour_without_palette_becomes_white(tmp_path, mode, colour):
    image = Image.new(mode, (2, 1), colour)
    image.putpixel((1, 0), 0)
    assert pixels(saved(tmp_path, image, transparency=colour)) == [WHITE, (0, 0, 0)]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_is_divided_by_257(tmp_path, name):
    image = Image.fromarray(np.array([[0, 257, 128, 129, 51400, 65535]], dtype=np.uint16))
    assert image.mode == "I;16"
    assert [p[0] for p in pixels(saved(tmp_path, image, name))] == [0, 1, 0, 1, 200, 255]


def test_dark_grey_of_16_bits_stays_dark(tmp_path):
    assert pixels(saved(tmp_path, Image.fromarray(np.full((1, 1), 255, dtype=np.uint16)))) == [(1, 1, 1)]


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
def test_either_byte_order_of_16_bits_is_read(tmp_path, dtype):
    image = Image.fromarray(np.array([[0, 51400, 65535]], dtype=dtype))
    assert [p[0] for p in pixels(saved(tmp_path, image, "a.tif"))] == [0, 200, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25700, 51400], [0, 100, 200]),
        ([0, 500_000, 1_000_000], [0, 128, 255]),
        ([-5, 0, 255], [0, 0, 255]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_grey_of_32_bits_is_scaled_by_the_smallest_range_that_holds_it(tmp_path, values, expected):
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert image.mode == "I"
    assert [p[0] for p in pixels(saved(tmp_path, image, "a.tif"))] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 100.4, 200.0], [0, 100, 200]),
        ([0.0, 25700.0, 51400.0], [0, 100, 200]),
        ([0.0, 5e5, 1e6], [0, 128, 255]),
        ([-1.0, float("nan"), 1.0], [0, 0, 255]),
    ],
)
def test_grey_of_floating_point_is_scaled_by_the_smallest_range_that_holds_it(tmp_path, values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert image.mode == "F"
    assert [p[0] for p in pixels(saved(tmp_path, image, "a.tif"))] == expected


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_read(tmp_path, name):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixels(saved(tmp_path, image, name))[0]
    assert red > 230 and green < 30 and blue < 30


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    for name, options in [("a.gif", {}), ("a.webp", {"lossless": True}), ("b.png", {}), ("a.tif", {})]:
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert pixels(path)[0] == RED, name


def test_of_a_jpeg_with_several_pictures_the_first_is_read(tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE))
    path = saved(tmp_path, first, "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert pixels(path)[0][0] > 250


# EXIF


def quadrants() -> Image.Image:
    """Red, green over blue, white; 32 wide, 16 high."""
    image = Image.new("RGB", (32, 16), WHITE)
    for colour, corner in [(RED, (0, 0)), (GREEN, (16, 0)), (BLUE, (0, 8))]:
        image.paste(colour, (*corner, corner[0] + 16, corner[1] + 8))
    return image


# Orientation n -> how a viewer must turn what is stored, by the EXIF standard
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied(tmp_path, name, orientation):
    turn = STORED[orientation]
    stored = quadrants() if turn is None else quadrants().transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = read_picture(saved(tmp_path, stored, name, exif=exif))
    assert image.shape == (3, 16, 32)
    for colour, (y, x) in [(RED, (4, 8)), (GREEN, (4, 24)), (BLUE, (12, 8)), (WHITE, (12, 24))]:
        assert (image[:, y, x].int() - torch.tensor(colour)).abs().max() < 12


def test_an_exif_orientation_of_16_bit_grey_is_applied(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = saved(tmp_path, Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)), exif=exif)
    assert read_picture(path)[0].tolist() == [[0], [255]]


def test_damaged_exif_does_not_spoil_the_picture(tmp_path):
    path = saved(tmp_path, quadrants(), "a.jpg", exif=b"Exif\x00\x00no tags here")
    assert read_picture(path).shape == (3, 16, 32)


# Damage


def test_a_truncated_jpeg_is_unreadable_with_file_and_reason(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(64, 64, 3).numpy()), "cut.jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match=rf"{re.escape(str(path))}: .*truncated"):
        read_picture(path)


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty file"), (b"just a text", "not a picture")])
def test_a_file_that_is_no_picture_is_unreadable_with_the_reason(tmp_path, data, reason):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UnreadableImage, match=rf"a\.png: {reason}"):
        read_picture(tmp_path / "a.png")


def test_an_unreadable_image_is_a_value_error():
    assert issubclass(UnreadableImage, ValueError)


# PNG


def test_a_saved_picture_is_read_back_exactly(tmp_path):
    image = noise(3, 9, 5)
    save_png(tmp_path / "a.png", image)
    assert torch.equal(read_picture(tmp_path / "a.png"), image)


def test_png_bytes_are_what_save_writes(tmp_path):
    image = noise(3, 9, 5)
    save_png(tmp_path / "a.png", image)
    assert (tmp_path / "a.png").read_bytes() == png_bytes(image)
    assert Image.open(io.BytesIO(png_bytes(image))).size == (5, 9)


def test_saving_replaces_an_older_file_and_leaves_nothing_else(tmp_path):
    save_png(tmp_path / "a.png", noise(3, 4, 4))
    save_png(str(tmp_path / "a.png"), noise(3, 5, 5))
    assert read_picture(tmp_path / "a.png").shape == (3, 5, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    def fail(*_: object) -> None:
        raise OSError("no space left")

    old = noise(3, 4, 4)
    save_png(tmp_path / "a.png", old)
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="no space left"):
        save_png(tmp_path / "a.png", noise(3, 5, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert torch.equal(read_picture(tmp_path / "a.png"), old)


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_a_saved_picture_has_the_permissions_of_any_new_file(tmp_path):
    save_png(tmp_path / "a.png", noise(3, 4, 4))
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("image", [torch.zeros(3, 4, 4), noise(4, 4, 3), noise(1, 3, 4, 4)])
def test_saving_refuses_other_tensors_and_writes_nothing(tmp_path, image):
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[3, h, w\]"):
        save_png(tmp_path / "a.png", image)
    assert not list(tmp_path.iterdir())


# Grid


def test_grid_puts_images_in_rows_with_padding_between_and_around():
    images = noise(5, 3, 4, 6)
    sheet = grid(images, columns=3, padding=2, background=9)
    assert sheet.dtype == torch.uint8 and sheet.shape == (3, 2 + 2 * (4 + 2), 2 + 3 * (6 + 2))
    rest = torch.ones(sheet.shape[1:], dtype=torch.bool)
    for i, image in enumerate(images):
        y, x = 2 + i // 3 * 6, 2 + i % 3 * 8
        assert torch.equal(sheet[:, y : y + 4, x : x + 6], image)
        rest[y : y + 4, x : x + 6] = False
    assert (sheet[:, rest] == 9).all()


def test_grid_without_padding_is_the_images_side_by_side():
    images = noise(4, 3, 2, 2)
    sheet = grid(images, columns=2, padding=0)
    assert torch.equal(sheet, torch.cat([torch.cat([*images[:2]], -1), torch.cat([*images[2:]], -1)], -2))


def test_grid_of_fewer_images_than_columns_is_one_narrow_row():
    assert grid(noise(2, 3, 4, 4), columns=8, padding=1).shape == (3, 6, 11)


@pytest.mark.parametrize(
    ("images", "columns", "padding", "message"),
    [
        (noise(0, 3, 4, 4), 2, 2, "n >= 1"),
        (torch.zeros(1, 3, 4, 4), 2, 2, "torch.float32"),
        (noise(1, 3, 4, 4), 0, 2, "columns 0"),
        (noise(1, 3, 4, 4), 1, -1, "padding -1"),
    ],
)
def test_grid_refuses_what_it_cannot_lay_out(images, columns, padding, message):
    with pytest.raises(ValueError, match=message):
        grid(images, columns, padding)
