from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.gaussian import GaussianConfig
from imgtok.quantizers.perturb import Draws, draw, perturbed, swap
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.quantizers.sign import SignConfig
from imgtok.quantizers.vector import VectorConfig, VectorQuantizer
from imgtok.quantizers.views import ScalesConfig

LENGTHS = VectorConfig(codebook_size=32, codebook_dim=4, l2_norm=False)
SCALES = ResidualConfig(stage=LENGTHS, view=ScalesConfig(scales=(1, 2, 3), blends=0))
SCALAR = ScalarConfig(levels=(5, 4, 3, 4))
KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "vector": (LENGTHS, (9,)),
    "unit": (VectorConfig(codebook_size=32, codebook_dim=4), (3, 3)),
    "scalar": (SCALAR, (3, 3)),
    "signs": (SignConfig(bits=5), (3, 3)),
    "residual": (SCALES, (3, 3)),
    "product": (ProductConfig(branch=LENGTHS), (9,)),
    "product of residuals": (ProductConfig(branch=SCALES), (3, 3)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(config: Any = LENGTHS) -> Any:
    """With codes apart from one another."""
    quantizer, generator = config.build(), seeded(9)
    for module in quantizer.modules():
        if isinstance(module, VectorQuantizer):
            module.embedding.weight.data = torch.randn(module.embedding.weight.shape, generator=generator)
    return quantizer


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(1))


def dice(seed: int = 0) -> Any:
    return partial(draw, generator=seeded(seed))


def test_a_token_gets_the_code_of_its_rank_by_distance() -> None:
    quantizer = VectorConfig(codebook_size=4, codebook_dim=1, l2_norm=False).build()
    quantizer.embedding.weight.data = torch.tensor([[0.0], [10.0], [1.0], [4.0]])
    z = torch.tensor([[[0.9], [0.9], [0.9], [0.9]]])
    draws = Draws(torch.tensor([[0.1, 0.5, 0.3, 0.8]]), torch.tensor([[0, 1, 2, 1]]))
    found = swap(quantizer, z, draws, rate=0.5, neighbours=3)
    assert found.clean.tolist() == [[2, 2, 2, 2]]
    assert found.indices.tolist() == [[2, 0, 3, 2]]  # ranks 0, 1, 2; the last was not drawn
    read = perturbed(quantizer, z, lambda shape, count: draws, rate=0.5, neighbours=3)
    assert read.latents.flatten().tolist() == pytest.approx([1, 0, 4, 1])
    assert read.indices.tolist() == [[2, 2, 2, 2]]


def test_neighbours_of_levels_are_those_of_all_codes_compared() -> None:
    quantizer, z = SCALAR.build(), latents(7, 5, 4) * 2
    read = quantizer.bound(z) / quantizer.halves(z)
    everything = quantizer.codes(torch.arange(quantizer.codebook_size))
    away = torch.cdist(read.flatten(0, 1), everything)
    for count in (1, 6, 40):
        found = quantizer.neighbours(z, count).flatten(0, 1)
        torch.testing.assert_close(away.gather(1, found), away.topk(count, largest=False).values)
        assert all(len(set(row)) == count for row in found.tolist())
    assert torch.equal(quantizer.neighbours(z, 3)[..., 0], quantizer.nearest(z))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_without_rate_share_or_other_neighbours_it_is_the_quantizer(kind: str, training: bool) -> None:
    config, shape = KINDS[kind]
    quantizer = made(config).train(training)
    z = latents(6, *shape, config.latent_dim)
    expected = quantizer(z)
    for rate, neighbours, share in ((0.0, 8, 1.0), (1.0, 1, 1.0), (1.0, 8, 0.0)):
        found = perturbed(quantizer, z, dice(), rate=rate, neighbours=neighbours, share=share)
        assert torch.equal(found.indices, expected.indices) and found.losses == expected.losses
        torch.testing.assert_close(found.latents, expected.latents)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_pictures_are_read_from_other_codes_and_nothing_else_changes(kind: str) -> None:
    config, shape = KINDS[kind]
    quantizer, z = made(config).train(), latents(6, *shape, config.latent_dim)
    clean, found = quantizer(z), perturbed(quantizer, z, dice(), rate=1.0, neighbours=8, share=0.5)
    changed = ((found.latents - clean.latents).abs() > 1e-3).flatten(1, -2).any(-1).float().mean(1)
    assert (changed[:3] > 0.5).all() and not changed[3:].any()
    assert torch.equal(found.indices, clean.indices) and found.losses == clean.losses
    chosen = quantizer.nearest(found.latents.detach())
    if kind in ("vector", "unit"):  # what is read are codes
        torch.testing.assert_close(quantizer.codes(chosen), found.latents)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_quantizers_and_reaches_no_codes(kind: str) -> None:
    config, shape = KINDS[kind]
    quantizer, probe = made(config), latents(4, *shape, config.codebook_dim)
    gradients = []
    for share in (0.0, 1.0):
        z = latents(4, *shape, config.latent_dim).requires_grad_()
        (perturbed(quantizer, z, dice(), rate=1.0, neighbours=8, share=share).latents * probe).sum().backward()
        gradients.append(z.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_later_stages_code_what_swaps_left_over() -> None:
    """Were it not so, errors of all stages would add up."""
    quantizer, z, layout = made(SCALES), latents(5, 3, 3, 4), SCALES.layout_of(3, 3)
    seen: list[Tensor] = []

    def second_nearest(codes: Any, vectors: Tensor) -> Tensor:
        seen.append(vectors)
        return codes.neighbours(vectors, 2)[..., 1]

    maps, total = quantizer.choose(z, second_nearest), quantizer.start(5, layout)
    for stage, indices in enumerate(maps):
        torch.testing.assert_close(seen[stage], quantizer.view.rest(z, total, stage, layout))
        total = quantizer.accumulate(total, indices, stage, layout)


def test_as_many_tokens_change_as_promised() -> None:
    """rate (1 - 1 / neighbours) of 50,000 tokens: a standard error of 0.0022."""
    found = swap(made(), latents(50, 1000, 4), draw((50, 1000), 4, seeded()), rate=0.6, neighbours=4)
    changed = found.indices != found.clean
    assert changed.float().mean() == pytest.approx(0.6 * 3 / 4, abs=4 * 0.0022)


def test_draws_are_the_generators_and_even() -> None:
    one = draw((40, 1000), 5, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(one, draw((40, 1000), 5, seeded(3)), strict=True))
    shares = torch.bincount(one.rank.flatten(), minlength=5) / 40_000
    assert (shares - 0.2).abs().max() < 4 * (0.2 * 0.8 / 40_000) ** 0.5


def test_numbers_out_of_range_are_refused() -> None:
    quantizer, z = made(), latents(2, 5, 4)
    with pytest.raises(ValueError, match=r"rate must lie between 0 and 1, got 1\.5"):
        perturbed(quantizer, z, dice(), rate=1.5, neighbours=4)
    with pytest.raises(ValueError, match=r"share must lie between 0 and 1, got -1\.0"):
        perturbed(quantizer, z, dice(), rate=0.5, neighbours=4, share=-1.0)
    with pytest.raises(ValueError, match="from 1 to the codebook's 32, got 33"):
        perturbed(quantizer, z, dice(), rate=0.5, neighbours=33)
    with pytest.raises(ValueError, match="continuous tokens are no codes"):
        perturbed(GaussianConfig(dim=2).build(), z, dice(), rate=0.5, neighbours=2)
