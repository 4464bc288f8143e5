"""Next-token generators of tokens that lie in a sequence: drawn whole, and cut short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from imgtok.backbones.query import PixelHeadConfig, QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate, generate_tokens
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.plain import Plain
from imgtok.sample.recycled import Recycled
from imgtok.sample.strategy import Strategy
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.tokens import GridLayout, SequenceLayout

LENGTH, CODES = 10, 13
LABELS = torch.tensor([[i % 4] for i in range(5)])
STRATEGIES: dict[str, Strategy] = {"plain": Plain(), "jacobi": Jacobi(window=3), "recycled": Recycled(window=3)}


def random_generator(layout: GridLayout | SequenceLayout) -> Generator:
    config = GeneratorConfig(
        layout=layout,
        codebook_size=CODES,
        condition=LabelConditionConfig(labels=(Label(size=4),)),
        width=12,
        depth=2,
        num_heads=3,
        mlp_hidden=16,
    )
    built, dice = config.build().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.shape[-1] ** -0.5 * torch.randn(parameter.shape, generator=dice))
    return built


@pytest.fixture(scope="module")
def generator() -> Generator:
    return random_generator(SequenceLayout(LENGTH))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vit = ViTConfig(width=16, depth=1, num_heads=2)
    backbone = QueryConfig(
        latents=(LENGTH,), patch_size=4, grid=(2, 2), encoder=vit, decoder=vit, head=PixelHeadConfig(kernel=3)
    )
    quantizer = VectorConfig(codebook_size=CODES, codebook_dim=4)
    torch.manual_seed(0)
    return TokenizerConfig(image_size=8, backbone=backbone, quantizer=quantizer).build().eval()


def joined(batches: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(batches))


@pytest.mark.parametrize("name", STRATEGIES)
def test_pathwise_strategies_draw_the_same_sequence(generator, name):
    guidance = Guidance(scale=2.0)
    drawn = joined(generate_tokens(generator, LABELS, SamplerConfig(strategy=STRATEGIES[name], guidance=guidance)))
    assert drawn.shape == (5, LENGTH)
    assert torch.equal(drawn, joined(generate_tokens(generator, LABELS, SamplerConfig(guidance=guidance))))


@pytest.mark.parametrize("count", [1, 4, LENGTH])
@pytest.mark.parametrize("name", ["plain", "jacobi"])
def test_the_first_tokens_are_those_of_the_whole_and_decode_alone(generator, tokenizer, count, name):
    config = SamplerConfig(num_tokens=count, batch_size=2, strategy=STRATEGIES[name])
    whole = joined(generate_tokens(generator, LABELS))
    assert torch.equal(joined(generate_tokens(generator, LABELS, config)), whole[:, :count])
    previews = list[Tensor]()
    images = joined(
        generate(
            generator,
            tokenizer,
            LABELS,
            config,
            on_preview=lambda first, pictures: previews.append(pictures),
            preview_every=1,
        )
    )
    torch.testing.assert_close(images, tokenizer.decode(whole[:, :count], SequenceLayout(count)))
    assert all(preview.shape[1:] == (3, 8, 8) for preview in previews) and previews


@pytest.mark.parametrize("count", [0, LENGTH + 1])
def test_a_number_that_there_is_not_is_refused(generator, count):
    with pytest.raises(ValueError, match=f"num_tokens must be between 1 and {LENGTH}, got {count}"):
        list(generate_tokens(generator, LABELS, SamplerConfig(num_tokens=count)))


def test_a_grid_is_drawn_whole():
    with pytest.raises(ValueError, match="only next-token generators of a sequence can stop early"):
        list(generate_tokens(random_generator(GridLayout(2, 5)), LABELS, SamplerConfig(num_tokens=4)))
