from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from imgtok.metrics.image import psnr, ssim

SKIMAGE = {
    "uniform7": {},
    "gaussian11": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11},
}


def picture_pairs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Three smooth pictures in [-1, 1], each with its own amount of noise; the last has a flat white half."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 5, 7, generator=generator, dtype=torch.float64) * 2 - 1
    reference = torch.nn.functional.interpolate(coarse, size=(24, 31), mode="bilinear")
    amount = torch.tensor([0.02, 0.1, 0.4], dtype=torch.float64)[:, None, None, None]
    images = reference + amount * torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    images[2, :, :, :15] = reference[2, :, :, :15] = 1
    return images.clamp(-1, 1).to(dtype), reference.to(dtype)


def as_numpy(image: Tensor) -> np.ndarray:  # 3 h w in [-1, 1] -> h w 3 in [0, 1]
    return ((image + 1) / 2).permute(1, 2, 0).double().numpy()


def test_equal_pictures_have_infinite_psnr() -> None:
    images, _ = picture_pairs()
    assert torch.equal(psnr(images, images.clone()), torch.full((3,), torch.inf, dtype=torch.float64))


def test_psnr_of_a_constant_difference_is_its_closed_form() -> None:
    reference = torch.zeros(2, 3, 8, 8)
    images = torch.stack([reference[0] + 0.2, reference[1] - 0.02])  # 0.1 and 0.01 on [0, 1]
    torch.testing.assert_close(psnr(images, reference), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)


def test_psnr_equals_scikit_image_picture_by_picture() -> None:
    images, reference = picture_pairs()
    expected = [
        peak_signal_noise_ratio(as_numpy(b), as_numpy(a), data_range=1.0)
        for a, b in zip(images, reference, strict=True)
    ]
    torch.testing.assert_close(psnr(images, reference), torch.tensor(expected, dtype=torch.float64))


def test_values_outside_the_range_count_as_its_ends() -> None:
    images, reference = picture_pairs()
    beyond = torch.where(images > 0.5, images + 3, images)
    clamped = beyond.clamp(-1, 1)
    assert not torch.equal(beyond, clamped)
    assert torch.equal(psnr(beyond, reference), psnr(clamped, reference))
    assert torch.equal(ssim(reference, beyond), ssim(reference, clamped))


@pytest.mark.parametrize("window", ["uniform7", "gaussian11"])
def test_ssim_equals_scikit_image(window: str) -> None:
    images, reference = picture_pairs()
    expected = [
        structural_similarity(as_numpy(a), as_numpy(b), channel_axis=-1, data_range=1.0, **SKIMAGE[window])
        for a, b in zip(images, reference, strict=True)
    ]
    actual = ssim(images, reference, window)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("window", ["uniform7", "gaussian11"])
def test_ssim_in_float32_is_close_to_float64(window: str) -> None:
    images, reference = picture_pairs(torch.float32)
    single = ssim(images, reference, window)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), ssim(images.double(), reference.double(), window), atol=2e-5, rtol=0)


@pytest.mark.parametrize("window", ["uniform7", "gaussian11"])
def test_ssim_of_equal_pictures_is_one(window: str) -> None:
    images, _ = picture_pairs()
    torch.testing.assert_close(ssim(images, images, window), torch.ones(3, dtype=torch.float64))


def test_ssim_is_symmetric_and_falls_with_noise() -> None:
    images, reference = picture_pairs()
    value = ssim(images, reference)
    torch.testing.assert_close(value, ssim(reference, images))
    assert value[0] > value[1] + 0.05


def test_bfloat16_pictures_are_compared_in_float32() -> None:
    images, reference = picture_pairs(torch.bfloat16)
    assert torch.equal(psnr(images, reference), psnr(images.float(), reference.float()))
    assert torch.equal(ssim(images, reference), ssim(images.float(), reference.float()))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_is_not_two_equal_float_batches_is_refused(metric: Callable[..., Tensor]) -> None:
    images = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        metric(images, images[:1])
    with pytest.raises(ValueError, match="two batches b c h w"):
        metric(images[0], images[0])
    with pytest.raises(ValueError, match="uint8"):
        metric(images.to(torch.uint8), images.to(torch.uint8))


@pytest.mark.parametrize(("window", "size"), [("uniform7", 7), ("gaussian11", 11)])
def test_ssim_needs_pictures_as_large_as_its_window(window: str, size: int) -> None:
    images = torch.zeros(1, 3, size, size)
    assert ssim(images, images, window).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=f"smaller than the {size}x{size} window"):
        ssim(images[..., 1:], images[..., 1:], window)


def test_an_unknown_window_is_refused_with_the_known_ones() -> None:
    images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="'box9' is unknown; use 'uniform7' or 'gaussian11'"):
        ssim(images, images, "box9")
