"""Strategies by name."""

import re
from pathlib import Path

import pytest
import torch

from imgtok.sample.images import SamplerConfig, generate_tokens
from imgtok.sample.law import Law
from imgtok.sample.plain import Plain
from imgtok.sample.strategies import ENTRIES, Parts, build_strategy
from imgtok.tokens import GridLayout


@pytest.fixture
def parts(make_generator):
    generator = make_generator(GridLayout(3, 4))
    codes = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    return Parts(generator=generator, draft=make_generator(GridLayout(3, 4), depth=1), codes=codes)


@pytest.mark.parametrize("name", ENTRIES)
def test_each_draws_and_guarantees_what_its_entry_says(parts, name):
    strategy, entry = build_strategy(name, parts), ENTRIES[name]
    assert strategy.guarantee == entry.guarantee
    condition = torch.tensor([[0, 1], [3, 0]])
    drawn, plain = (
        next(generate_tokens(parts.generator, condition, SamplerConfig(law=Law(top_k=6), strategy=way), seed=1))
        for way in (strategy, Plain())
    )
    assert drawn.shape == (2, 12)
    if entry.guarantee == "pathwise":
        assert torch.equal(drawn, plain)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.needs_draft])
def test_a_missing_draft_model_is_told(parts, name):
    with pytest.raises(ValueError, match=f"strategy '{name}' needs a draft model"):
        build_strategy(name, Parts(generator=parts.generator, codes=parts.codes))


def test_the_window_can_be_chosen_where_there_is_one(parts):
    assert build_strategy("jacobi", parts, window=7).window == 7
    assert build_strategy("draft", parts, window=2).window == 2
    for name in ("plain", "tree"):
        with pytest.raises(ValueError, match=f"strategy '{name}' has no window to choose"):
            build_strategy(name, parts, window=7)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        build_strategy("jacobi", parts, window=0)


def test_an_unknown_name_is_told(parts):
    with pytest.raises(ValueError, match="strategy 'jakobi' is unknown; choose from auto, plain, jacobi"):
        build_strategy("jakobi", parts)


def test_the_strategy_that_the_documentation_shows_keeps_its_word(make_generator):
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    (block,) = (
        block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "class RepeatLeft" in block
    )
    names: dict[str, object] = {}
    exec(compile(block, "docs/sampling.md", "exec"), names)
    generator, condition = make_generator(GridLayout(3, 4)), torch.tensor([[0, 1], [3, 0]])
    strategy = names["RepeatLeft"](window=3)  # type: ignore[operator]
    drawn = [next(generate_tokens(generator, condition, SamplerConfig(strategy=way))) for way in (Plain(), strategy)]
    assert torch.equal(*drawn)
