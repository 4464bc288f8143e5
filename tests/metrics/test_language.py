import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from imgtok.metrics.language import (
    conditional_entropy,
    growth,
    heaps,
    huffman_bits,
    huffman_saving,
    ngram_counts,
    power_law,
    zipf,
)
from imgtok.metrics.tokens import entropy_bits


def drawn(probs: Tensor, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.multinomial(probs, rows * length, replacement=True, generator=generator).view(rows, length)


def test_ngrams_stay_within_their_picture() -> None:
    tokens = torch.tensor([[1, 2, 1, 2], [9, 9, 1, 2]])
    assert ngram_counts(tokens, 1).tolist() == [3, 3, 2]
    assert ngram_counts(tokens, 2).tolist() == [3, 1, 1, 1]  # 12, then 21, 99 and 91; 2 9 is no pair
    assert ngram_counts(tokens, 4).tolist() == [1, 1]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_ngram_counts_are_those_of_a_counter_for_codes_up_to_two_to_the_eighteen(n: int) -> None:
    tokens = drawn(torch.ones(3), 40, 12) * 131071  # a number of four such digits would not fit into 64 bits
    counter = Counter(tuple(row[i : i + n]) for row in tokens.tolist() for i in range(12 - n + 1))
    assert ngram_counts(tokens, n).tolist() == sorted(counter.values(), reverse=True)


def test_zipf_finds_the_exponent_of_an_exact_law() -> None:
    counts = (1e9 / torch.arange(1, 101, dtype=torch.float64) ** 1.25).round().long()
    law = zipf(counts)
    assert law.exponent == pytest.approx(-1.25, abs=1e-4) and law.fit > 0.999999
    assert law.scale == pytest.approx(float(counts[0] / counts.sum()), rel=1e-4)
    flat_tail = torch.cat([counts, counts[-1:].repeat(400)])
    assert zipf(flat_tail, ranks=100).exponent == pytest.approx(-1.25, abs=1e-4)
    assert zipf(flat_tail).fit < 0.95


def test_growth_counts_new_types_picture_by_picture() -> None:
    found = growth(torch.tensor([[5, 5, 7], [7, 5, 5], [1, 2, 7]]))
    assert found.types.tolist() == [2, 2, 4]
    assert found.tokens.tolist() == [3, 6, 9]


@pytest.mark.parametrize("exponent", [0.5, 0.8])
def test_heaps_finds_the_exponent_of_a_vocabulary_that_grows_by_a_power(exponent: float) -> None:
    """A new type wherever n^β, rounded, reaches the next integer, and type 1 elsewhere."""
    types = (torch.arange(60_000, dtype=torch.float64) + 1).pow(exponent).round().long()
    is_new = types.diff(prepend=types.new_zeros(1)) > 0
    tokens = torch.where(is_new, types, 1).view(600, 100)
    law = heaps(tokens)
    assert law.exponent == pytest.approx(exponent, abs=0.03) and law.scale == pytest.approx(1, abs=0.1)
    assert law.fit > 0.99


def test_heaps_looks_at_growth_before_saturation() -> None:
    tokens = torch.cat([torch.arange(64), torch.arange(64).repeat(200)]).view(-1, 64)
    assert heaps(tokens).exponent == pytest.approx(1, abs=1e-6)
    assert heaps(tokens, saturated=1.0).exponent < 0.8


def test_entropies_of_a_markov_chain_are_its_closed_forms() -> None:
    """Two tokens, the next is the same with probability 3/4: H(next | previous) = h(1/4) = 0.811 bits.

    40,000 pairs: the estimate's deviation is below 0.01.
    """
    stay = torch.rand(400, 101, generator=torch.Generator().manual_seed(1)) < 0.75
    tokens = (~stay).long().cumsum(1) % 2
    quarter = -0.25 * math.log2(0.25) - 0.75 * math.log2(0.75)
    assert conditional_entropy(tokens) == pytest.approx(quarter, abs=0.03)
    assert conditional_entropy(tokens, 3) == pytest.approx(quarter, abs=0.03)
    assert entropy_bits(ngram_counts(tokens, 1)) == pytest.approx(1, abs=0.01)


def test_what_follows_from_the_last_token_has_no_entropy() -> None:
    tokens = torch.arange(6).repeat(5, 2)
    assert conditional_entropy(tokens) == pytest.approx(0, abs=0.07)  # the ends of rows are not the whole circle
    assert conditional_entropy(tokens[:, :7]) == pytest.approx(0, abs=1e-12)


def test_huffman_codes_powers_of_two_with_their_information() -> None:
    counts = torch.tensor([4, 2, 1, 1, 0])
    assert huffman_bits(counts) == 1.75
    assert huffman_saving(counts, 5) == pytest.approx(1 - 1.75 / 3)
    assert huffman_saving(torch.ones(8, dtype=torch.int64), 8) == 0


def test_huffman_lies_less_than_a_bit_above_the_entropy() -> None:
    counts = ngram_counts(drawn(torch.rand(50, generator=torch.Generator().manual_seed(2)) ** 4, 50, 100), 1)
    assert entropy_bits(counts) <= huffman_bits(counts) < entropy_bits(counts) + 1
    assert huffman_bits(torch.tensor([7])) == 0


def test_a_horizontal_line_fits_itself() -> None:
    assert power_law(torch.tensor([1.0, 2, 4]), torch.full((3,), 5.0)) == pytest.approx((0, 5, 1))


def test_what_is_no_set_of_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into rows of 3"):
        ngram_counts(torch.zeros(2, 3, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match=r"torch.float32 \(2, 3\), expected integers"):
        growth(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least 2 points, got 1"):
        power_law(torch.ones(1), torch.ones(1))
