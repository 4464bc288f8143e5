"""Who may see whom, against the rule in words."""

import torch

from imgtok.nn.mask import cached, causal, group_causal, padded_causal


def test_causal_sees_itself_and_those_before():
    assert causal(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_group_sees_itself_and_those_before():
    mask = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]
    assert torch.equal(group_causal((1, 3, 2)), torch.tensor(mask, dtype=torch.bool))


def test_groups_of_one_are_causal_and_one_group_sees_all():
    assert torch.equal(group_causal([1] * 5), causal(5))
    assert group_causal([5]).tolist() == [[True] * 5] * 5


def test_padding_is_hidden_and_no_row_is_empty():
    visible = torch.tensor([[False, False, True], [True, True, True], [False, True, False]])
    mask = padded_causal(visible, 5)
    assert mask.shape == (3, 1, 5, 5)
    for b in range(3):
        for query in range(5):
            for key in range(5):
                padding = key < 3 and not visible[b, key]
                assert bool(mask[b, 0, query, key]) == (key == query or (key < query and not padding))
    assert mask.any(-1).all()


def test_a_cache_shows_what_was_written_before_and_oneself():
    visible = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
    positions = torch.tensor([[1, 2], [3, 5]])
    mask = cached(positions, visible)
    assert mask.shape == (2, 1, 2, 6)
    for b in range(2):
        for i in range(2):
            for column in range(6):
                own, before = column == positions[b, i], column < positions[b, i]
                assert bool(mask[b, 0, i, column]) == bool(own | (before & visible[b, column]))


def test_cached_rows_are_those_of_the_whole_mask():
    visible = torch.tensor([[False, True], [True, True]])
    whole = padded_causal(visible, 5)
    columns = torch.nn.functional.pad(visible, (0, 3), value=True)
    assert torch.equal(cached(torch.arange(5).expand(2, -1), columns), whole)
    assert torch.equal(cached(torch.tensor([[4], [3]]), columns), torch.stack([whole[0, :, 4:], whole[1, :, 3:4]]))
