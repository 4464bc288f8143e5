"""Augmentation of what discriminators see: each part alone, even draws, gradients through all of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.train.augment import CHANCES, AugmentConfig, augmented, chances, coloured, cut, fitted, translated


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=seeded()) * 2 - 1


def test_shifts_are_whole_pixels_filled_with_grey() -> None:
    x = images(3)
    down, right = torch.tensor([0.0, 0.5, 0.999]), torch.tensor([0.5, 0.999, 0.5])
    found = translated(x, 0.125, down, right)  # 2 of 16 pixels at most: shares of five places
    assert torch.equal(found[0, :, 2:], x[0, :, :-2]) and not found[0, :, :2].any()
    assert torch.equal(found[1, :, :, :-2], x[1, :, :, 2:]) and not found[1, :, :, -2:].any()
    assert torch.equal(found[2, :, :-2], x[2, :, 2:]) and not found[2, :, -2:].any()


def test_every_shift_is_equally_likely() -> None:
    """Where the first row comes from, of 20,000 pictures: a standard error of 0.0028 of each fifth."""
    rows = torch.arange(16.0)[None, None, :, None].expand(20_000, 3, 16, 1) + 1
    dice = chances(20_000, seeded())
    shifts = translated(rows, 0.125, dice[0], dice[1])[:, 0, 8, 0] - 9
    shares = torch.stack([(shifts == shift).float().mean() for shift in range(-2, 3)])
    assert (shares - 0.2).abs().max() < 4 * 0.0028


def test_colour_changes_brightness_saturation_and_contrast() -> None:
    x, half = images(2), torch.full((2,), 0.5)
    torch.testing.assert_close(coloured(x, half, half, half), x)
    torch.testing.assert_close(coloured(x, half + 0.5, half, half), x + 0.5)
    grey = coloured(x, half, half - 0.5, half)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = coloured(x, half, half, half - 0.5)
    torch.testing.assert_close(flat.var(), x.var() / 4, rtol=0.05, atol=0)
    torch.testing.assert_close(flat.mean((1, 2, 3)), x.mean((1, 2, 3)))


def test_a_square_is_cut_out_at_the_border_a_part_of_it() -> None:
    x = torch.ones(3, 3, 10, 10)
    found = cut(x, 0.2, torch.tensor([0.0, 0.5, 0.999]), torch.tensor([0.5, 0.5, 0.999]))
    assert [int((each[0] == 0).sum()) for each in found] == [2, 4, 1]
    assert found[1, 0, 4:6, 4:6].sum() == 0 and found[0, 0, 0, 4:6].sum() == 0


def test_whole_augmentation_is_that_of_its_dice_and_lets_gradients_through() -> None:
    x, config = images().requires_grad_(), AugmentConfig()
    dice = chances(4, seeded(1))
    assert dice.shape == (CHANCES, 4)
    one = augmented(x, config, dice)
    assert torch.equal(one, augmented(x, config, dice))
    assert not torch.allclose(one, augmented(x, config, chances(4, seeded(2))))
    assert torch.equal(augmented(x[1:2], config, dice[:, 1:2]), one[1:2])  # whatever else is in the batch
    one.square().sum().backward()
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    still = AugmentConfig(translation=0.0, colour=False, cutout=0.0)
    assert torch.equal(augmented(x, still, dice), x)


def test_larger_pictures_are_cropped_half_of_the_time() -> None:
    x = images(2, size=24)
    generator = seeded()
    found = [fitted(x, 16, generator) for _ in range(400)]
    whole = F.interpolate(x, (16, 16), mode="area")
    resized = [torch.equal(each, whole) for each in found]
    assert sum(resized) == pytest.approx(200, abs=40)  # four standard errors
    places = set()
    for each in (each for each, whole in zip(found, resized, strict=True) if not whole):
        top, left = next(
            (i, j) for i in range(9) for j in range(9) if torch.equal(x[..., i : i + 16, j : j + 16], each)
        )
        places.add((top, left))
    assert {top for top, _ in places} == {left for _, left in places} == set(range(9))


def test_others_are_left_alone_or_enlarged() -> None:
    x = images(2)
    assert fitted(x, 16, seeded()) is x
    torch.testing.assert_close(fitted(x, 32, seeded()), F.interpolate(x, (32, 32), mode="bicubic"))


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"augment\.cutout must be at least 0 and below 1, got 1\.0"):
        AugmentConfig(cutout=1.0)
