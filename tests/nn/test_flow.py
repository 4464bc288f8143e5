"""Rectified flow: of Gaussian data the velocity is known, and so is what solvers, guidance and schedules must give."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imgtok.nn.flow import (
    FlowGuidance,
    FlowSolver,
    FlowTimes,
    TimeEmbedding,
    logit_normal,
    noised,
    velocity_target,
    wave_features,
)

MEAN, STD = 1.5, 0.3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_velocity(x: Tensor, t: float) -> Tensor:
    """E[noise - data | x] where data is N(MEAN, STD^2): linear in x."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN) - MEAN


def exact(start: Tensor) -> Tensor:
    """Where the flow of `gaussian_velocity` carries noise: the same quantile of the data."""
    return MEAN + STD * start


def error(solver: FlowSolver) -> float:
    start = noise(1000)
    return float((solver.solve(gaussian_velocity, start) - exact(start)).abs().max())


def test_a_line_from_data_to_noise_with_its_velocity():
    data, end = noise(3, 4, 2), noise(3, 4, 2, seed=1)
    assert torch.equal(noised(data, end, torch.zeros(3)), data)
    assert torch.equal(noised(data, end, torch.ones(3)), end)
    times, step = torch.tensor([0.1, 0.5, 0.7], dtype=torch.float64), 0.25
    moved = noised(data, end, times) + step * velocity_target(data, end)
    torch.testing.assert_close(moved, noised(data, end, times + step))


def test_the_least_squares_velocity_of_gaussian_data_is_the_one_used_here():
    """Regression of the target on x at one time, 200000 draws: both coefficients within 5 standard errors."""
    count, t = 200_000, 0.4
    data, end = MEAN + STD * noise(count), noise(count, seed=1)
    x, target = noised(data, end, torch.full((count,), t)), velocity_target(data, end)
    residual = target - gaussian_velocity(x, t)
    for weights in (torch.ones_like(x), x - x.mean()):
        assert abs((residual * weights).mean()) < 5 * (residual * weights).std() / math.sqrt(count)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_at_their_order(method, order):
    coarse, fine = error(FlowSolver(num_steps=64, method=method)), error(FlowSolver(num_steps=128, method=method))
    assert order - 0.2 < math.log2(coarse / fine) < order + 0.4


def test_heun_is_nearer_for_as_many_evaluations():
    assert error(FlowSolver(num_steps=10, method="heun")) < error(FlowSolver(num_steps=19)) / 2


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_a_constant_velocity_takes_one_step(method):
    data, end = noise(5), noise(5, seed=1)
    solved = FlowSolver(num_steps=1, method=method).solve(lambda x, t: velocity_target(data, end), end)
    torch.testing.assert_close(solved, data)


@pytest.mark.parametrize(("method", "expected"), [("euler", [1, 0.5]), ("heun", [1, 0.5, 0.5])])
def test_the_velocity_is_asked_for_where_networks_know_it(method, expected):
    asked: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return x

    FlowSolver(num_steps=2, method=method).solve(velocity, noise(3))
    assert asked == expected


def test_schedules_fall_from_one_to_zero_and_a_shift_keeps_to_the_noise():
    assert FlowSolver(num_steps=4).times() == [1, 0.75, 0.5, 0.25, 0]
    shifted = FlowSolver(num_steps=4, shift=3.0).times()
    assert shifted == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert shifted[0] == 1 and shifted[-1] == 0
    ratio = [t / (1 - t) for t in shifted[1:-1]]  # noise to data: three times as much as without
    assert ratio == pytest.approx([3 * t / (1 - t) for t in (0.75, 0.5, 0.25)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"num_steps": 0}, "num_steps must be at least 1, got 0"), ({"shift": 0.0}, "shift must be a positive")],
)
def test_impossible_solvers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FlowSolver(**wrong)


def test_plain_guidance_is_the_usual_formula():
    one, null = noise(3, 2, 4), noise(3, 2, 4, seed=1)
    guide = FlowGuidance(scale=2.5).build()
    for _ in range(2):  # without a momentum, earlier steps do not matter
        torch.testing.assert_close(guide(one, null), (null + 2.5 * (one - null)).float())


