"""Nested dropout: lengths by the stated law, for a batch or for each image, drawn from the global generator."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imgtok.nn.nested import NestedDropout


def drawn(nested: NestedDropout, batch: int, total: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nested.draw(batch, total)


def assert_shares(lengths: Tensor, shares: dict[int, float]) -> None:
    """Each length within 5 standard deviations of its share, and no other."""
    count = len(lengths)
    assert set(lengths.unique().tolist()) <= set(shares)
    for length, share in shares.items():
        assert abs(int((lengths == length).sum()) - count * share) <= 5 * (count * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("nested", "lengths"),
    [
        (NestedDropout(), (1, 2, 3, 4, 5, 6)),
        (NestedDropout(least=4), (4, 5, 6)),
        (NestedDropout(law="powers"), (1, 2, 4, 6)),
        (NestedDropout(law="powers", least=3), (3, 6)),
        (NestedDropout(law="powers", least=6), (6,)),
    ],
)
def test_lengths_are_those_of_the_law_alike(nested, lengths):
    assert nested.lengths(6) == lengths
    draws = drawn(replace(nested, per="image"), 4000, 6)
    assert_shares(draws, {length: 1 / len(lengths) for length in lengths})


def test_powers_of_two_end_at_all():
    assert NestedDropout(law="powers").lengths(64) == (1, 2, 4, 8, 16, 32, 64)
    assert NestedDropout(law="powers").lengths(1) == (1,)


def test_a_share_of_the_draws_is_by_the_law_and_the_others_keep_all():
    draws = drawn(NestedDropout(law="powers", per="image", share=0.5), 4000, 4)
    assert_shares(draws, {1: 1 / 6, 2: 1 / 6, 4: 2 / 3})


def test_a_batch_has_one_length_and_images_have_their_own():
    assert len(drawn(NestedDropout(per="batch"), 64, 32).unique()) == 1
    assert len(drawn(NestedDropout(per="image"), 64, 32).unique()) > 8


def test_lengths_of_batches_are_by_the_law_too():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nested = NestedDropout(share=0.5)
        draws = torch.cat([nested.draw(3, 2)[:1] for _ in range(2000)])
    assert_shares(draws, {1: 0.25, 2: 0.75})


def test_the_global_generator_decides():
    first, again = drawn(NestedDropout(per="image"), 32, 16), drawn(NestedDropout(per="image"), 32, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, NestedDropout(per="image").draw(32, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"share": 0.0}, "share must be above 0"), ({"share": 1.5}, "share must be"), ({"least": 0}, "least must be at")],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NestedDropout(**change)


def test_too_few_tokens_are_told():
    with pytest.raises(ValueError, match="at least 8 tokens are to be kept, but an image has only 6"):
        NestedDropout(least=8).draw(2, 6)
