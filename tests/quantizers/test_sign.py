"""Sign codes: the nearest corner of the cube, its neighbours, and an entropy that needs no list of codes."""

import pytest
import torch
from torch import Tensor

from imgtok.config import from_dict, to_dict
from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.sign import SignConfig, SignQuantizer
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.tokens import GridLayout, SequenceLayout

from ..tiny import CNN

BITS = 6
KINDS = {
    "spherical": SignConfig(bits=BITS),
    "lookup-free": SignConfig(bits=BITS, unit=False, l2_norm=False),
    "stage": SignConfig(bits=BITS, l2_norm=False, entropy_temperature=0.3),
}
each = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
STAGES = ResidualConfig(
    stage=SignConfig(bits=BITS, l2_norm=False), view=ScalesConfig(scales=(1, 2, 4), blends=2), unit=True
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everything(quantizer: SignQuantizer) -> Tensor:
    """All codes, in order."""
    return quantizer.codes(torch.arange(quantizer.codebook_size))


@each
def test_every_code_is_its_own(config: SignConfig) -> None:
    quantizer = config.build()
    codes = everything(quantizer)
    assert codes.unique(dim=0).shape == (2**BITS, BITS)
    assert torch.equal(quantizer.nearest(3 * codes), torch.arange(2**BITS))
    length = 1.0 if config.unit else BITS**0.5
    torch.testing.assert_close(codes.norm(dim=-1), torch.full((2**BITS,), length))


def test_the_first_number_counts_least() -> None:
    codes = everything(SignConfig(bits=3, unit=False).build())
    assert codes[:4].tolist() == [[-1, -1, -1], [1, -1, -1], [-1, 1, -1], [1, 1, -1]]


@each
def test_the_nearest_of_all_codes_is_taken(config: SignConfig) -> None:
    quantizer, z = config.build(), noise(3, 40, BITS)
    away = torch.cdist(quantizer.normalize(z).flatten(0, 1), everything(quantizer))
    assert torch.equal(quantizer.nearest(z).flatten(), away.argmin(-1))
    result = quantizer(z)
    torch.testing.assert_close(result.latents, quantizer.codes(result.indices))


@each
def test_neighbours_are_those_of_all_codes_compared(config: SignConfig) -> None:
    quantizer, z = config.build(), noise(3, 20, BITS)
    away = torch.cdist(quantizer.normalize(z).flatten(0, 1), everything(quantizer))
    for count in (1, 2, 7, 2**BITS):
        found = quantizer.neighbours(z, count).flatten(0, 1)
        torch.testing.assert_close(away.gather(1, found), away.topk(count, largest=False).values)
        assert all(len(set(row)) == count for row in found.tolist())
    assert torch.equal(quantizer.neighbours(z, 5)[..., 0], quantizer.nearest(z))


def test_neighbours_among_millions_cost_little() -> None:
    """2 ** 24 codes cannot be compared; the nearest but one differs in the smallest number alone."""
    quantizer, z = SignConfig(bits=24).build(), noise(4, 24)
    found = quantizer.neighbours(z, 100)
    assert torch.equal(found[:, 0] ^ found[:, 1], 2 ** z.abs().argmin(-1))


@each
def test_the_gradient_passes_the_signs(config: SignConfig) -> None:
    quantizer, z, probe = config.build(), noise(2, 5, BITS).requires_grad_(), noise(2, 5, BITS, seed=1)
    (given,) = torch.autograd.grad((quantizer(z).latents * probe).sum(), z)
    (expected,) = torch.autograd.grad((quantizer.normalize(z) * probe).sum(), z)
    assert torch.equal(given, expected) and given.abs().sum() > 0


def test_commitment_is_the_distance_to_the_code_in_training_alone() -> None:
    quantizer = SignConfig(bits=2, unit=False, l2_norm=False).build()
    z = torch.tensor([[[0.5, -3.0]]])
    assert quantizer.train()(z).losses["commitment"].item() == pytest.approx((0.5**2 + 2**2) / 2)
    assert quantizer.eval()(z).losses == {}


def entropy(probs: Tensor) -> Tensor:
    return -(probs * probs.clamp_min(1e-12).log()).sum(-1)


@each
def test_the_entropy_needs_no_list_of_codes(config: SignConfig) -> None:
    """Against the softmax over all of them: sure to the digit, and never above the truth where it bounds."""
    quantizer, z = config.build(), noise(500, BITS)
    away = torch.cdist(quantizer.normalize(z), everything(quantizer)).square()
    probs = (-away / config.entropy_temperature).softmax(-1)
    one = quantizer.entropy_loss(z[:1])  # of a single latent the two terms cancel, but for the 1e-5
    assert one.item() == pytest.approx(0, abs=1e-3)
    bits = (everything(quantizer) > 0).float()
    by_bit = (probs @ bits).mean(0)
    expected = entropy(probs).mean() - entropy(torch.stack([by_bit, 1 - by_bit], dim=-1)).sum()
    torch.testing.assert_close(quantizer.entropy_loss(z), expected, atol=1e-3, rtol=1e-4)
    assert quantizer.entropy_loss(z) < entropy(probs).mean() - entropy(probs.mean(0)) + 1e-3


def test_the_entropy_agrees_with_that_of_a_codebook_of_these_codes() -> None:
    """Where bits are independent in the mean too: every pattern of signs equally often."""
    config = SignConfig(bits=4, l2_norm=False, entropy_temperature=0.5)
    signs = config.build()
    listed = VectorConfig(codebook_size=16, codebook_dim=4, l2_norm=False, entropy_temperature=0.5).build()
    listed.embedding.weight.data = everything(signs)
    z = everything(signs) * torch.tensor([0.2, 1.0, 0.5, 0.7])
    torch.testing.assert_close(signs.entropy_loss(z), listed.entropy_loss(z), atol=1e-3, rtol=0)


def test_the_entropy_loss_is_least_where_latents_are_sure_and_differ() -> None:
    quantizer = SignConfig(bits=4, unit=False, l2_norm=False).build()
    codes = everything(quantizer)
    both, unsure, same = codes * 3, codes * 0.01, codes[:1].expand(16, -1) * 3
    losses = [quantizer.entropy_loss(z).item() for z in (both, unsure, same)]
    assert losses[0] < losses[1] - 1 and losses[0] < losses[2] - 1


def test_half_precision_latents_are_quantised_in_float32() -> None:
    quantizer, z = SignConfig().build(), noise(2, 9, 18).bfloat16()
    assert quantizer(z).latents.dtype == torch.float32
    assert torch.equal(quantizer.nearest(z), quantizer.nearest(z.float()))


def test_sizes_layouts_and_use() -> None:
    config = SignConfig(bits=3)
    assert (config.codebook_size, config.codebook_dim, config.latent_dim, config.index_shape) == (8, 3, 3, ())
    assert config.layout_of(2, 4) == GridLayout(2, 4) and config.layout_of(7) == SequenceLayout(7)
    quantizer = config.build()
    indices = torch.tensor([[0, 0, 5, 5]])
    numbers = quantizer.upkeep().update(quantizer, noise(1, 4, 3), indices, torch.Generator())
    assert {name: value.item() for name, value in numbers.items()} == {
        "codes_used": 2,
        "perplexity": pytest.approx(2),
        "reseeded": 0,
    }


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"from 1 to 24, got 36; more go side by side"):
        SignConfig(bits=36)
    with pytest.raises(ValueError, match=r"entropy_temperature must be above 0, got 0\.0"):
        SignConfig(entropy_temperature=0.0)
    with pytest.raises(ValueError, match="l2_norm must be off"):
        ResidualConfig(stage=SignConfig(), view=STAGES.view)


