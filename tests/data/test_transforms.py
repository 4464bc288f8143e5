import numpy as np
import pytest
import torch
from PIL import Image

from imgtok.data import center_crop, random_crop, random_flip, random_shift, to_float, to_uint8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(1))


def ramp(h: int, w: int) -> torch.Tensor:
    """Brightness rises from left to right in channel 0, from top to bottom in channel 1."""
    x, y = torch.linspace(0, 255, w).expand(h, w), torch.linspace(0, 255, h)[:, None].expand(h, w)
    return torch.stack([x, y, torch.zeros(h, w)]).round().to(torch.uint8)


def test_uint8_to_float_and_back_is_the_identity_for_all_values():
    values = torch.arange(256, dtype=torch.uint8)
    assert to_float(values).dtype == torch.float32
    assert torch.equal(to_uint8(to_float(values)), values)


def test_float_range_is_minus_one_to_one():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-7.0, -1.0, 0.6 / 127.5 - 1, 1.0, 7.0, float("inf")])
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255, 255]


def test_to_uint8_takes_half_precision():
    values = torch.arange(0, 256, 5, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values).half()), values)


@pytest.mark.parametrize(("h", "w"), [(40, 60), (60, 40), (32, 32), (10, 15), (1, 200), (33, 32)])
def test_center_crop_gives_the_size_asked_for(h, w):
    assert center_crop(noise(3, h, w), 32).shape == (3, 32, 32)


def test_center_crop_of_an_image_of_that_size_is_the_image():
    image = noise(3, 32, 32)
    assert torch.equal(center_crop(image, 32), image)


def test_center_crop_takes_the_middle():
    image = noise(3, 32, 48)
    assert torch.equal(center_crop(image, 32), image[:, :, 8:40])


def test_center_crop_is_the_middle_of_the_scaled_image():
    image = noise(3, 70, 101)
    scaled = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((46, 32), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[:, :, 7:39]
    assert (center_crop(image, 32).int() - expected.int()).abs().max() <= 1


def test_center_crop_is_antialiased():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    assert (center_crop(stripes, 16)[:, :, 2:-2].int() - 128).abs().max() <= 2


def test_center_crop_scales_small_images_up():
    assert (center_crop(torch.full((3, 4, 6), 200, dtype=torch.uint8), 32) == 200).all()


def test_random_crop_is_decided_by_the_generator():
    image = noise(3, 50, 70)
    assert torch.equal(random_crop(image, 32, generator=seeded(3)), random_crop(image, 32, generator=seeded(3)))
    assert not torch.equal(random_crop(image, 32, generator=seeded(3)), random_crop(image, 32, generator=seeded(4)))


@pytest.mark.parametrize(("h", "w"), [(50, 70), (70, 50), (32, 32), (9, 20), (1, 1), (1, 200)])
def test_random_crop_gives_the_size_asked_for(h, w):
    generator = seeded()
    assert all(random_crop(noise(3, h, w), 32, generator=generator).shape == (3, 32, 32) for _ in range(20))


def test_random_crop_at_scale_one_of_an_image_of_that_size_is_the_image():
    image = noise(3, 32, 32)
    assert torch.equal(random_crop(image, 32, (1.0, 1.0), generator=seeded()), image)


def test_random_crop_at_scale_one_is_some_window_of_an_image_with_that_short_side():
    image, generator = noise(3, 32, 36), seeded()
    windows = [image[:, :, left : left + 32] for left in range(5)]
    found = set()
    for _ in range(60):
        crop = random_crop(image, 32, (1.0, 1.0), generator=generator)
        found.add(next(i for i, window in enumerate(windows) if torch.equal(crop, window)))
    assert found == {0, 1, 2, 3, 4}


def test_random_crop_reaches_all_edges_and_stays_within_its_scales():
    image, generator = ramp(200, 200), seeded()
    crops = torch.stack([random_crop(image, 32, (1.0, 2.0), generator=generator) for _ in range(300)]).int()
    assert crops[:, 0].amin() <= 2 and crops[:, 0].amax() >= 253
    assert crops[:, 1].amin() <= 2 and crops[:, 1].amax() >= 253
    extent = (crops[:, 0, 16, -1] - crops[:, 0, 16, 0]) / 255 * 200 / 199  # 31 / scaled side
    assert 31 / 64 - 0.02 < extent.min() < 31 / 62 and 31 / 33 < extent.max() < 31 / 32 + 0.02


def test_random_crop_takes_the_same_numbers_from_the_generator_for_every_image():
    a, b = seeded(), seeded()
    random_crop(noise(3, 90, 40), 32, generator=a)
    random_crop(noise(3, 5, 6), 16, (1.0, 1.0), generator=b)
    assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize("scale", [(0.5, 1.0), (1.5, 1.2), (float("nan"), 2.0)])
def test_random_crop_refuses_scales_below_one_and_falling_ones(scale):
    with pytest.raises(ValueError, match="scale"):
        random_crop(noise(3, 40, 40), 32, scale, generator=seeded())


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_crops_refuse_other_tensors(image):
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[3, h, w\]"):
        center_crop(image, 4)
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[3, h, w\]"):
        random_crop(image, 4, generator=seeded())


def test_crops_refuse_a_size_below_one():
    with pytest.raises(ValueError, match="size 0"):
        center_crop(noise(3, 8, 8), 0)
    with pytest.raises(ValueError, match="size 0"):
        random_crop(noise(3, 8, 8), 0, generator=seeded())


def test_random_flip_mirrors_each_image_or_leaves_it():
    images = noise(64, 3, 4, 5)
    flipped = random_flip(images, seeded())
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images.flip(-1)).all((1, 2, 3))
    assert (same ^ mirrored).all() and 16 < mirrored.sum() < 48
    assert torch.equal(flipped, random_flip(images, seeded()))


