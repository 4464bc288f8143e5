"""Where the tokens of an image lie."""

import json

import pytest
import torch

from imgtok import config as configs
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout


def test_a_grid_is_read_row_by_row():
    layout = GridLayout(2, 3)
    grid = torch.arange(6).reshape(1, 2, 3)
    assert layout.num_tokens == 6
    assert layout.latent_shape == (2, 3)
    assert layout.flatten(grid).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert layout.positions().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize("tail", [(), (4,), (4, 5)])
def test_unflatten_takes_flatten_back(tail):
    values = torch.randn(2, 3, 5, *tail, generator=torch.Generator().manual_seed(0))
    layout = GridLayout(3, 5)
    assert torch.equal(layout.unflatten(layout.flatten(values)), values)


def test_a_wrong_number_of_tokens_is_told_with_both_numbers():
    with pytest.raises(ValueError, match="7 tokens do not fill a grid of 2 x 3 = 6"):
        GridLayout(2, 3).unflatten(torch.zeros(1, 7))


SCALES = ScaleLayout(((1, 1), (1, 2), (2, 3), (2, 3)))


def test_maps_are_read_one_after_the_other_row_by_row():
    assert SCALES.group_sizes == (1, 2, 6, 6)
    assert SCALES.num_tokens == 15
    assert SCALES.latent_shape == (SCALES.height, SCALES.width) == (2, 3)
    maps = SCALES.unflatten(torch.arange(15)[None])
    assert [each.tolist() for each in maps] == [
        [[[0]]],
        [[[1, 2]]],
        [[[3, 4, 5], [6, 7, 8]]],
        [[[9, 10, 11], [12, 13, 14]]],
    ]


@pytest.mark.parametrize("tail", [(), (4,), (4, 5)])
def test_maps_are_unflattened_and_flattened_again(tail):
    values = torch.randn(2, 15, *tail, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SCALES.flatten(SCALES.unflatten(values)), values)


def test_a_wrong_number_of_tokens_for_maps_is_told():
    with pytest.raises(
        ValueError, match=r"7 tokens do not fill maps of 1 x 1, 1 x 2, 2 x 3, 2 x 3, which have 15; pass"
    ):
        SCALES.unflatten(torch.zeros(1, 7))


def test_maps_of_other_sizes_are_told():
    maps = SCALES.unflatten(torch.zeros(1, 15))
    with pytest.raises(
        ValueError, match="maps of 1 x 1, 1 x 2, 2 x 3 were given, but the stages are 1 x 1, 1 x 2, 2 x 3, 2"
    ):
        SCALES.flatten(maps[:3])
    with pytest.raises(ValueError, match="maps of 1 x 1, 2 x 1"):
        SCALES.flatten([each.transpose(1, 2) for each in maps])


@pytest.mark.parametrize("sizes", [(), ((0, 1),), ((1, 1), (2, 2), (2, 1)), ((3, 3), (2, 4))])
def test_maps_that_do_not_grow_are_refused(sizes):
    with pytest.raises(ValueError, match="none smaller than before"):
        ScaleLayout(sizes)


def test_a_sequence_is_as_it_is():
    layout, values = SequenceLayout(4), torch.arange(8).reshape(1, 4, 2)
    assert (layout.num_tokens, layout.latent_shape, layout.group_sizes) == (4, (4,), (4,))
    assert torch.equal(layout.flatten(values), values)
    assert torch.equal(layout.unflatten(values), values)
    with pytest.raises(ValueError, match=r"3 tokens were given, but an image has 4; pass layout=SequenceLayout\(3\)"):
        layout.unflatten(values[:, :3])


@pytest.mark.parametrize("layout", [GridLayout(2, 3), SequenceLayout(4), SCALES])
def test_layouts_survive_json(layout):
    written = json.loads(json.dumps(configs.to_dict(layout)))
    assert configs.from_dict((GridLayout, SequenceLayout, ScaleLayout), written) == layout
