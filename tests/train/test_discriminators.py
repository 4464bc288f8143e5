import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok import config
from imgtok.backbones.vit import ImageFeaturesConfig, ViTConfig
from imgtok.train.augment import AugmentConfig
from imgtok.train.discriminators import (
    Blur,
    BlurredPatchGANConfig,
    FrozenDiscriminator,
    FrozenFeaturesConfig,
    PatchGAN,
    PatchGANConfig,
    Residual,
    VirtualBatchNorm,
)
from imgtok.train.levels import ConvLevels, ViTLevels, levels_of

STILL = AugmentConfig(translation=0.0, colour=False, cutout=0.0)
HEADS = FrozenFeaturesConfig(size=32, kernel=3, virtual_batch=2)
VIT = ImageFeaturesConfig(vit=ViTConfig(width=12, depth=3, num_heads=2), patch_size=8, grid=(4, 4))


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


def test_the_blurred_ones_default_sizes_are_the_published_ones() -> None:
    with torch.device("meta"):
        layers = BlurredPatchGANConfig().build().layers
    shapes = [tuple(module.weight.shape) for module in layers.modules() if isinstance(module, nn.Conv2d)]
    halved = [(128, 128, 3, 3), (256, 128, 3, 3), (512, 256, 3, 3)]
    assert shapes == [(128, 3, 5, 5), *halved, (512, 512, 1, 1), (1, 512, 5, 5)]
    assert [module.num_groups for module in layers.modules() if isinstance(module, nn.GroupNorm)] == [32, 32, 32]


@pytest.mark.parametrize("size", [64, 37, 8])
def test_the_blurred_one_judges_as_many_places_of_pictures_of_any_size(size: int) -> None:
    discriminator, x = BlurredPatchGANConfig(width=8, places=4).build(), images(size).requires_grad_()
    logits = discriminator(x)
    assert logits.shape == (2, 1, 4, 4)
    logits.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert not any("kernel" in name for name in discriminator.state_dict())


def test_a_blur_weights_neighbours_and_drops_every_other_place() -> None:
    row = torch.arange(6.0).expand(1, 2, 6, 6)
    blurred = Blur()(row)
    assert blurred.shape == (1, 2, 3, 3) and Blur()(row[..., :5]).shape == (1, 2, 3, 3)
    torch.testing.assert_close(blurred[0, :, 1], torch.tensor([(0 + 3 + 2) / 8, 2.5, (3 + 12 + 15) / 8]).expand(2, 3))


@pytest.mark.parametrize("name", ["width", "num_layers", "places"])
def test_blurred_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"discriminator.{name} must be at least 1, got 0"):
        BlurredPatchGANConfig(**{name: 0})


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


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vit_levels() -> ViTLevels:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViTLevels(VIT.build(), (0, 2))


def frozen(**changes: object) -> FrozenDiscriminator:
    """On a small vision transformer."""
    levels = vit_levels()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FrozenDiscriminator(levels, replace(HEADS, **changes))


def test_levels_are_what_the_blocks_give_patches_plus_the_class_token() -> None:
    levels, x = vit_levels(), images(32)
    network = levels.network
    tokens = network.patches((x * 0.5 + 0.5 - levels.mean) / levels.std)
    expected = [tokens]
    for block in network.vit.blocks:
        tokens = block(tokens, None)
        expected.append(tokens)
    found = levels(x)
    assert levels.widths == (12, 12, 12)
    for level, tokens in zip(found, (expected[0], expected[1], expected[3]), strict=True):
        torch.testing.assert_close(level, (tokens[:, 1:] + tokens[:, :1]).transpose(1, 2))


def test_there_is_a_logit_for_every_token_of_every_depth() -> None:
    discriminator, x = frozen(), images(48, count=3)
    assert discriminator(x, seeded()).shape == (3, 3 * 16)


def test_gradients_reach_the_heads_and_the_pictures_but_not_the_frozen_network() -> None:
    discriminator, x = frozen(), images(32, count=4).requires_grad_()
    discriminator(x, seeded()).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    # Normalisation removes the bias before it.
    weights = [p for name, p in discriminator.named_parameters() if not name.endswith("bias") or ".1." in name]
    assert all(p.grad.abs().sum() > 0 for p in weights)
    assert all(p.grad is None and not p.requires_grad for p in discriminator.companions[0].parameters())