def test_random_flip_leaves_its_input_alone():
    images = noise(8, 3, 4, 5)
    before = images.clone()
    random_flip(images, seeded())
    assert torch.equal(images, before)


@pytest.mark.parametrize("max_pixels", [1, 3, 9])
def test_random_shift_is_a_translation_of_each_image(max_pixels):
    images, fill = noise(40, 3, 6, 8), 7
    shifted = random_shift(images, max_pixels, seeded(), fill=fill)
    assert shifted.dtype == torch.uint8 and shifted.shape == images.shape
    for before, after in zip(images, shifted, strict=True):
        assert any(
            torch.equal(after, translated(before, dy, dx, fill))
            for dy in range(-max_pixels, max_pixels + 1)
            for dx in range(-max_pixels, max_pixels + 1)
        )


def translated(image: torch.Tensor, dy: int, dx: int, fill: int) -> torch.Tensor:
    """The plain version: copy pixel by pixel."""
    result = torch.full_like(image, fill)
    h, w = image.shape[-2:]
    for y in range(max(dy, 0), min(h + dy, h)):
        for x in range(max(dx, 0), min(w + dx, w)):
            result[:, y, x] = image[:, y - dy, x - dx]
    return result


def test_random_shift_draws_every_offset():
    images = torch.full((600, 3, 7, 7), 255, dtype=torch.uint8)
    images[:, :, 3, 3] = 0
    dots = (random_shift(images, 2, seeded())[:, 0] == 0).nonzero()
    assert len(dots) == 600
    assert {(y - 3, x - 3) for _, y, x in dots.tolist()} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_random_shift_by_nothing_is_the_identity():
    images = noise(5, 3, 6, 8)
    assert torch.equal(random_shift(images, 0, seeded()), images)


def test_random_shift_is_decided_by_the_generator():
    images = noise(16, 3, 6, 8)
    assert torch.equal(random_shift(images, 3, seeded(2)), random_shift(images, 3, seeded(2)))
    assert not torch.equal(random_shift(images, 3, seeded(2)), random_shift(images, 3, seeded(3)))


def test_random_shift_refuses_a_negative_distance():
    with pytest.raises(ValueError, match="max_pixels -1"):
        random_shift(noise(1, 3, 4, 4), -1, seeded())


def test_transforms_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    random_shift(random_flip(noise(4, 3, 40, 40), seeded()), 2, seeded())
    random_crop(noise(3, 40, 40), 32, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
def test_flip_and_shift_on_a_gpu_equal_those_on_the_cpu():
    images = noise(16, 3, 6, 8)
    for there, here in [
        (random_flip(images.cuda(), seeded()), random_flip(images, seeded())),
        (random_shift(images.cuda(), 2, seeded()), random_shift(images, 2, seeded())),
    ]:
        assert torch.equal(there.cpu(), here)