def test_projected_guidance_adds_what_is_orthogonal_and_no_longer_than_the_limit():
    one, null = noise(3, 2, 4), noise(3, 2, 4, seed=1)
    guided = FlowGuidance(scale=3.0, max_norm=0.5, parallel=0.0).build()(one, null).double()
    added = (guided - one).flatten(1)
    torch.testing.assert_close((added * one.flatten(1)).sum(1), torch.zeros(3).double(), atol=1e-5, rtol=0)
    assert (added.norm(dim=1) <= 2 * 0.5 + 1e-6).all()
    difference = one - null
    limited = FlowGuidance(scale=3.0, max_norm=0.5).build()(one, null).double()
    expected = one + 2 * 0.5 * difference / difference.flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close(limited, expected, atol=1e-5, rtol=0)


def test_a_difference_remembers_those_before():
    one, null = noise(3, 2, 4), noise(3, 2, 4, seed=1)
    guide, d = FlowGuidance(scale=2.0, momentum=-0.5).build(), one - null
    for factor in (1, 0.5, 0.75):  # 1 - 0.5 (1 - 0.5 (1))
        torch.testing.assert_close(guide(one, null).double(), one + factor * d, atol=1e-5, rtol=0)


def test_times_for_training_are_most_often_in_the_middle():
    times = logit_normal(noise(100_000))
    assert ((times > 0) & (times < 1)).all()
    share = float((times < 0.25).double().mean())  # P(normal < log(1/3))
    expected = 0.5 * (1 + math.erf(math.log(1 / 3) / math.sqrt(2)))
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 100_000)


LAWS = [FlowTimes(), FlowTimes(mean=-0.5, std=0.7), FlowTimes(law="mode"), FlowTimes(law="mode", scale=1.29)]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("stratified", [False, True])
def test_drawn_times_lie_below_the_quantiles_as_often_as_these_say(law, stratified):
    """20,000 times: the share below each quantile within 5 standard deviations of it."""
    times = replace(law, stratified=stratified).draw(20_000, torch.Generator().manual_seed(0))
    assert ((times >= 0) & (times <= 1)).all()
    for share in (0.1, 0.5, 0.8):
        below = float((times < law.at(torch.tensor(share))).double().mean())
        assert abs(below - share) < 5 * math.sqrt(share * (1 - share) / 20_000)


def test_laws_of_times_are_the_published_ones():
    shares = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0).icdf(shares)
    torch.testing.assert_close(FlowTimes(mean=0.3, std=2.0).at(shares), logit_normal(normal, 0.3, 2.0))
    torch.testing.assert_close(FlowTimes(law="mode").at(shares), shares)  # without a scale uniform
    middle = FlowTimes(law="mode", scale=1.0).at(torch.tensor([0.0, 0.4, 0.6, 1.0], dtype=torch.float64))
    assert middle[0] == pytest.approx(0) and middle[3] == pytest.approx(1)
    assert middle[2] - middle[1] < 0.2  # the middle fifth of the draws lies closer together: it is learnt more often


def test_stratified_times_are_spread_over_the_law():
    times = FlowTimes(stratified=True).draw(16, torch.Generator().manual_seed(0)).sort().values
    edges = FlowTimes().at(torch.arange(17) / 16)
    assert ((times >= edges[:-1]) & (times <= edges[1:])).all()


def test_times_that_would_turn_back_are_refused():
    with pytest.raises(ValueError, match=r"scale -1 to 1\.752"):
        FlowTimes(law="mode", scale=1.8)


def test_waves_are_cosines_then_sines_of_falling_frequencies():
    times = torch.tensor([0.0, 1.0, 10.0])
    features = wave_features(times, 8, 16.0)
    assert features[0].tolist() == [1] * 4 + [0] * 4
    for i, frequency in enumerate([1, 1 / 2, 1 / 4, 1 / 8]):
        torch.testing.assert_close(features[:, i], (times * frequency).cos())
        torch.testing.assert_close(features[:, 4 + i], (times * frequency).sin())


def test_a_time_embedding_tells_times_apart_and_keeps_its_type():
    embedding = TimeEmbedding(12, waves=8).bfloat16()
    out = embedding(torch.tensor([0.0, 0.001, 1.0]))
    assert out.shape == (3, 12) and out.dtype == torch.bfloat16
    assert len(out.unique(dim=0)) == 3
