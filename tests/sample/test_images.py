"""Conditions to images: image i is the same however the run is cut."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from imgtok.backbones.cnn import CNNConfig
from imgtok.generators.condition import TextFeatures
from imgtok.quantizers.vector import VectorConfig
from imgtok.sample import images as images_module
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, Statistics, count, generate, generate_tokens
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.law import Law
from imgtok.sample.recalling import RecallingJacobi
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


def tokens_of(pair, *, seed: int = 0, first: int = 0, statistics: Statistics | None = None, **config) -> torch.Tensor:
    options = {"seed": seed, "first": first, "statistics": statistics}
    return torch.cat(list(generate_tokens(*pair, SamplerConfig(**config), **options)))


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(scale=3.0, steps=5)])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_an_image_is_the_same_in_any_batch(pair, batch_size, guidance):
    options = {"law": Law(top_p=0.95), "guidance": guidance}
    batches = list(generate_tokens(*pair, SamplerConfig(batch_size=batch_size, **options), seed=3))
    assert [len(batch) for batch in batches] == [min(batch_size, 7 - start) for start in range(0, 7, batch_size)]
    assert torch.equal(torch.cat(batches), tokens_of(pair, seed=3, batch_size=7, **options))


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
    images = torch.cat(list(generate(generator, tokenizer, condition, SamplerConfig(batch_size=3), seed=3)))
    assert images.shape == (7, 3, 6, 8)  # the generator's grid, not the tokenizer's square
    assert torch.equal(
        images,
        torch.cat(
            [
                tokenizer.decode(batch, generator.config.layout)
                for batch in generate_tokens(generator, condition, SamplerConfig(batch_size=3), seed=3)
            ]
        ),
    )
    assert images.abs().max() <= 1


def test_a_batch_is_ready_before_the_next_is_drawn(pair):
    steps = generate_tokens(*pair, SamplerConfig(batch_size=3))
    assert next(steps).shape == (3, 12)
    steps.close()


def test_a_pair_that_does_not_belong_together_is_refused(pair):
    with pytest.raises(ValueError, match="draws from 13 codes but the tokenizer has 14"):
        next(generate(pair[0], tokenizer_of(14), pair[1]))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        SamplerConfig(batch_size=batch_size)


def test_no_conditions_are_refused(pair):
    generator, condition = pair
    with pytest.raises(ValueError, match="there are no conditions"):
        next(generate_tokens(generator, generator.condition.select(condition, slice(0, 0))))


def test_rows_are_counted_whatever_the_condition():
    assert count(torch.zeros(4, 2)) == 4
    assert count(TextFeatures(torch.zeros(3, 5, 6), torch.ones(3, 5))) == 3


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_faster_way_gives_the_same_images_and_tells_what_it_took(pair, batch_size):
    statistics = Statistics()
    options = {"seed": 3, "law": Law(top_k=5), "batch_size": batch_size}
    fast = tokens_of(pair, strategy=Jacobi(window=4), statistics=statistics, **options)
    assert torch.equal(fast, tokens_of(pair, seed=3, law=Law(top_k=5)))
    assert (statistics.images, statistics.tokens) == (7, 84)
    assert statistics.calls == sum(statistics.accepted) < 84
    assert sum(count * calls for count, calls in enumerate(statistics.accepted)) == 84
    assert statistics.tokens_per_call == pytest.approx(84 / statistics.calls)
    assert statistics.calls_per_image == pytest.approx(statistics.calls / 7)
    assert set(statistics.seconds) == {"draft", "model", "law", "couple"}
    assert min(statistics.seconds.values()) > 0


def test_what_a_strategy_learns_is_handed_on_from_batch_to_batch(pair, monkeypatch):
    handed: list[object] = []

    class Watched(RecallingJacobi):
        def begin(self, job, earlier=None):
            handed.append(earlier)
            return super().begin(job, earlier)

    way = Watched(window=8, branches=2, length=2)
    assert torch.equal(tokens_of(pair, strategy=way, batch_size=3), tokens_of(pair))
    assert [earlier is None for earlier in handed] == [True, False, False]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_too_large_for_memory_is_halved_and_gives_the_same_images(pair, monkeypatch, caplog, error):
    draw, rows = images_module.sample_tokens, []

    def narrow(generator, condition, keys, **options):
        rows.append(len(keys))
        if len(keys) > 2:
            raise error
        return draw(generator, condition, keys, **options)

    whole = tokens_of(pair)
    monkeypatch.setattr(images_module, "sample_tokens", narrow)
    assert torch.equal(tokens_of(pair, batch_size=7), whole)
    assert rows == [7, 4, 2, 2, 2, 1]
    assert "out of memory with batch_size 7: going on with 4" in caplog.text
    assert "batch_size 2 avoids this" in caplog.text


def test_other_errors_and_an_image_that_fits_nowhere_are_raised(pair, monkeypatch):
    for error in (RuntimeError("broken"), torch.OutOfMemoryError("no room")):
        monkeypatch.setattr(images_module, "sample_tokens", lambda *args, e=error, **kwargs: (_ for _ in ()).throw(e))
        with pytest.raises(type(error), match=str(error)):
            next(generate_tokens(*pair, SamplerConfig(batch_size=4)))


def test_unfinished_images_can_be_looked_at(pair):
    generator, condition = pair
    seen: list[tuple[int, torch.Size]] = []
    tokenizer = tokenizer_of(13)
    options = {"preview_every": 5, "on_preview": lambda first, images: seen.append((first, images.shape))}
    drawn = torch.cat(list(generate(generator, tokenizer, condition, SamplerConfig(batch_size=4), **options)))
    assert seen == [(first, torch.Size([rows, 3, 6, 8])) for first, rows in ((0, 4), (0, 4), (4, 3), (4, 3))]
    assert torch.equal(drawn, torch.cat(list(generate(generator, tokenizer, condition))))


def test_logits_that_are_no_numbers_are_told(pair):
    generator, condition = deepcopy(pair)
    with torch.no_grad():
        generator.head.logits.weight[3] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite numbers for 3 of 3 images"):
        next(generate_tokens(generator, condition, SamplerConfig(batch_size=3)))
