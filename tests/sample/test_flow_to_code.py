"""The flow from noise to codes, against known points of it and against the laws it must end in."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from imgtok.sample.flow_to_code import flow_to_code, velocity

from . import oracles


def rows(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", oracles.cases("flow_to_code"))
def test_points_move_as_fast_as_known(case):
    inputs, known = case["inputs"], case["expected"]["velocities"]
    assert known
    for point in known:
        found = velocity(rows([point["x"]]), point["t"], rows([inputs["probs"]]), rows(inputs["codes"]))
        oracles.close(case, found[0], point["velocity"], f"{point['x']} at {point['t']}")


@pytest.mark.parametrize("case", oracles.cases("flow_to_code"))
def test_noise_flows_to_the_known_code(case):
    inputs, known = case["inputs"], case["expected"]["noise_to_code"]
    noise, probs = rows([end["noise"] for end in known]), rows([inputs["probs"]] * len(known))
    found = flow_to_code(noise, probs, rows(inputs["codes"]))
    assert found.tolist() == [end["nearest_code"] for end in known]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_line_the_code_is_the_quantile_of_the_noise(dtype):
    """There the flow cannot change the order of points, and only one map that keeps it leads to the law."""
    dice = torch.Generator().manual_seed(0)
    codes, law = torch.randn(16, 1, generator=dice).to(dtype), torch.randn(16, generator=dice).softmax(-1).to(dtype)
    noise = torch.linspace(-3.5, 3.5, 2001, dtype=dtype)[:, None]
    order = codes[:, 0].argsort()
    quantiles = torch.from_numpy(stats.norm.cdf(noise[:, 0].double().numpy()))
    expected = order[torch.searchsorted(law[order].double().cumsum(0), quantiles)]
    assert torch.equal(flow_to_code(noise, law.expand(2001, -1), codes), expected)
    assert expected.unique().numel() > 12


def test_codes_come_as_often_as_the_law_says():
    """Chi-square from 20,000 draws; a right map exceeds the bound once in a million tries."""
    dice, draws = torch.Generator().manual_seed(0), 20_000
    codes, law = torch.randn(8, 3, generator=dice), torch.randn(8, generator=dice).softmax(-1)
    found = flow_to_code(torch.randn(draws, 3, generator=dice), law.expand(draws, -1), codes, steps=50)
    counts, expected = torch.bincount(found, minlength=8), law * draws
    assert expected.min() > 10
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(1 - 1e-6, 7)


def test_each_row_has_a_law_of_its_own_and_misses_what_that_rules_out():
    dice = torch.Generator().manual_seed(0)
    codes, noise = torch.randn(5, 2, generator=dice), torch.randn(40, 2, generator=dice)
    probs = torch.randn(40, 5, generator=dice).softmax(-1).masked_fill(torch.rand(40, 5, generator=dice) < 0.4, 0.0)
    probs[:, 0] += 1e-3
    probs /= probs.sum(-1, keepdim=True)
    found = flow_to_code(noise, probs, codes)
    assert (probs.gather(1, found[:, None]) > 0).all()
    assert found.tolist() == [flow_to_code(noise[[i]], probs[[i]], codes).item() for i in range(40)]
