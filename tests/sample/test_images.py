"""Conditions to images: image i is the same however the run is cut."""

from __future__ import annotations

import pytest
import torch

from imgtok.backbones.cnn import CNNConfig
from imgtok.generators.condition import TextFeatures
from imgtok.quantizers.vector import VectorConfig
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import count, generate, generate_tokens
from imgtok.sample.law import Law
from imgtok.tokenizer import Tokenizer, TokenizerConfig

CNN = CNNConfig(
    encoder_widths=(8, 8),
    decoder_widths=(8, 8),
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    latent_channels=8,
    norm_groups=4,
)


def tokenizer_of(codebook_size: int) -> Tokenizer:
    quantizer = VectorConfig(codebook_size=codebook_size, codebook_dim=4)
    return TokenizerConfig(image_size=8, backbone=CNN, quantizer=quantizer).build().eval()


def tokens_of(pair, **options) -> torch.Tensor:
    return torch.cat(list(generate_tokens(*pair, **options)))


@pytest.mark.parametrize("guidance", [None, Guidance(scale=3.0, steps=5)])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_an_image_is_the_same_in_any_batch(pair, batch_size, guidance):
    options = {"seed": 3, "law": Law(top_p=0.95), "guidance": guidance}
    batches = list(generate_tokens(*pair, batch_size=batch_size, **options))
    assert [len(batch) for batch in batches] == [min(batch_size, 7 - start) for start in range(0, 7, batch_size)]
    assert torch.equal(torch.cat(batches), tokens_of(pair, batch_size=7, **options))


def test_a_run_may_be_cut_into_parts(pair):
    generator, condition = pair
    whole = tokens_of(pair, seed=3)
    parts = [
        tokens_of((generator, generator.condition.select(condition, slice(start, end))), seed=3, first=start)
        for start, end in [(0, 2), (2, 3), (3, 7)]
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(tokens_of(pair, seed=3, first=1), whole)


def test_seeds_differ(pair):
    assert not torch.equal(tokens_of(pair, seed=0), tokens_of(pair, seed=1))
    assert torch.equal(tokens_of(pair, seed=-(2**70)), tokens_of(pair, seed=-(2**70)))


def test_images_are_the_decoded_tokens(pair):
    generator, condition = pair
    tokenizer = tokenizer_of(13)
    images = torch.cat(list(generate(generator, tokenizer, condition, seed=3, batch_size=3)))
    assert images.shape == (7, 3, 6, 8)  # the generator's grid, not the tokenizer's square
    assert torch.equal(
        images,
        torch.cat(
            [
                tokenizer.decode(batch, generator.config.layout)
                for batch in generate_tokens(generator, condition, seed=3, batch_size=3)
            ]
        ),
    )
    assert images.abs().max() <= 1


def test_a_batch_is_ready_before_the_next_is_drawn(pair):
    steps = generate_tokens(*pair, batch_size=3)
    assert next(steps).shape == (3, 12)
    steps.close()


def test_a_pair_that_does_not_belong_together_is_refused(pair):
    with pytest.raises(ValueError, match="draws from 13 codes but the tokenizer has 14"):
        next(generate(pair[0], tokenizer_of(14), pair[1]))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(pair, batch_size):
    with pytest.raises(ValueError, match="must be at least 1"):
        next(generate_tokens(*pair, batch_size=batch_size))


def test_no_conditions_are_refused(pair):
    generator, condition = pair
    with pytest.raises(ValueError, match="must be at least 1"):
        next(generate_tokens(generator, generator.condition.select(condition, slice(0, 0))))


def test_rows_are_counted_whatever_the_condition():
    assert count(torch.zeros(4, 2)) == 4
    assert count(TextFeatures(torch.zeros(3, 5, 6), torch.ones(3, 5))) == 3
