"""Mistakes in training: what a next-scale generator is shown, and what it is to predict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imgtok.quantizers.residual import ResidualConfig, ResidualQuantizer
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.train.generator_config import MistakesConfig
from imgtok.train.generator_tasks import with_mistakes

IMAGES = 64


@pytest.fixture(scope="module")
def quantizer() -> ResidualQuantizer:
    torch.manual_seed(0)
    stage = VectorConfig(codebook_size=64, codebook_dim=3, l2_norm=False)
    built = ResidualConfig(stage=stage, view=ScalesConfig(scales=(1, 2, 4, 6), blends=2)).build().eval()
    with torch.no_grad():
        built.codebooks[0].embedding.weight.normal_()
    return built


@pytest.fixture(scope="module")
def tokens(quantizer) -> Tensor:
    latents = torch.randn(IMAGES, 6, 6, 3, generator=torch.Generator().manual_seed(1))
    return quantizer(latents).indices


def shown(quantizer: ResidualQuantizer, tokens: Tensor, share: float, neighbours: int = 8) -> tuple[Tensor, Tensor]:
    config, dice = MistakesConfig(share=share, neighbours=neighbours), torch.Generator().manual_seed(2)
    return with_mistakes(quantizer, tokens, quantizer.layout_of(6, 6), config, dice)


def test_without_swaps_it_sees_what_the_tokens_to_predict_add_up_to(quantizer, tokens):
    """One neighbour is the nearest code itself."""
    seen, right = shown(quantizer, tokens, share=1.0, neighbours=1)
    torch.testing.assert_close(seen, quantizer.inputs(right, quantizer.layout_of(6, 6)))
    assert torch.equal(shown(quantizer, tokens, share=1e-9)[0], seen)


def test_swaps_change_what_is_seen_by_as_much_as_is_asked_for(quantizer, tokens):
    layout, clean = quantizer.layout_of(6, 6), shown(quantizer, tokens, share=1e-9)[0]
    first = layout.group_sizes[1]  # the second map sees the first one's only token
    changed = [
        float((shown(quantizer, tokens, share)[0] != clean)[:, :first].any(-1).any(-1).float().mean())
        for share in (0.2, 1.0)
    ]
    # A token is swapped with probability share / 2 and then another one in 7 of 8 cases; 64 images: 4 deviations.
    for share, value in zip((0.2, 1.0), changed, strict=True):
        expected = share / 2 * 7 / 8
        assert abs(value - expected) < 4 * (expected * (1 - expected) / IMAGES) ** 0.5


def test_later_maps_are_to_make_good_for_swaps(quantizer, tokens):
    """Predicted right, they end closer to the picture than the picture's own tokens do after the same mistakes."""
    layout = quantizer.layout_of(6, 6)
    picture = quantizer.codes(layout.unflatten(tokens))
    seen, right = shown(quantizer, tokens, share=1.0, neighbours=64)
    before = seen[:, -36:].unflatten(1, (6, 6))  # all but the last map, which is as large as the latents
    ends = [quantizer.accumulate(before, layout.unflatten(choice)[-1], 3, layout) for choice in (right, tokens)]
    errors = [float((end - picture).detach().square().mean()) for end in ends]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.1}, {"neighbours": 0}])
def test_numbers_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"mistakes.share must be above 0 and at most 1 and neighbours at least 1"):
        MistakesConfig(**wrong)
