"""Convolutional parts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.nn.resnet import Downsample, ResBlock, SpatialAttention, Upsample, map_norm


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_block_keeps_its_input_beside_what_it_adds():
    block, x = ResBlock(8, 8, norm_groups=4).eval(), noise(2, 8, 5, 3)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    assert torch.equal(block(x), x)


def test_a_block_that_changes_channels_projects_its_input():
    block, x = ResBlock(8, 12, norm_groups=4).eval(), noise(2, 8, 5, 3)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    torch.testing.assert_close(block(x), block.shortcut(x))
    assert block.shortcut.weight.shape == (12, 8, 1, 1)


def test_spatial_attention_follows_its_formula():
    attention, x = SpatialAttention(8, norm_groups=4).eval(), noise(2, 8, 3, 5)
    places = F.group_norm(x, 4, attention.norm.weight, attention.norm.bias, eps=1e-6).flatten(2).transpose(1, 2)
    q, k, v = (places @ attention.qkv.weight[:, :, 0, 0].T + attention.qkv.bias).split(8, dim=-1)
    out = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
    out = out @ attention.proj.weight[:, :, 0, 0].T + attention.proj.bias
    torch.testing.assert_close(attention(x), x + out.transpose(1, 2).reshape(x.shape))


def test_downsampling_pads_right_and_below():
    down, x = Downsample(1, 1, "conv"), torch.zeros(1, 1, 4, 4)
    torch.nn.init.zeros_(down.conv.bias)
    torch.nn.init.ones_(down.conv.weight)
    x[0, 0, 2, 2] = 1.0  # windows begin at 0 and 2 and are three wide: the third pixel is in both
    assert down(x)[0, 0].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert down(x.flip(2, 3))[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_upsampling_repeats_the_nearest():
    up = Upsample(1, 1, "conv")
    torch.nn.init.zeros_(up.conv.bias)
    torch.nn.init.zeros_(up.conv.weight)
    up.conv.weight.data[0, 0, 1, 1] = 1.0
    assert up(torch.tensor([[[[1.0, 2.0]]]]))[0, 0].tolist() == [[1.0, 1.0, 2.0, 2.0]] * 2


def test_a_mean_is_of_two_by_two_places():
    down = Downsample(1, 1, "mean")
    assert not list(down.parameters())
    assert down(torch.arange(8.0).reshape(1, 1, 2, 4))[0, 0].tolist() == [[2.5, 4.5]]


@pytest.mark.parametrize("kind", ["conv", "shuffle"])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 10)])
def test_resolution_halves_and_doubles(kind, height, width):
    x = noise(2, 8, height, width)
    assert Downsample(8, 12, kind)(x).shape == (2, 12, height // 2, width // 2)
    assert Upsample(8, 12, kind)(x).shape == (2, 12, height * 2, width * 2)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="norm_groups 32 does not divide 48 channels"):
        map_norm(48, 32)
    assert map_norm(64, 32).eps == 1e-6


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", ["conv", "mean"])
def test_enlarging_takes_a_shorter_way_to_the_same_map_where_no_gradient_is_kept(kind, memory):
    up, x = Upsample(6, 4, kind), noise(2, 6, 3, 5).to(memory_format=memory)
    expected = up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.equal(up(x), expected)
    with torch.no_grad():
        short = up(x)
    assert not torch.equal(short, expected)  # another order of sums: this is the other way
    torch.testing.assert_close(short, expected, atol=1e-6, rtol=1e-5)
    assert short.is_contiguous(memory_format=memory)
