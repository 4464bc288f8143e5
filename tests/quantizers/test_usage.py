"""How often codes are used."""

import torch

from imgtok.quantizers.usage import batch_perplexity, code_counts


def test_every_code_is_counted():
    assert code_counts(torch.tensor([[0, 3, 3], [1, 3, 0]]), 5).tolist() == [2, 1, 0, 3, 0]


def test_perplexity_is_the_number_of_codes_that_would_do():
    assert float(batch_perplexity(torch.tensor([5, 5, 5, 5]))) == 4.0
    assert float(batch_perplexity(torch.tensor([9, 0, 0, 0]))) == 1.0
    torch.testing.assert_close(batch_perplexity(torch.tensor([2, 1, 1])), torch.tensor(2.0**1.5))


def test_perplexity_of_nothing_is_finite():
    assert torch.isfinite(batch_perplexity(torch.zeros(4, dtype=torch.int64)))
