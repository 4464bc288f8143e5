"""Losses against their formulas; one of them over two processes, for which this file runs as a script."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from imgtok.train.losses import (
    adaptive_weight,
    contrastive,
    hinge_discriminator,
    hinge_generator,
    lecam_of_means,
    lecam_regulariser,
    lecam_released,
    non_saturating_discriminator,
    non_saturating_generator,
    reconstruction_l1,
    reconstruction_l2,
)


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_losses_are_means_over_everything() -> None:
    reference = torch.zeros(2, 3, 4, 4)
    images = torch.stack([reference[0] + 0.5, reference[1] - 1])
    assert reconstruction_l1(images, reference).item() == pytest.approx(0.75)
    assert reconstruction_l2(images, reference).item() == pytest.approx(0.625)
    assert reconstruction_l1(images, images).item() == reconstruction_l2(images, images).item() == 0


@pytest.mark.parametrize("loss", [reconstruction_l1, reconstruction_l2])
def test_reconstruction_losses_do_not_broadcast(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\) and reference \(1, 3, 4, 4\) differ"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_losses_of_half_precision_are_float32() -> None:
    half = logits(0).bfloat16()
    for loss in (reconstruction_l1, reconstruction_l2, hinge_discriminator, non_saturating_discriminator):
        assert loss(half, half).dtype == torch.float32
    for loss in (hinge_generator, non_saturating_generator):
        assert loss(half).dtype == torch.float32


def test_hinge_discriminator_has_its_closed_form() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 1.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3) / 2)


def test_hinge_discriminator_has_no_gradient_beyond_its_margins() -> None:
    real, fake = torch.tensor([1.5, 0.5], requires_grad=True), torch.tensor([-1.5, -0.5], requires_grad=True)
    hinge_discriminator(real, fake).backward()
    assert torch.equal(real.grad, torch.tensor([0.0, -0.25]))
    assert torch.equal(fake.grad, torch.tensor([0.0, 0.25]))


def test_hinge_generator_is_minus_the_mean_logit() -> None:
    assert hinge_generator(torch.tensor([1.0, -4.0])).item() == 1.5


def test_non_saturating_losses_are_cross_entropies_with_real_as_one() -> None:
    real, fake = logits(0), logits(1)
    entropy = F.binary_cross_entropy_with_logits
    expected = (entropy(real, torch.ones_like(real)) + entropy(fake, torch.zeros_like(fake))) / 2
    torch.testing.assert_close(non_saturating_discriminator(real, fake), expected)
    torch.testing.assert_close(non_saturating_generator(fake), entropy(fake, torch.ones_like(fake)))


@pytest.mark.parametrize("loss", [hinge_discriminator, non_saturating_discriminator])
def test_discriminator_losses_reward_high_real_and_low_fake_logits(loss: Callable[..., Tensor]) -> None:
    real, fake = logits(0), logits(1)
    right, wrong = loss(real + 2, fake - 2), loss(real - 2, fake + 2)
    assert right < loss(real, fake) < wrong


def test_generator_losses_reward_high_fake_logits() -> None:
    for loss in (hinge_generator, non_saturating_generator):
        assert loss(logits(0) + 1) < loss(logits(0))


def test_non_saturating_losses_stay_finite_for_sure_discriminators() -> None:
    sure = torch.tensor([-500.0], requires_grad=True)
    non_saturating_generator(sure).backward()
    assert sure.grad.item() == pytest.approx(-1)
    assert non_saturating_discriminator(-sure, sure).item() == 0


def toy_losses() -> tuple[Tensor, Tensor, Tensor]:
    """A layer and two losses linear in it, with gradients of norm 5 and 0.5."""
    layer = torch.tensor([1.0, -2.0], requires_grad=True)
    return layer, (torch.tensor([3.0, 4.0]) * layer).sum(), (torch.tensor([0.3, -0.4]) * layer).sum()


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer, reconstruction, generator = toy_losses()
    weight = adaptive_weight(reconstruction, generator, layer)
    assert weight.item() == pytest.approx(5 / (0.5 + 1e-4), rel=1e-6)


def test_adaptive_weight_makes_the_two_gradients_equally_long() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 8, 8, generator=generator)
    layer = torch.randn(3, 4, 3, 3, generator=generator).requires_grad_()
    images = F.conv2d(features, layer)
    first, second = images.square().mean(), (images.sum(1) - 3).abs().mean()
    weighted = adaptive_weight(first, second, layer) * second
    norms = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (first, weighted)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-3, atol=0)


def test_adaptive_weight_is_detached_and_leaves_the_graphs_and_gradients_alone() -> None:
    layer, reconstruction, generator = toy_losses()
    weight = adaptive_weight(reconstruction, generator, layer)
    assert not weight.requires_grad and layer.grad is None
    (reconstruction + weight * generator).backward()
    torch.testing.assert_close(layer.grad, torch.tensor([3.0, 4.0]) + weight * torch.tensor([0.3, -0.4]))


def test_adaptive_weight_is_bounded_where_the_generator_gradient_vanishes() -> None:
    layer, reconstruction, generator = toy_losses()
    assert adaptive_weight(reconstruction, 0 * generator, layer).item() == 1e4
    assert adaptive_weight(reconstruction, generator, layer, max_weight=2.0).item() == 2


def test_adaptive_weight_refuses_a_loss_that_does_not_reach_the_layer() -> None:
    layer, reconstruction, _ = toy_losses()
    other = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="used in the graph"):
        adaptive_weight(reconstruction, 2 * other, layer)


def test_lecam_compares_each_side_with_the_average_of_the_other() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0])
    ema_real, ema_fake = torch.tensor(2.0), torch.tensor(-2.0)
    value = lecam_regulariser(real, fake, ema_real, ema_fake)
    assert value.item() == pytest.approx((3**2 + 5**2) / 2 + 3**2)


def test_lecam_has_no_gradient_to_the_averages() -> None:
    real, fake = logits(0).requires_grad_(), logits(1).requires_grad_()
    ema_real, ema_fake = torch.tensor(0.5, requires_grad=True), torch.tensor(-0.5, requires_grad=True)
    lecam_regulariser(real, fake, ema_real, ema_fake).backward()
    torch.testing.assert_close(real.grad, 2 * (real.detach() + 0.5) / real.numel())
    torch.testing.assert_close(fake.grad, 2 * (fake.detach() - 0.5) / fake.numel())
    assert ema_real.grad is None and ema_fake.grad is None


def test_lecam_as_released_counts_what_is_on_its_own_side_alone() -> None:
    real, fake = torch.tensor([1.0, -3.0], requires_grad=True), torch.tensor([-1.0, 4.0], requires_grad=True)
    value = lecam_released(real, fake, torch.tensor(2.0), torch.tensor(-2.0))
    assert value.item() == pytest.approx(3**2 / 2 + 3**2 / 2)  # -3 lies below -2, and 4 above 2
    value.backward()
    assert real.grad.tolist() == [3, 0] and fake.grad.tolist() == [-3, 0]


def test_lecam_of_means_sees_the_batch_as_one() -> None:
    real, fake = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([-1.0, 2.0], requires_grad=True)
    value = lecam_of_means(real, fake, torch.tensor(2.0), torch.tensor(-2.0))
    assert value.item() == pytest.approx(1.5**2 + 1.5**2)
    value.backward()
    assert real.grad.tolist() == [1.5, 1.5] and fake.grad.tolist() == [-1.5, -1.5]
    assert lecam_of_means(real, fake, torch.tensor(0.0), torch.tensor(0.0)).item() == 0  # -0.5 and 0.5 lie beyond


def rows(seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def test_contrastive_is_that_of_a_hand_computation() -> None:
    """Products 1, 2 / 0, 1: each row and column is a choice between two."""
    codes, features = torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    low, high = torch.sigmoid(torch.tensor(-1.0)).log(), torch.sigmoid(torch.tensor(1.0)).log()
    expected = -((low + high) / 2 + (high + low) / 2) / 2  # rows 1 2 and 0 1; columns 1 0 and 2 1
    torch.testing.assert_close(contrastive(codes, features), expected)


def test_contrastive_has_the_gradient_of_a_softmax() -> None:
    codes, features = rows(0).requires_grad_(), rows(1).requires_grad_()
    contrastive(codes, features, scale=0.5).backward()
    products = 0.5 * codes.detach() @ features.detach().T
    error = (products.softmax(1) - torch.eye(6) + products.softmax(0) - torch.eye(6)) / 12
    torch.testing.assert_close(codes.grad, 0.5 * error @ features.detach())
    torch.testing.assert_close(features.grad, 0.5 * error.T @ codes.detach())


def test_contrastive_compares_lengths_unless_told_not_to() -> None:
    codes, features = rows(0), rows(1)
    unit = contrastive(codes, features, normalize=True)
    torch.testing.assert_close(contrastive(5 * codes, features, normalize=True), unit)
    torch.testing.assert_close(contrastive(F.normalize(codes, dim=1), F.normalize(features, dim=1)), unit)
    assert (contrastive(5 * codes, features) - contrastive(codes, features)).abs() > 0.1
    torch.testing.assert_close(
        contrastive(codes[:1].expand(6, -1), features[:1].expand(6, -1)), torch.tensor(6.0).log()
    )


def test_contrastive_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"codes \(6, 3\) and features \(1, 3\) differ"):
        contrastive(rows(0), rows(1, count=1))


def half_of_the_batch(rank: int, place: Path) -> None:
    """What a process of two computes: the loss, and its own gradients."""
    dist.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=2)
    part = slice(3 * rank, 3 * rank + 3)
    codes, features = rows(0)[part].requires_grad_(), rows(1)[part].requires_grad_()
    loss = contrastive(codes, features)
    loss.backward()
    torch.save((loss.detach(), codes.grad, features.grad), place / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_contrast_with_the_whole_batch(tmp_path: Path) -> None:
    """The value is that of all rows; gradients, averaged over the two as data parallelism does, are too."""
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    codes, features = rows(0).requires_grad_(), rows(1).requires_grad_()
    loss = contrastive(codes, features)
    loss.backward()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for own, _, _ in found:
        torch.testing.assert_close(own, loss.detach())
    for place, whole in ((1, codes.grad), (2, features.grad)):
        torch.testing.assert_close(torch.cat([each[place] for each in found]) / 2, whole)


if __name__ == "__main__":
    half_of_the_batch(int(sys.argv[2]), Path(sys.argv[1]))
