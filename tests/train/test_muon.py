"""Muon: its steps are nearly orthogonal, keep shapes, and learn."""

import pytest
import torch
from torch import Tensor, nn

from imgtok.train.config import OptimizerConfig
from imgtok.train.loop import optimizers_of
from imgtok.train.muon import Muon, orthogonal


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 64), (2, 64, 16)])
def test_all_directions_of_a_step_are_about_equally_long(shape):
    singular = torch.linalg.svdvals(orthogonal(noise(*shape)))
    assert singular.min() > 0.5  # of a square matrix, the smallest directions are not quite reached
    assert singular.max() < 1.3


def test_a_step_points_where_the_matrix_does():
    matrices = noise(2, 12, 30)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    steps = orthogonal(matrices).flatten(1)
    assert (torch.nn.functional.cosine_similarity(steps, (u @ v).flatten(1)) > 0.97).all()


def test_the_length_of_a_step_is_the_learning_rate():
    """All singular values of lr * sqrt(out / in): the root mean square follows from their number."""
    tall = nn.Parameter(torch.zeros(64, 16))
    tall.grad = noise(64, 16)
    Muon([tall], lr=0.1).step()
    expected = 0.1 * (64 / 16) ** 0.5 * (16 / (64 * 16)) ** 0.5
    assert tall.detach().square().mean().sqrt() == pytest.approx(expected, rel=0.15)


def test_convolutions_and_matrices_learn_together_and_weights_without_gradient_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))
    idle = nn.Parameter(torch.ones(4, 4))
    weights = [p for p in model.parameters() if p.ndim == 4]
    optimizer = Muon([*weights, idle], lr=0.02, weight_decay=0.1)
    images = noise(4, 3, 8, 8)
    losses = []
    for _ in range(60):
        loss = (model(images) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert torch.equal(idle, torch.ones(4, 4))


class Twin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)

    def hidden_weights(self) -> list[nn.Parameter]:
        return [self.inner.weight]


@pytest.mark.parametrize("muon_lr", [0.0, 0.02])
def test_each_parameter_has_one_optimiser(muon_lr):
    twin = Twin()
    optimizers = optimizers_of(twin, OptimizerConfig(muon_lr=muon_lr))
    moved = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, moved)) == sorted(map(id, twin.parameters()))
    assert len(optimizers) == (2 if muon_lr else 1)
    if muon_lr:
        assert optimizers[1].param_groups[0]["params"] == [twin.inner.weight]
