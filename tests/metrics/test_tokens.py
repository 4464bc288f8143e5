import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imgtok.metrics.tokens import CodeCounts, code_usage, entropy_bits, perplexity


def test_usage_is_the_share_of_codes_chosen_at_least_once() -> None:
    assert code_usage(torch.tensor([5, 0, 1, 0])) == 0.5
    assert code_usage(torch.tensor([0, 0, 0])) == 0.0
    assert code_usage(torch.tensor([1, 200, 3])) == 1.0


def test_equally_used_codes_have_the_entropy_of_the_codebook() -> None:
    counts = torch.full((512,), 7)
    assert entropy_bits(counts) == pytest.approx(9, abs=1e-12)
    assert perplexity(counts) == pytest.approx(512, abs=1e-9)


def test_a_single_code_has_no_entropy() -> None:
    counts = torch.tensor([0, 0, 41, 0])
    assert entropy_bits(counts) == 0
    assert perplexity(counts) == 1


def test_entropy_of_quarters_and_halves_is_exact() -> None:
    assert entropy_bits(torch.tensor([1, 0, 1, 2])) == pytest.approx(1.5, abs=1e-12)
    assert perplexity(torch.tensor([1, 0, 1, 2])) == pytest.approx(2**1.5, abs=1e-12)


def test_counts_beyond_the_precision_of_float32_are_told_apart() -> None:
    assert entropy_bits(torch.tensor([2**26, 1])) == pytest.approx(4.0890e-7, rel=1e-4)


def test_no_choice_at_all_has_no_entropy() -> None:
    with pytest.raises(ValueError, match="counts are all zero"):
        entropy_bits(torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("function", [code_usage, entropy_bits, perplexity])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.tensor([0.5, 0.5]), "must be integers"),
        (torch.tensor([True, False]), "must be integers"),
        (torch.ones(2, 2, dtype=torch.int64), "codebook_size"),
        (torch.ones(0, dtype=torch.int64), "codebook_size"),
        (torch.tensor([3, -1]), "must not be negative, got -1"),
    ],
)
def test_what_is_not_counts_is_refused(function: Callable[[Tensor], float], counts: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(counts)


def test_groups_are_counted_apart_and_together() -> None:
    counts = CodeCounts(8, group_sizes=(1, 4))
    counts.update(torch.tensor([[7, 0, 1, 2, 3]]))
    counts.update(torch.tensor([[7, 0, 1, 2, 3], [7, 3, 2, 1, 0]]))
    ((coarse, fine),) = counts.use_by_group()
    assert coarse == (1, 1 / 8, 0, 1)
    assert fine == pytest.approx((4, 1 / 2, 2, 4))
    (whole,) = counts.use()
    assert (whole.codes, whole.usage) == (5, 5 / 8)
    assert whole.entropy == pytest.approx(math.log2(5))  # three of each


def test_codebooks_side_by_side_are_counted_apart() -> None:
    counts = CodeCounts(4, group_sizes=(2,), codebooks=2)
    counts.update(torch.tensor([[[0, 3], [1, 3]]]))
    first, second = counts.use()
    assert first == (2, 0.5, 1, 2) and second == (1, 0.25, 0, 1)
    with pytest.raises(ValueError, match=r"\(1, 2\), expected b x 2 x 2"):
        counts.update(torch.tensor([[0, 3]]))


def test_indices_that_do_not_fit_are_refused() -> None:
    counts = CodeCounts(8, group_sizes=(1, 4))
    with pytest.raises(ValueError, match=r"\(1, 4\), expected b x 5"):
        counts.update(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="indices -1 to 8 leave the codebook of 8"):
        counts.update(torch.tensor([[0, -1, 8, 0, 0]]))
