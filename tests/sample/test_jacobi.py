"""Jacobi decoding and its kin: the tokens of plain sampling, in fewer calls."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok.generators.condition import Label, LabelConditionConfig, TextFeatures
from imgtok.generators.generator import Generator, GeneratorConfig
from imgtok.sample import strategy as strategies
from imgtok.sample.branched import BranchedJacobi
from imgtok.sample.engine import Drawn, Round, beginning, sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys
from imgtok.sample.plain import Plain
from imgtok.sample.recalling import RecallingJacobi
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import Job, Strategy
from imgtok.tokens import GridLayout

from . import oracles
from .no_sync import NoSync
from .toys import TableGenerator

PATHWISE = {
    "jacobi-1": Jacobi(window=1),
    "jacobi-5": Jacobi(window=5),
    "jacobi-beyond": Jacobi(window=40),
    "branched-small": BranchedJacobi(window=8, branches=2, length=2, ranks=2),
    "branched": BranchedJacobi(window=24, branches=4, length=3),
    "branched-beyond": BranchedJacobi(window=64, branches=8, length=5, distance=0.0),
    "branched-leaves": BranchedJacobi(window=6, branches=5, length=1, ranks=8),
    "recalling": RecallingJacobi(window=24, branches=4, length=3, corrected=3),
    "recalling-strongly": RecallingJacobi(window=16, branches=3, length=2, recall=2.0),
}
GUIDANCES = {
    "none": Guidance(),
    "constant": Guidance(scale=3.0),
    "linear": Guidance(scale=2.0, schedule="linear"),
    "stopped": Guidance(scale=2.0, steps=7),
}
LAW = Law(temperature=0.9, top_k=9)


@pytest.fixture(scope="module", params=["labels", "text"])
def toy(request: pytest.FixtureRequest, make_generator: Any) -> tuple[Generator, Any]:
    """4 x 6 tokens, laws neither flat nor sharp, three conditions."""
    generator = deepcopy(make_generator(GridLayout(4, 6), text=request.param == "text"))
    with torch.no_grad():
        generator.head.logits.weight.mul_(0.3)
    if request.param == "labels":
        return generator, torch.tensor([[0, 1], [3, 0], [4, 2]])
    visible = torch.arange(5) >= torch.tensor([[3], [0], [4]])
    features = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)) * visible[:, :, None]
    return generator, TextFeatures(features, visible)


def drawn(toy: tuple[Generator, Any], strategy: Strategy, seed: int = 0, **settings: Any) -> Drawn:
    generator, condition = toy
    return sample_tokens(generator, condition, image_keys(seed, range(3)), law=LAW, strategy=strategy, **settings)


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("name", PATHWISE)
def test_the_tokens_are_those_of_plain_sampling(toy, name, guidance):
    settings = {"guidance": GUIDANCES[guidance]}
    plain, fast = drawn(toy, Plain(), **settings), drawn(toy, PATHWISE[name], **settings)
    assert torch.equal(fast.tokens, plain.tokens)
    assert plain.calls.tolist() == [24] * 3
    assert (fast.calls < 24).all()
    assert int(fast.accepted.sum()) == int(fast.calls.sum())  # each call of an unfinished image is counted once
    assert int((fast.accepted * torch.arange(len(fast.accepted))).sum()) == 3 * 24


@pytest.mark.parametrize("name", ["jacobi-5", "branched", "recalling"])
@pytest.mark.parametrize("rows", [[0], [2, 1], [1, 1, 0]])
def test_company_does_not_matter(toy, name, rows):
    generator, condition = toy
    part = condition[rows] if isinstance(condition, Tensor) else TextFeatures(*(each[rows] for each in condition))
    keys = image_keys(0, range(3))
    alone = sample_tokens(generator, part, keys[rows], law=LAW, strategy=PATHWISE[name]).tokens
    assert torch.equal(alone, drawn(toy, Plain()).tokens[rows])


@pytest.mark.parametrize("seed", [-1, 2**32 + 7, 2**70])
def test_any_seed_will_do(toy, seed):
    for name in ("jacobi-5", "branched", "recalling"):
        assert torch.equal(drawn(toy, PATHWISE[name], seed).tokens, drawn(toy, Plain(), seed).tokens)


def test_asking_seldom_how_far_images_are_changes_nothing(toy):
    often, seldom = (drawn(toy, Jacobi(window=5), ask_every=every) for every in (1, 7))
    assert torch.equal(often.tokens, seldom.tokens)
    assert torch.equal(often.calls, seldom.calls)


def test_stopping_early_gives_the_first_tokens(toy):
    whole = drawn(toy, Plain()).tokens
    for name in PATHWISE:
        assert torch.equal(drawn(toy, PATHWISE[name], num_tokens=7).tokens, whole[:, :7])


def test_second_guesses_save_calls(toy):
    calls = {
        name: sum(int(drawn(toy, strategy, seed).calls.sum()) for seed in range(8))
        for name, strategy in {"chain": Jacobi(window=12), "tree": BranchedJacobi(window=44, branches=8)}.items()
    }
    assert calls["tree"] < 0.95 * calls["chain"]


def test_experience_is_handed_on_and_changes_no_token(toy):
    strategy, earlier = PATHWISE["recalling"], None
    weights = []
    for seed in range(3):
        batch = drawn(toy, strategy, seed, earlier=earlier)
        assert torch.equal(batch.tokens, drawn(toy, Plain(), seed).tokens)
        earlier = batch.memory
        weights.append(float(earlier.experience.weights.sum()))
    assert weights == sorted(set(weights))
    assert torch.equal(drawn(toy, strategy, 9, earlier="of another strategy").tokens, drawn(toy, Plain(), 9).tokens)


@pytest.mark.parametrize("case", oracles.cases("shared_noise"))
def test_given_noise_gives_the_known_tokens_in_the_known_number_of_calls(case, monkeypatch):
    inputs, expected = case["inputs"], case["expected"]
    tables = [
        torch.tensor(inputs[name], dtype=torch.float64) for name in ("first", "second_given_first", "later_given_two")
    ]
    noise = -(-torch.tensor(inputs["uniform_noise"], dtype=torch.float64).log()).log()
    generator = TableGenerator(*tables, num_tokens=len(noise))

    def given(keys: Tensor, places: Tensor, size: int, purpose: Any = 0) -> Tensor:
        return noise[places.clamp_max(len(noise) - 1)].expand(len(keys), -1, -1)

    monkeypatch.setattr(strategies, "gumbel", given)
    condition, keys = torch.zeros(2, 1), image_keys(0, range(2))
    ways: list[Strategy] = [Plain(), BranchedJacobi(window=7, branches=2, length=2, ranks=2)]
    ways += [Jacobi(window=int(window)) for window in expected["jacobi_calls"]]
    for way in ways:
        batch = sample_tokens(generator, condition, keys, strategy=way)  # type: ignore[arg-type]
        assert batch.tokens.tolist() == [expected["tokens"]] * 2
        if isinstance(way, Jacobi):
            assert batch.calls.tolist() == [expected["jacobi_calls"][str(way.window)]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHWISE)
def test_the_tokens_of_a_trained_generator_are_those_of_plain_sampling(trained, name):
    generator, labels = trained
    settings: dict[str, Any] = {"law": Law(temperature=0.9, top_k=100), "guidance": Guidance(scale=3.0)}
    keys = image_keys(3, range(len(labels)))
    plain = sample_tokens(generator, labels, keys, **settings)
    fast = sample_tokens(generator, labels, keys, strategy=PATHWISE[name], **settings)
    assert torch.equal(fast.tokens, plain.tokens)
    assert fast.calls.float().mean() < 0.9 * generator.num_tokens


@pytest.fixture(scope="session")
def trained() -> tuple[Generator, Tensor]:
    """The quickstart's generator after 150 steps on sequences that continue their left and upper neighbours."""
    from imgtok.train.recipes.quickstart import generator as recipe

    torch.manual_seed(0)
    sizes = recipe().model
    config = GeneratorConfig(
        layout=GridLayout(8, 8),
        codebook_size=512,
        condition=LabelConditionConfig(labels=(Label(size=4),)),
        width=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        mlp_hidden=sizes.mlp_hidden,
        embedding_std=sizes.embedding_std,
        dropout=0.0,
    )
    generator, dice = config.build(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(generator.parameters(), 2e-3)
    for _ in range(150):
        labels = torch.randint(4, (16,), generator=dice)
        tokens = torch.zeros(16, 64, dtype=torch.int64)
        steps = torch.randint(6, (16, 64), generator=dice)
        for i in range(64):
            left, upper = (tokens[:, i - back] if i >= back else 100 * labels for back in (1, 8))
            tokens[:, i] = ((left + upper) // 2 + steps[:, i]) % 512
        logits = generator(tokens, labels)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return generator.eval(), torch.arange(12) % 4


@pytest.mark.parametrize("name", ["jacobi-5", "branched", "recalling"])
def test_a_round_compiles_whole_and_never_waits(toy, name):
    generator, condition = toy
    strategy, keys, guidance = PATHWISE[name], image_keys(0, range(3)), Guidance(scale=3.0)
    with torch.no_grad():
        scorer = Scorer(generator, condition, guidance, 3, strategy.window)
        job = Job(generator, condition, LAW, guidance, keys, 24, scorer)
        advance, most = Round(job, strategy), strategy.window + 1
        state = (beginning(3, 24 + most, keys.device), strategy.begin(job), torch.zeros(most + 1, dtype=torch.int64))
        columns = scorer.cache.length
        generator.rope(keys.device)
        with NoSync():
            expected = advance(*state, columns)
        compiled = torch.compile(advance, fullgraph=True, backend="eager")(*state, columns)
    assert torch.equal(compiled[0].tokens, expected[0].tokens)
    assert torch.equal(compiled[0].start, expected[0].start)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Jacobi(window=0), "window must be at least 1, got 0"),
        (lambda: BranchedJacobi(window=8, branches=4, length=2), "leave no chain in a window of 8"),
        (lambda: BranchedJacobi(ranks=1), "at least 2 ranks"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_recalling_refuses_a_codebook_whose_table_would_be_too_large(make_generator):
    config = replace(make_generator(GridLayout(1, 2)).config, codebook_size=5000)
    with torch.device("meta"):
        generator = config.build()
    with pytest.raises(ValueError, match="at most 4096 codes"):
        RecallingJacobi().begin(
            Job(generator, None, LAW, Guidance(), torch.zeros(1, 2, dtype=torch.int32), 2, None)  # type: ignore[arg-type]
        )
