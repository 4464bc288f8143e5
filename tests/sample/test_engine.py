"""Sampling with a cache, against the plainest loop, against enumeration, and for what must not happen inside it."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from imgtok.generators.condition import TextFeatures
from imgtok.generators.generator import Generator
from imgtok.sample import engine
from imgtok.sample.branched import BranchedJacobi
from imgtok.sample.guidance import Guidance
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.law import Law
from imgtok.sample.noise import gumbel, image_keys
from imgtok.sample.plain import Plain
from imgtok.sample.scorer import Scorer, new_cache
from imgtok.sample.sjd import SpeculativeJacobi
from imgtok.sample.strategy import Progress
from imgtok.tokens import GridLayout

from .frequencies import check_frequencies
from .no_sync import NoSync
from .toys import Recorder

GUIDANCES = {
    "none": Guidance(),
    "constant": Guidance(scale=3.0),
    "first-steps": Guidance(scale=3.0, steps=5),
    "first-only": Guidance(scale=3.0, steps=1),
    "linear": Guidance(scale=2.5, schedule="linear"),
    "cosine": Guidance(scale=5.0, schedule="cosine", power=2.0, steps=9),
    "below-one": Guidance(scale=0.0),
}
LAWS = {"all": Law(), "truncated": Law(temperature=0.8, top_k=7, top_p=0.9), "greedy": Law(temperature=0)}


def sample_tokens(*args: Any, **kwargs: Any) -> Tensor:
    return engine.sample_tokens(*args, **kwargs).tokens


def seven_keys(seed: int = 0) -> Tensor:
    return image_keys(seed, range(7))


@torch.no_grad()
def plainly(generator: Generator, condition: Any, keys: Tensor, law: Law, guidance: Guidance) -> tuple[Tensor, Tensor]:
    """Tokens b n and guided logits b n v: each step reads everything again, conditional and null rows to the end."""
    tokens, steps = torch.zeros(len(keys), generator.num_tokens, dtype=torch.int64), []
    both = generator.condition.with_null(condition)
    for i, scale in enumerate(guidance.scales(generator.num_tokens)):
        conditional, null = generator(tokens[:, : i + 1].repeat(2, 1), both)[:, i].chunk(2)
        steps.append(null + scale * (conditional - null))
        noise = gumbel(keys, torch.full((len(keys), 1), i), conditional.shape[-1])[:, 0]
        tokens[:, i] = (law(steps[-1]) + noise).argmax(-1)
    return tokens, torch.stack(steps, dim=1)


@pytest.mark.parametrize(
    "strategy", [Plain(), Jacobi(window=5), BranchedJacobi(window=9, branches=2), SpeculativeJacobi(window=4)]
)
def test_noise_that_is_kept_and_noise_that_is_made_again_draw_the_same(pair, strategy, monkeypatch):
    """The former stands for batches whose noise does not take too much room."""
    generator, condition = pair
    options = {"law": LAWS["truncated"], "guidance": GUIDANCES["constant"], "strategy": strategy}
    kept = sample_tokens(generator, condition, seven_keys(), **options)
    monkeypatch.setattr("imgtok.sample.strategy.MOST_NOISE", 0)
    made = list[int]()
    monkeypatch.setattr("imgtok.sample.strategy.gumbel", lambda *args: made.append(1) or gumbel(*args))
    assert torch.equal(sample_tokens(generator, condition, seven_keys(), **options), kept)
    assert len(made) > 3  # not all at once


# -- the cache, dropped rows, schedules -------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_sampling_equals_the_plain_loop(pair, guidance, law):
    generator, condition = pair
    recorder = Recorder(LAWS[law])
    tokens = sample_tokens(generator, condition, seven_keys(), law=recorder, guidance=GUIDANCES[guidance])
    expected, logits = plainly(generator, condition, seven_keys(), LAWS[law], GUIDANCES[guidance])
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(torch.cat(recorder.logits, dim=1), logits, atol=1e-4, rtol=1e-4)
    assert tokens.unique().numel() > 3


def test_scale_one_is_no_guidance(pair):
    generator, condition = pair
    plain = sample_tokens(generator, condition, seven_keys())
    for guidance in (Guidance(scale=1.0), Guidance(scale=4.0, steps=0), Guidance(schedule="linear")):
        assert torch.equal(sample_tokens(generator, condition, seven_keys(), guidance=guidance), plain)
    assert not torch.equal(sample_tokens(generator, condition, seven_keys(), guidance=Guidance(scale=4.0)), plain)


@pytest.mark.parametrize("guided", [True, False])
def test_null_rows_are_not_computed_without_need(pair, guided, monkeypatch):
    generator, condition = pair
    rows, score = [], type(generator).score

    def counting(self, tokens, *rest):
        rows.append(len(tokens))
        return score(self, tokens, *rest)

    monkeypatch.setattr(type(generator), "score", counting)
    sample_tokens(generator, condition, seven_keys(), guidance=Guidance(scale=3.0, steps=4) if guided else None)
    assert rows == ([14] * 4 + [7] * 8 if guided else [7] * 12)


def test_a_cache_may_be_used_again(pair):
    generator, condition = pair
    cache = generator.new_cache(14, 1)
    guidances = [GUIDANCES[name] for name in ("first-steps", "none", "constant", "none", "first-steps")]
    for seed, guidance in enumerate(guidances):
        again = sample_tokens(generator, condition, seven_keys(seed), guidance=guidance, cache=cache)
        assert torch.equal(again, sample_tokens(generator, condition, seven_keys(seed), guidance=guidance))


def test_a_used_cache_remembers_no_padding(make_generator):
    generator = make_generator(GridLayout(3, 4), text=True)
    features = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    long, short = torch.ones(2, 5, dtype=torch.bool), torch.tensor([[False] * 4 + [True]] * 2)
    cache, keys = generator.new_cache(2, 1), image_keys(0, range(2))
    for visible in (short, long, short):
        condition = TextFeatures(features * visible[:, :, None], visible)
        again = sample_tokens(generator, condition, keys, cache=cache)
        assert torch.equal(again, sample_tokens(generator, condition, keys))


@pytest.mark.parametrize("count", [1, 5, 12])
def test_stopping_early_gives_the_first_tokens(pair, count):
    generator, condition = pair
    whole = sample_tokens(generator, condition, seven_keys(), guidance=Guidance(scale=2.0))
    part = sample_tokens(generator, condition, seven_keys(), guidance=Guidance(scale=2.0), num_tokens=count)
    assert torch.equal(part, whole[:, :count])


def test_steps_are_told_as_they_happen(pair):
    generator, condition = pair
    seen: list[Progress] = []
    tokens = sample_tokens(generator, condition, seven_keys(), on_round=seen.append)
    assert [progress.start.tolist() for progress in seen] == [[i] * 7 for i in range(12)]
    assert all(torch.equal(progress.tokens[:, : i + 1], tokens[:, : i + 1]) for i, progress in enumerate(seen))


def test_few_different_lengths_of_the_cache_are_read(make_generator):
    generator = make_generator(GridLayout(16, 16))
    scorer = Scorer(generator, torch.zeros(2, 2, dtype=torch.int64), Guidance(), rows=2, spare=0)
    lengths = [scorer.columns(places) for places in range(257)]
    assert all(generator.num_slots + places <= length for places, length in enumerate(lengths))
    assert lengths == sorted(lengths)
    assert max(lengths) <= scorer.cache.length
    assert len(set(lengths)) <= 5


# -- one image, whatever its neighbours -------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", ["none", "first-steps"])
@pytest.mark.parametrize("rows", [[0], [6], [2, 4], [5, 0, 3], [1, 2, 3, 4, 6], [6, 5, 4, 3, 2, 1, 0]])
def test_an_image_is_the_same_in_any_company(pair, guidance, rows):
    generator, condition = pair
    whole = sample_tokens(generator, condition, seven_keys(), guidance=GUIDANCES[guidance])
    given = condition[rows] if isinstance(condition, Tensor) else TextFeatures(*(part[rows] for part in condition))
    alone = sample_tokens(generator, given, seven_keys()[rows], guidance=GUIDANCES[guidance])
    assert torch.equal(alone, whole[rows])


def test_seeds_and_images_differ(pair):
    generator, condition = pair
    first = generator.condition.select(condition, slice(1, 2))
    drawn = {
        tuple(sample_tokens(generator, first, image_keys(seed, [image])).flatten().tolist())
        for seed in (0, 1, -1, 2**64)
        for image in (0, 1, 2)
    }
    assert len(drawn) == 12


# -- the law of whole images ------------------------------------------------------------------------------------------


@torch.no_grad()
def enumerate_law(generator: Generator, condition: Tensor, law: Law, guidance: Guidance) -> Tensor:
    """Probability of every sequence, in lexicographic order."""
    v, n = generator.config.codebook_size, generator.num_tokens
    tokens = torch.tensor(list(product(range(v), repeat=n)))
    both = generator.condition.with_null(condition.expand(len(tokens), -1))
    conditional, null = generator(tokens.repeat(2, 1), both).chunk(2)
    scales = torch.tensor(guidance.scales(n))[:, None]
    log_probs = law(null + scales * (conditional - null))
    return log_probs.gather(-1, tokens[..., None])[..., 0].sum(-1).double().exp()


@pytest.mark.parametrize(
    ("layout", "law", "guidance"),
    [
        (GridLayout(1, 3), Law(), Guidance()),
        (GridLayout(2, 1), Law(temperature=1.3), Guidance(scale=2.0)),
        (GridLayout(1, 3), Law(temperature=0.9, top_k=3, top_p=0.93), Guidance(scale=1.5, steps=2)),
    ],
)
def test_sequences_are_drawn_as_often_as_the_model_says(make_generator, layout, law, guidance):
    """Chi-square over all sequences from 200,000 draws; a right sampler exceeds the bound once in a million tries."""
    generator, draws = make_generator(layout, codebook_size=4, depth=1), 200_000
    condition = torch.tensor([[2, 1]])
    probs = enumerate_law(generator, condition, law, guidance)
    counts = torch.zeros(len(probs), dtype=torch.int64)
    for start in range(0, draws, 20_000):
        keys = image_keys(11, range(start, start + 20_000))
        tokens = sample_tokens(generator, condition.expand(20_000, -1), keys, law=law, guidance=guidance)
        number = (tokens * 4 ** torch.arange(tokens.shape[1]).flip(0)).sum(1)
        counts += torch.bincount(number, minlength=len(probs))
    check_frequencies(counts, probs)


# -- what must not happen in the loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: int(x.argmax()),
    ],
)
def test_the_watch_catches(wait):
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        wait(torch.arange(3.0))


@pytest.mark.parametrize(
    "allocate",
    [
        lambda x: x.new_zeros(8),
        lambda x: x.clone(),
        lambda x: x + 1,
        lambda x: torch.cat([x[:2], x[2:]]),
        lambda x: x.sort(),
    ],
)
def test_the_watch_catches_new_memory(allocate):
    kept = torch.arange(8.0)
    with pytest.raises(AssertionError, match="allocates as much as the cache"), NoSync(cache=[kept]):
        allocate(kept)


def test_the_watch_lets_the_cache_be_written_and_seen():
    keys, values = torch.zeros(2, 4), torch.zeros(2, 4)
    with NoSync(cache=[keys, values]) as watch:
        keys[:, :2].copy_(values[:, 2:])
        keys.view(-1)[:4].clone()
    assert watch.calls > 3


@pytest.mark.parametrize("guidance", ["none", "first-steps", "cosine"])
def test_the_loop_never_waits_for_the_device(pair, guidance):
    generator, condition = pair
    with NoSync(rounds=12) as watch:
        sample_tokens(
            generator,
            condition,
            seven_keys(),
            law=LAWS["truncated"],
            guidance=GUIDANCES[guidance],
            on_round=watch.round,
        )
    assert watch.rounds == 0
    assert watch.calls > 100


class Crossings(TorchDispatchMode):
    """Counts copies from one device to another; such a copy makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [value for value in (*args, out) if isinstance(value, Tensor) and value.ndim]
        self.count += len({tensor.device.type for tensor in tensors}) > 1
        return out


