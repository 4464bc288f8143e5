"""Convolutions in tiles give what convolutions give, and are used for what they are for alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.nn import winograd
from imgtok.nn.winograd import WinogradConv, convolve, suits, transformed


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(channels: int, outs: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, outs, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(noise(*conv.weight.shape, seed=1) / (9 * channels) ** 0.5)
        conv.bias.copy_(noise(outs, seed=2))
    return conv


@torch.no_grad()
def error(found: Tensor, x: Tensor, conv: nn.Conv2d) -> float:
    """The largest, beside the outcome in float64 of a standard deviation of about 1.4."""
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    return (found - exact).abs().max().item()


@pytest.mark.parametrize("strip", [1, 2, 5, 128])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 12), (28, 8), (16, 16)])
def test_tiles_make_the_convolution_however_they_are_cut_into_strips(
    height: int, width: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "STRIP", strip)
    conv, x = layer(3, 5).double(), noise(1, 3, height, width).double()
    found = torch.empty(height, width, 5, dtype=torch.float64)
    with torch.no_grad():
        convolve(x[0].permute(1, 2, 0), transformed(conv.weight), conv.bias, found)
    assert error(found.permute(2, 0, 1)[None], x, conv) < 1e-12
    same = layer(3, 3).double()
    over = x[0].permute(1, 2, 0).contiguous()
    with torch.no_grad():
        convolve(over, transformed(same.weight), same.bias, over)
    assert error(over.permute(2, 0, 1)[None], x, same) < 1e-12


@torch.no_grad()
def test_large_maps_take_the_tiles_and_each_picture_is_computed_alone() -> None:
    conv = layer(128, 144)
    quick, x = WinogradConv(conv), noise(2, 128, 32, 40)
    found = quick(x)
    assert quick.filters is not None and quick.filters.shape == (36, 128, 144)
    assert found.shape == (2, 144, 32, 40)
    assert error(found, x, conv) < 1e-4
    assert torch.equal(quick(x.to(memory_format=torch.channels_last)), found) and torch.equal(quick(x[1:]), found[1:])
    assert found.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_with_as_many_channels_as_before_no_fresh_memory_is_taken() -> None:
    conv, x = layer(128, 128), noise(2, 128, 32, 32).to(memory_format=torch.channels_last)
    kept = x.clone()
    found = WinogradConv(conv)(x)
    assert found.data_ptr() == x.data_ptr()
    assert error(found, kept, conv) < 1e-4


def test_what_it_is_not_for_is_left_to_the_convolution() -> None:
    conv = layer(128, 128)
    quick = WinogradConv(conv)
    with torch.no_grad():
        for x in (noise(1, 128, 28, 28), noise(1, 128, 34, 32), noise(1, 128, 32, 32).bfloat16()):
            assert torch.equal(WinogradConv(conv.to(x.dtype))(x), conv(x))
        conv.float()
    quick(noise(1, 128, 32, 32)).sum().backward()
    assert conv.weight.grad is not None and quick.filters is None


def test_it_suits_wide_plain_convolutions_alone() -> None:
    assert suits(nn.Conv2d(128, 160, 3, padding=1))
    others = [
        nn.Conv2d(128, 96, 3, padding=1),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, bias=False),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"),
    ]
    assert not any(suits(conv) for conv in others)
