"""How close pictures are, pixel by pixel: PSNR and SSIM, one number a picture, to be averaged over pictures."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

SSIMWindow = Literal["uniform7", "gaussian11"]


def psnr(images: Tensor, reference: Tensor) -> Tensor:  # b 3 h w twice -> b
    """Peak signal-to-noise ratio of each picture, in dB: 10 log10(1 / MSE) on [0, 1] RGB, over pixels and channels.

    Both inputs are float in [-1, 1] and are clamped to it, not rounded to grey levels. Equal pictures give inf.
    Returns float32, or float64 for float64 inputs. The field averages these values, not the errors, over pictures.
    Raises ValueError for shapes that differ or are not b c h w, and for integer pictures.
    """
    images, reference = unit_range(images, reference)
    return -10 * (images - reference).square().flatten(1).mean(1).log10()


def ssim(images: Tensor, reference: Tensor, window: SSIMWindow = "uniform7") -> Tensor:  # b 3 h w twice -> b
    """Structural similarity of each picture (Wang et al. 2004): the mean over channels and all windows inside it.

    Both inputs are float in [-1, 1], clamped to it and compared on [0, 1] (`data_range` 1, constants 0.01 and 0.03).
    `uniform7` takes a 7x7 box and unbiased variances (scikit-image's default), `gaussian11` an 11x11 Gaussian of sigma
    1.5 and plain variances (the original). Returns float32, or float64 for float64 inputs; equal pictures give 1.
    Raises ValueError as `psnr` does, for an unknown window, and for pictures smaller than the window.
    """
    taps, bessel = window_taps(window)
    if min(images.shape[-2:]) < len(taps):
        raise ValueError(f"pictures of {tuple(images.shape[-2:])} are smaller than the {len(taps)}x{len(taps)} window")
    x, y = unit_range(images, reference)
    mean_x, mean_y, xx, yy, xy = local_mean(torch.stack([x, y, x * x, y * y, x * y]), taps)
    variances = bessel * (xx - mean_x.square() + yy - mean_y.square())
    covariance = bessel * (xy - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x.square() + mean_y.square() + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variances + 0.03**2)
    return (luminance * structure).flatten(1).mean(1)


def unit_range(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both pictures from [-1, 1] to [0, 1], clamped, in float32 or better; ValueError for what is not two batches."""
    if images.shape != reference.shape or images.ndim != 4:
        raise ValueError(f"expected two batches b c h w, got {tuple(images.shape)} and {tuple(reference.shape)}")
    if not (images.is_floating_point() and reference.is_floating_point()):
        raise ValueError(f"expected float pictures in [-1, 1], got {images.dtype} and {reference.dtype}")
    dtype = torch.promote_types(torch.promote_types(images.dtype, reference.dtype), torch.float32)
    return (images.to(dtype).clamp(-1, 1) + 1) / 2, (reference.to(dtype).clamp(-1, 1) + 1) / 2


def window_taps(window: SSIMWindow) -> tuple[list[float], float]:
    """The window along one axis, summing to 1, and the factor that its variances get (n / (n - 1) if unbiased)."""
    if window == "uniform7":
        return [1 / 7] * 7, 49 / 48
    if window == "gaussian11":
        taps = [math.exp(-0.5 * (i / 1.5) ** 2) for i in range(-5, 6)]
        return [tap / sum(taps) for tap in taps], 1.0
    raise ValueError(f"window {window!r} is unknown; use 'uniform7' or 'gaussian11'")


def local_mean(x: Tensor, taps: Sequence[float]) -> Tensor:  # ... h w -> ... h-k+1 w-k+1
    """Weighted mean over each k x k window that lies inside the picture.

    Shifted sums in place of a convolution: TF32 and autocast would change a convolution's digits, and the variances are
    differences of nearly equal numbers.
    """
    for axis in (-2, -1):
        size = x.shape[axis] - len(taps) + 1
        x = sum((tap * x.narrow(axis, i, size) for i, tap in enumerate(taps)), start=x.new_zeros(()))
    return x
