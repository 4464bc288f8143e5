import pytest
import torch
from torch import Tensor

from imgtok.quantizers.perturb import Draws, draw, perturb
from imgtok.quantizers.vector import VectorConfig, VectorQuantizer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(size: int = 32, dim: int = 4, l2_norm: bool = True) -> VectorQuantizer:
    quantizer = VectorConfig(codebook_size=size, codebook_dim=dim, l2_norm=l2_norm).build()
    quantizer.embedding.weight.data = torch.randn(size, dim, generator=seeded(9))
    return quantizer


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(1))


def test_a_token_gets_the_code_of_its_rank_by_distance() -> None:
    quantizer = VectorConfig(codebook_size=4, codebook_dim=1, l2_norm=False).build()
    quantizer.embedding.weight.data = torch.tensor([[0.0], [10.0], [1.0], [4.0]])
    z = torch.tensor([[[0.9], [0.9], [0.9], [0.9]]])
    draws = Draws(torch.tensor([[0.1, 0.5, 0.3, 0.8]]), torch.tensor([[0, 1, 2, 1]]))
    found = perturb(quantizer, z, draws, rate=0.5, neighbours=3)
    assert found.clean.tolist() == [[2, 2, 2, 2]]
    assert found.indices.tolist() == [[2, 0, 3, 2]]  # ranks 0, 1, 2; the last was not drawn
    assert found.latents.flatten().tolist() == pytest.approx([1, 0, 4, 1])


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 3, 3, 4)])
def test_without_rate_share_or_other_neighbours_it_is_the_quantizer(shape: tuple[int, ...]) -> None:
    quantizer, z = made().eval(), latents(*shape)
    expected = quantizer(z)
    for rate, neighbours, share in ((0.0, 8, 1.0), (1.0, 1, 1.0), (1.0, 8, 0.0)):
        draws = draw(shape[:-1], neighbours, seeded())
        found = perturb(quantizer, z, draws, rate=rate, neighbours=neighbours, share=share)
        assert torch.equal(found.indices, expected.indices) and torch.equal(found.clean, expected.indices)
        torch.testing.assert_close(found.latents, expected.latents)


def test_as_many_tokens_change_as_promised_and_only_in_the_first_pictures() -> None:
    """rate (1 - 1 / neighbours) of 32,000 tokens: a standard error of 0.0028."""
    quantizer, z = made(), latents(50, 1000, 4)
    found = perturb(quantizer, z, draw((50, 1000), 4, seeded()), rate=0.6, neighbours=4, share=0.65)
    changed = found.indices != found.clean
    assert changed[:32].float().mean() == pytest.approx(0.6 * 3 / 4, abs=4 * 0.0028)
    assert not changed[32:].any()  # 50 * 0.65, rounded down


def test_the_gradient_reaches_the_latents_alone() -> None:
    quantizer, z = made(l2_norm=False), latents(2, 5, 4).requires_grad_()
    perturb(quantizer, z, draw((2, 5), 8, seeded()), rate=1.0, neighbours=8).latents.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z)) and quantizer.embedding.weight.grad is None


def test_draws_are_the_generators_and_even() -> None:
    one = draw((40, 1000), 5, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(one, draw((40, 1000), 5, seeded(3)), strict=True))
    shares = torch.bincount(one.rank.flatten(), minlength=5) / 40_000
    assert (shares - 0.2).abs().max() < 4 * (0.2 * 0.8 / 40_000) ** 0.5


def test_numbers_out_of_range_are_refused() -> None:
    quantizer, z = made(), latents(2, 5, 4)
    draws = draw((2, 5), 4, seeded())
    with pytest.raises(ValueError, match=r"rate 1\.5 and share 1\.0 must lie"):
        perturb(quantizer, z, draws, rate=1.5, neighbours=4)
    with pytest.raises(ValueError, match="from 1 to the codebook's 32, got 33"):
        perturb(quantizer, z, draws, rate=0.5, neighbours=33)