def test_stages_of_signs_come_closer_and_closer() -> None:
    """Rests of unit latents, signs of length 1 that blends shorten: each stage but the first needs no other length."""
    quantizer, z = STAGES.build().train(), noise(3, 4, 4, BITS)
    result = quantizer(z)
    assert set(result.losses) == {"commitment", "blend"}  # there are no codes to move
    unit = torch.nn.functional.normalize(z, dim=-1)
    torch.testing.assert_close(quantizer.normalize(z), unit)
    torch.testing.assert_close(result.losses["blend"], result.losses["commitment"])
    torch.testing.assert_close(quantizer.nearest(z), quantizer.nearest(7 * z))  # only directions matter
    torch.testing.assert_close(quantizer.codes(quantizer.nearest(z)), result.latents)
    numbers = quantizer.upkeep().update(quantizer, z, result.indices, torch.Generator())
    assert numbers["reseeded"] == 0 and numbers["codes_used"] > 1
    assert quantizer.entropy_loss(z).isfinite()


def test_without_any_parameter_there_are_still_codes() -> None:
    config = ResidualConfig(stage=STAGES.stage, view=ScalesConfig(scales=(1, 2, 4), blends=0))
    quantizer, z = config.build(), noise(3, 4, 4, BITS)
    assert not list(quantizer.parameters())
    maps, layout = quantizer.nearest(z), config.layout_of(4, 4)
    assert quantizer.codes(maps).shape == z.shape
    assert quantizer.inputs(layout.flatten(maps), layout).shape == (3, 4 + 16, BITS)


@pytest.mark.parametrize("branch", [SignConfig(bits=BITS), STAGES], ids=["signs", "stages"])
def test_a_tokenizer_of_signs_side_by_side(branch: SignConfig | ResidualConfig) -> None:
    """Encodes to bits and decodes these; its configuration survives being written."""
    config = TokenizerConfig(image_size=16, backbone=CNN, quantizer=ProductConfig(branch=branch))
    assert from_dict(TokenizerConfig, to_dict(config)) == config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = config.build().eval()
    indices = tokenizer.encode(noise(2, 3, 16, 16).clamp(-1, 1))
    assert indices.shape[-1] == 2 and 0 <= indices.min() and indices.max() < 2**BITS
    assert tokenizer.decode(indices).shape == (2, 3, 16, 16)
