"""Compiled rounds: the same tokens, compiled once for many batches, and never with weights of yesterday."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from imgtok.generators.pack import packed
from imgtok.sample.compiled import can_compile, compiling
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, Statistics, generate_tokens
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.law import Law
from imgtok.sample.plain import Plain
from imgtok.sample.strategies import Parts, build_strategy
from imgtok.sample.tuner import call_seconds
from imgtok.tokens import GridLayout

compiler = pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler here")


def drawn(pair, *, compile: bool, statistics: Statistics | None = None, **config) -> torch.Tensor:
    sampler = SamplerConfig(law=Law(top_k=6), compile=compile, **config)
    return torch.cat(list(generate_tokens(*pair, sampler, seed=3, statistics=statistics)))


@pytest.mark.slow
@compiler
def test_compiled_rounds_draw_the_same_are_compiled_once_and_see_new_weights(make_generator):
    """One test, as compiling takes most of its time."""
    generator = make_generator(GridLayout(3, 4))
    pair = generator, torch.tensor([[0, 1], [3, 0]]).repeat(3, 1)
    options = {"strategy": Jacobi(window=3), "guidance": Guidance(scale=3.0), "batch_size": 2}
    counters.clear()
    statistics = Statistics()
    first = drawn(pair, compile=True, statistics=statistics, **options)
    assert torch.equal(first, drawn(pair, compile=False, **options))
    assert set(statistics.seconds) == {"rounds"}
    assert torch.equal(first, drawn(pair, compile=True, **options))
    assert counters["stats"]["unique_graphs"] == 1  # three batches of two, twice
    with torch.no_grad():
        generator.head.logits.weight.neg_()
    second = drawn(pair, compile=True, **options)
    assert torch.equal(second, drawn(pair, compile=False, **options))
    assert not torch.equal(first, second)


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "branched"])
def test_other_strategies_keep_their_word_when_compiled(make_generator, name):
    generator = make_generator(GridLayout(3, 4))
    parts = Parts(generator=generator)
    pair = generator, torch.tensor([[0, 1], [3, 0]])
    options = {"guidance": Guidance(scale=2.0, steps=5)}
    fast = drawn(pair, compile=True, strategy=build_strategy(name, parts), **options)
    assert torch.equal(fast, drawn(pair, compile=False, strategy=Plain(), **options))


@compiler
@pytest.mark.slow
def test_the_tuner_can_measure_compiled_calls(pair):
    assert call_seconds(pair[0], Guidance(scale=2.0), 2, 4, compile=True) > 0


def test_those_who_do_not_compile_do_not_wait_for_the_compiler():
    """It takes a second to import."""
    code = "import sys, imgtok.sample.cli, imgtok.sample.images; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_packed_generator_is_refused(pair):
    generator, condition = pair
    with pytest.raises(ValueError, match="a packed generator cannot be compiled"):
        drawn((packed(generator), condition), compile=True)


def test_a_missing_compiler_is_told(pair, monkeypatch):
    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"), compiling(lambda: None, pair[0], "columns"):
        pass