@pytest.mark.parametrize("guidance", ["none", "first-steps"])
def test_the_loop_copies_nothing_to_the_device(make_generator, guidance):
    """On the meta device, which stands for any that is not the CPU."""
    generator, keys = make_generator(GridLayout(3, 4)).to("meta"), seven_keys().to("meta")
    condition, crossings = torch.zeros(7, 2, dtype=torch.int64, device="meta"), []
    with Crossings() as crossing:
        sample_tokens(
            generator,
            condition,
            keys,
            guidance=GUIDANCES[guidance],
            on_round=lambda progress: crossings.append(crossing.count),
        )
    assert crossings[0] > 0  # what is prepared before the first token
    assert len(set(crossings)) == 1, crossings


@pytest.mark.parametrize("guidance", ["none", "first-steps"])
def test_the_loop_allocates_no_cache(pair, guidance, monkeypatch):
    generator, condition = pair
    cache, places = new_cache(generator, 7, GUIDANCES[guidance], spare=200), set()  # larger than any activation
    tensors = [*cache.keys, *cache.values]
    monkeypatch.setattr(generator, "new_cache", lambda *args, **kwargs: pytest.fail("a second cache"))
    with NoSync(cache=tensors, rounds=12) as watch:

        def look(progress: Progress) -> None:
            places.add(tuple(tensor.data_ptr() for tensor in (*cache.keys, *cache.values)))
            watch.round(progress)

        sample_tokens(
            generator,
            condition,
            seven_keys(),
            guidance=GUIDANCES[guidance],
            cache=cache,
            on_round=look,
        )
    assert watch.rounds == 0
    assert len(places) == 1


def test_one_cache_is_made_where_none_is_given(pair, monkeypatch):
    generator, condition = pair
    made, make = [], generator.new_cache

    def counting(rows: int, extra: int) -> Any:
        made.append(rows)
        return make(rows, extra)

    monkeypatch.setattr(generator, "new_cache", counting)
    sample_tokens(generator, condition, seven_keys())
    sample_tokens(generator, condition, seven_keys(), guidance=Guidance(scale=2.0))
    assert made == [7, 14]


def test_no_gradients_are_kept(pair):
    generator, condition = pair
    recorder = Recorder(Law())
    sample_tokens(generator, condition, seven_keys(), law=recorder)
    assert not any(logits.requires_grad for logits in recorder.logits)


def test_a_sharp_law_draws_its_mode(pair):
    generator, condition = pair
    cold = sample_tokens(generator, condition, seven_keys(), law=Law(temperature=1e-4))
    assert torch.equal(cold, sample_tokens(generator, condition, seven_keys(1), law=Law(temperature=0)))
    assert math.isfinite(float(cold.sum()))