def test_the_frozen_network_is_neither_trained_nor_saved_nor_put_into_training_mode() -> None:
    discriminator = frozen().train()
    (levels,) = discriminator.companions
    assert not levels.training and not any(module.training for module in levels.modules())
    assert all(name.startswith("heads.") for name in discriminator.state_dict())
    discriminator.requires_grad_(False).requires_grad_(True)
    assert not any(p.requires_grad for p in levels.parameters())
    assert discriminator.hidden_weights() == []


def test_what_is_random_is_the_generators() -> None:
    discriminator, x = frozen().eval(), images(48)
    one, same, other = (discriminator(x, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.allclose(one, other)
    still = frozen(augment=STILL).eval()
    small = images(32)  # neither cropped nor resized nor augmented: nothing is drawn that matters
    assert torch.equal(still(small, seeded(3)), still(small, seeded(4)))


def test_weights_have_a_spectral_norm_of_one() -> None:
    discriminator = frozen()
    for _ in range(30):  # power iterations
        discriminator(images(32), seeded())
    convolutions = [module for module in discriminator.eval().modules() if isinstance(module, nn.Conv1d)]
    assert len(convolutions) == 3 * 3
    for layer in convolutions:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_heads_read_the_tokens_as_a_ring() -> None:
    """Turned tokens give turned logits, where a border would show."""
    head = frozen(kernel=5).heads[0].eval()
    x = torch.randn(2, 12, 16, generator=seeded())
    torch.testing.assert_close(head(x.roll(3, -1)), head(x).roll(3, -1), atol=1e-5, rtol=1e-4)


def test_a_residual_keeps_the_variance_of_what_is_independent() -> None:
    x = torch.randn(100_000, generator=seeded())
    doubled = Residual(nn.Identity())(x)
    torch.testing.assert_close(doubled, x * math.sqrt(2))

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=seeded(1))

    assert Residual(Other())(x).var().item() == pytest.approx(1, abs=0.03)


def test_virtual_batches_are_normalised_by_themselves() -> None:
    norm, x = VirtualBatchNorm(5, 4), 3 + 2 * torch.randn(10, 5, 7, generator=seeded())
    found = norm.eval()(x)
    for part in (x[:4], x[4:7], x[7:]):  # three of at most four, cut evenly
        expected = F.batch_norm(part, None, None, training=True, eps=1e-6)
        start = next(i for i in range(10) if torch.equal(x[i], part[0]))
        torch.testing.assert_close(found[start : start + len(part)], expected)
    torch.testing.assert_close(norm(x[:4]), found[:4])  # whatever else is in the batch


def test_a_frozen_discriminator_learns_to_tell_two_textures_apart() -> None:
    """Although each batch is normalised by itself, and the features are those of a random network."""
    discriminator = frozen(augment=STILL, virtual_batch=8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    real, fake = images(32, count=8), images(8, count=8).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def logits() -> list[Tensor]:
        return [discriminator(pictures, seeded()) for pictures in (real, fake)]

    assert (logits()[0].mean() - logits()[1].mean()).abs() < 0.05
    for _ in range(40):
        high, low = logits()
        loss = (1 - high).relu().mean() + (1 + low).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits()[0].mean() - logits()[1].mean() > 0.15


def test_efficientnet_stands_in_for_dino() -> None:
    levels = levels_of("efficientnet-lite0")
    assert isinstance(levels, ConvLevels)
    x = images(64, count=1).requires_grad_()
    found = levels(x)
    assert [tuple(level.shape) for level in found] == [(1, 40, 64), (1, 112, 16), (1, 320, 4)]
    found[-1].sum().backward()
    assert x.grad.abs().sum() > 0
    config = FrozenFeaturesConfig(network="efficientnet-lite0", size=64, kernel=3)
    assert config.build()(images(64), seeded()).shape == (2, 64 + 16 + 4)


def test_dino_without_timm_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install imgtok\[teachers\], or give a file of its weights"):
        FrozenFeaturesConfig().build()


def test_configs_of_frozen_features_survive_json_and_refuse_what_cannot_be() -> None:
    chosen = FrozenFeaturesConfig(network="efficientnet-lite0", augment=STILL)
    assert config.from_dict(FrozenFeaturesConfig, config.to_dict(chosen)) == chosen
    for values, message in (
        ({"size": 100}, "multiple of 16, got 100"),
        ({"kernel": 4}, "must be odd and at least 1, got 4"),
        ({"virtual_batch": 0}, "virtual_batch must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FrozenFeaturesConfig(**values)
