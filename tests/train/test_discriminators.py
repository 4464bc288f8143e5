import pytest
import torch
from torch import Tensor, nn

from imgtok import config
from imgtok.train.discriminators import PatchGAN, PatchGANConfig


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def built(**changes: object) -> PatchGAN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PatchGANConfig(**changes).build()


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_small_pictures_give_a_map_of_logits_and_gradients_everywhere(norm: str) -> None:
    discriminator, x = built(width=8, norm=norm), images(64).requires_grad_()
    logits = discriminator(x)
    assert logits.shape == (2, 1, 6, 6)
    logits.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_default_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        discriminator = PatchGANConfig().build()
    shapes = [tuple(module.weight.shape) for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert shapes == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633


def test_widths_stop_at_eight_times_the_first() -> None:
    with torch.device("meta"):
        discriminator = PatchGANConfig(width=4, num_layers=5).build()
    widths = [module.out_channels for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_each_logit_judges_one_patch(num_layers: int, patch: int) -> None:
    discriminator, x = built(width=2, num_layers=num_layers, norm="none"), images(128, count=1).requires_grad_()
    logits = discriminator(x)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = x.grad.abs().sum((0, 1))
    assert (seen.sum(0) > 0).sum() == (seen.sum(1) > 0).sum() == patch


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_smallest_picture_gives_one_logit_and_smaller_ones_are_refused(num_layers: int) -> None:
    discriminator, least = built(width=2, num_layers=num_layers, norm="none"), 3 * 2**num_layers
    assert discriminator(images(least)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match=f"smaller than {least}x{least}; use fewer num_layers"):
        discriminator(images(least)[..., 1:])


def test_weights_start_small_and_biases_at_zero() -> None:
    discriminator = built()
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.weight.mean().item() == pytest.approx(0, abs=0.002)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert 0.01 < module.weight.std().item() < 0.03
    biases = [value for name, value in discriminator.named_parameters() if name.endswith("bias")]
    assert len(biases) == 5 and not any(bias.any() for bias in biases)


def test_only_batch_normalisation_lets_pictures_see_each_other() -> None:
    x = images(32, count=3)
    for norm, alone in [("batch", False), ("group", True), ("none", True)]:
        discriminator = built(width=8, norm=norm)
        assert torch.allclose(discriminator(x)[:1], discriminator(x[:1]), atol=1e-5) == alone


def test_group_normalisation_takes_widths_that_32_does_not_divide() -> None:
    assert built(width=5, norm="group")(images(24)).isfinite().all()


def test_a_discriminator_learns_to_tell_two_textures_apart() -> None:
    discriminator = built(width=8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    real, fake = images(32, count=4), images(8, count=4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for _ in range(30):
        loss = (1 - discriminator(real)).relu().mean() + (1 + discriminator(fake)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert discriminator(real).mean() > 0.5 > -0.5 > discriminator(fake).mean()


def test_config_survives_json_and_refuses_what_cannot_be_built() -> None:
    chosen = PatchGANConfig(width=32, num_layers=2, norm="group")
    assert config.from_dict(PatchGANConfig, config.to_dict(chosen)) == chosen
    with pytest.raises(ValueError, match="'instance' is unknown"):
        PatchGANConfig(norm="instance")
    with pytest.raises(ValueError, match="num_layers 0 must both be at least 1"):
        PatchGANConfig(num_layers=0)
