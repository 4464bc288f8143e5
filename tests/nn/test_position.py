"""Rotary positions."""

import math

import pytest
import torch

from imgtok.nn.position import Rope, after_prefix, axial_rope, resize_table, rotate, waves_2d
from imgtok.tokens import GridLayout


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scores(q: torch.Tensor, k: torch.Tensor, rope: Rope) -> torch.Tensor:
    """n n, of one query and one key put at every position."""
    n = len(rope.cos)
    turned = [rotate(x.expand(1, n, 1, -1), rope)[0, :, 0] for x in (q, k)]
    return turned[0] @ turned[1].T


def test_the_angles_are_those_of_the_formula():
    rope = axial_rope(torch.tensor([[2, 3], [0, 5]]), head_dim=8, base=100.0)
    frequencies = torch.tensor([1.0, 100.0**-0.5])  # 100^(-2j/4)
    angles = torch.cat([torch.tensor([[2.0], [0.0]]) * frequencies, torch.tensor([[3.0], [5.0]]) * frequencies], dim=1)
    torch.testing.assert_close(rope.cos, angles.cos())
    torch.testing.assert_close(rope.sin, angles.sin())


def test_rows_and_columns_turn_separate_halves():
    rope = axial_rope(GridLayout(3, 4).positions(), head_dim=8)
    cos = rope.cos.reshape(3, 4, 4)
    assert torch.equal(cos[:, :1, :2].expand(3, 4, 2), cos[:, :, :2])
    assert torch.equal(cos[:1, :, 2:].expand(3, 4, 2), cos[:, :, 2:])


def test_scores_depend_on_the_offset_alone():
    layout = GridLayout(4, 5)
    s = scores(noise(8), noise(8, seed=1), axial_rope(layout.positions(), head_dim=8)).reshape(4, 5, 4, 5)
    torch.testing.assert_close(s[1:, 1:, 1:, 1:], s[:-1, :-1, :-1, :-1])
    assert (s[0, 0, 0, 1] - s[0, 0, 1, 0]).abs() > 1e-3  # a step right is not a step down


def test_rotation_keeps_length_and_type():
    rope, x = axial_rope(GridLayout(3, 3).positions(), head_dim=8), noise(2, 9, 4, 8)
    torch.testing.assert_close(rotate(x, rope).norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), rope).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(x.bfloat16(), rope), rotate(x.bfloat16().float(), rope).bfloat16())


def test_pairs_are_halves_apart():
    quarter_turn = Rope(torch.zeros(1, 2), torch.ones(1, 2))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    assert rotate(x, quarter_turn).flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_a_prefix_is_left_alone_or_made_zero():
    rope, x = axial_rope(GridLayout(1, 2).positions(), head_dim=4), noise(1, 5, 1, 4)
    identity, zero = (rotate(x, after_prefix(rope, 3, rotation)) for rotation in ("identity", "zero"))
    assert torch.equal(identity[:, :3], x[:, :3])
    assert not zero[:, :3].any()
    assert torch.equal(identity[:, 3:], zero[:, 3:])
    assert torch.equal(identity[:, 3:], rotate(x[:, 3:], rope))


def test_rows_may_stand_at_different_positions():
    rope, x = axial_rope(GridLayout(2, 3).positions(), head_dim=8), noise(2, 2, 3, 8)
    positions = torch.tensor([[0, 4], [5, 1]])
    turned = rotate(x, rope.at(positions))
    for b in range(2):
        for i in range(2):
            place = rope.at(positions[b, i : i + 1])
            torch.testing.assert_close(turned[b : b + 1, i : i + 1], rotate(x[b : b + 1, i : i + 1], place))


def test_a_head_width_that_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        axial_rope(GridLayout(2, 2).positions(), head_dim=6)


def test_places_in_a_sequence_turn_all_pairs():
    """RoPE, eq. 15 (arXiv:2104.09864): pair i of place n turns by n base^(-2i / d)."""
    rope = axial_rope(torch.arange(5)[:, None], head_dim=6, base=100.0)
    angles = torch.arange(5)[:, None] * 100.0 ** (-torch.arange(3) / 3)
    torch.testing.assert_close(rope.cos, angles.cos())
    torch.testing.assert_close(rope.sin, angles.sin())
    with pytest.raises(ValueError, match="1-D rotary positions need a head width divisible by 2, got 5"):
        axial_rope(torch.arange(5)[:, None], head_dim=5)


def test_a_table_of_the_right_size_is_left_alone():
    table = noise(3, 4, 5)
    assert resize_table(table, (3, 4)) is table


@pytest.mark.parametrize("size", [(6, 8), (2, 3), (5, 2)])
def test_a_resized_table_keeps_what_is_constant_and_what_is_symmetric(size):
    constant = noise(5).expand(3, 4, 5)
    torch.testing.assert_close(resize_table(constant, size), noise(5).expand(*size, 5), atol=1e-5, rtol=0)
    table = noise(3, 4, 5)
    for axis in (0, 1):
        torch.testing.assert_close(
            resize_table(table.flip(axis), size), resize_table(table, size).flip(axis), atol=1e-5, rtol=0
        )


def test_resizing_goes_with_sums_and_types():
    one, two = noise(3, 4, 5), noise(3, 4, 5).flip(0)
    torch.testing.assert_close(resize_table(one + two, (4, 6)), resize_table(one, (4, 6)) + resize_table(two, (4, 6)))
    assert resize_table(one.bfloat16(), (4, 6)).dtype == torch.bfloat16


def test_waves_of_a_place_are_of_its_row_then_its_column():
    waves = waves_2d(3, 4, 16)
    assert waves.shape == (3, 4, 16)
    frequencies = [1.0, 0.1, 0.01, 0.001]
    for row, column in ((0, 0), (2, 1), (1, 3)):
        expected = [f(place * each) for place in (row, column) for f in (math.sin, math.cos) for each in frequencies]
        torch.testing.assert_close(waves[row, column], torch.tensor(expected))
    assert torch.equal(waves_2d(5, 7, 16)[:3, :4], waves)  # places keep their vectors on larger grids
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        waves_2d(2, 2, 6)
