"""Quantizers side by side: each codes its own channels, and together they behave like one."""

import pytest
import torch
from torch import Tensor

from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout

VECTOR = VectorConfig(codebook_size=11, codebook_dim=4)
STAGES = ResidualConfig(
    stage=VectorConfig(codebook_size=11, codebook_dim=4, l2_norm=False, distance="cosine"),
    view=ScalesConfig(scales=(1, 2, 4), blends=2),
)
both = pytest.mark.parametrize("branch", [VECTOR, STAGES], ids=["vector", "stages"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(branch, count: int = 3):
    torch.manual_seed(0)
    quantizer = ProductConfig(branch=branch, count=count).build()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return quantizer.eval()


@both
@torch.no_grad()
def test_each_branch_codes_its_own_channels(branch):
    quantizer, latents = built(branch), noise(2, 4, 4, 12)
    whole = quantizer(latents)
    for i, part in enumerate(quantizer.branches):
        alone = part(latents[..., 4 * i : 4 * i + 4])
        torch.testing.assert_close(whole.latents[..., 4 * i : 4 * i + 4], alone.latents)
        assert torch.equal(whole.indices[..., i], alone.indices)
    assert len({tuple(row) for row in whole.indices.flatten(0, -2).T.tolist()}) == 3  # three different codebooks


@both
@torch.no_grad()
def test_indices_stand_for_the_latents_that_the_decoder_reads(branch):
    quantizer, latents = built(branch), noise(2, 4, 4, 12)
    layout = quantizer.layout_of(4, 4)
    indices = layout.flatten(quantizer.nearest(latents))
    assert indices.shape == (2, layout.num_tokens, 3)
    torch.testing.assert_close(quantizer.codes(layout.unflatten(indices)), quantizer(latents).latents)


@torch.no_grad()
def test_the_first_stages_are_those_of_every_branch():
    quantizer, latents = built(STAGES, count=2), noise(1, 4, 4, 8)
    maps = quantizer.nearest(latents)
    first = quantizer.codes(maps, stages=2)
    for i, part in enumerate(quantizer.branches):
        torch.testing.assert_close(first[..., 4 * i : 4 * i + 4], part.codes([each[..., i] for each in maps], 2))


def test_the_layout_is_a_branch_s():
    assert ProductConfig(branch=VECTOR).layout_of(2, 3) == GridLayout(2, 3)
    assert ProductConfig(branch=VECTOR).layout_of(5) == SequenceLayout(5)
    assert ProductConfig(branch=STAGES).layout_of(4, 4) == ScaleLayout(((1, 1), (2, 2), (4, 4)))


def test_a_sequence_of_latents_is_coded_too():
    quantizer, latents = built(VECTOR), noise(2, 5, 12)
    assert quantizer(latents).indices.shape == (2, 5, 3)


@both
def test_losses_are_means_over_the_branches(branch):
    quantizer, latents = built(branch).train(), noise(2, 4, 4, 12)
    losses = quantizer(latents).losses
    parts = [part(latents[..., 4 * i : 4 * i + 4]).losses for i, part in enumerate(quantizer.branches)]
    assert losses.keys() == parts[0].keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, sum(part[name] for part in parts) / 3)


@both
def test_the_gradient_passes_straight_to_every_channel(branch):
    quantizer, latents = built(branch), noise(1, 4, 4, 12).requires_grad_()
    weights = noise(1, 4, 4, 12, seed=1)
    (quantizer(latents).latents * weights).sum().backward()
    assert latents.grad is not None
    assert (latents.grad.abs() > 0).all()


@torch.no_grad()
def test_what_a_next_scale_generator_reads_is_that_of_all_branches():
    quantizer = built(STAGES, count=2)
    layout = quantizer.layout_of(4, 4)
    tokens = torch.randint(11, (2, layout.num_tokens, 2), generator=torch.Generator().manual_seed(0))
    inputs = quantizer.inputs(tokens, layout)
    assert inputs.shape == (2, layout.num_tokens - 1, 8)
    torch.testing.assert_close(inputs[..., 4:], quantizer.branches[1].inputs(tokens[..., 1], layout))


@both
def test_upkeep_keeps_every_branch(branch):
    """Codes put far away are taken back by latents, in each branch, and numbers are told once."""
    quantizer, latents = built(branch).train(), noise(8, 4, 4, 12)
    with torch.no_grad():
        for codebook in (p for name, p in quantizer.named_parameters() if name.endswith("embedding.weight")):
            codebook.copy_(torch.nn.functional.normalize(codebook, dim=-1))
            codebook[1:] = codebook[1]
    upkeep, dice, reseeded = quantizer.upkeep(), torch.Generator().manual_seed(0), 0
    for _ in range(500):
        numbers = upkeep.update(quantizer, latents, quantizer(latents).indices, dice)
        reseeded += int(numbers["reseeded"])
    assert reseeded >= 3 * 5
    assert {"codes_used", "perplexity", "reseeded"} <= numbers.keys()
    assert all(number.shape == () for number in numbers.values())
    assert float(numbers["codes_used"]) > 4


def test_a_product_of_nothing_is_refused():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        ProductConfig(branch=VECTOR, count=0)


@torch.no_grad()
def test_compared_by_direction_a_code_s_length_does_not_matter_but_comes_back():
    config = VectorConfig(codebook_size=3, codebook_dim=2, l2_norm=False, distance="cosine")
    quantizer = config.build().eval()
    quantizer.embedding.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, -1.0]]))
    latents = torch.tensor([[[0.2, 0.1], [1.0, 3.0], [-9.0, -8.0], [0.0, 7.0]]])
    result = quantizer(latents)
    assert result.indices.tolist() == [[0, 1, 2, 1]]
    torch.testing.assert_close(result.latents, quantizer.embedding.weight[result.indices])
