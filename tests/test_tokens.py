"""Where the tokens of an image lie."""

import pytest
import torch

from imgtok.tokens import GridLayout


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
