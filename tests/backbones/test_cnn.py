"""The convolutional autoencoder."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from imgtok.backbones.cnn import CNNConfig
from imgtok.nn.resnet import ResBlock, SpatialAttention

CONFIG = CNNConfig(
    encoder_widths=(8, 16),
    decoder_widths=(8, 12),
    encoder_blocks=(1, 2),
    decoder_blocks=(2, 1),
    latent_channels=6,
    norm_groups=4,
)
PATCHED = replace(
    CONFIG, encoder_patch=4, decoder_patch=2, decoder_widths=(8, 8, 12), decoder_blocks=(1, 1, 1), resample="shuffle"
)
LOCAL = replace(PATCHED, bottleneck=False, encoder_norm_groups=0, encoder_kernel=1)
variants = pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        PATCHED,
        replace(CONFIG, bottleneck=False),
        replace(CONFIG, stem_width=4, resample="shuffle"),
        replace(PATCHED, encoder_norm_groups=0, encoder_kernel=1),
    ],
    ids=["plain", "patched", "no-bottleneck", "stem", "local"],
)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def modules(parent: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in parent.modules())


@variants
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 5)])
def test_any_grid_goes_in_and_comes_out(config, rows, columns):
    cnn, r = config.build().eval(), config.reduction
    images = noise(2, 3, rows * r, columns * r)
    latents = cnn.encode(images)
    assert latents.shape == (2, rows, columns, 6)
    assert cnn.decode(latents).shape == images.shape


@variants
def test_any_batch_split_is_the_whole(config):
    cnn = config.build().eval()
    images = noise(3, 3, 2 * config.reduction, 3 * config.reduction)
    latents = cnn.encode(images)
    torch.testing.assert_close(torch.cat([cnn.encode(images[:1]), cnn.encode(images[1:])]), latents)
    torch.testing.assert_close(torch.cat([cnn.decode(latents[:2]), cnn.decode(latents[2:])]), cnn.decode(latents))


def test_without_gradients_few_pixels_at_a_time_are_on_the_way_and_the_result_is_the_same():
    cnn, seen = CONFIG.build().eval(), list[int]()
    cnn.most_pixels = 500
    for half in (cnn.encoder, cnn.decoder):
        half.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    images = noise(5, 3, 14, 16)
    latents = cnn.encode(images)
    whole = cnn.decode(latents)
    assert seen == [5, 5]
    with torch.no_grad():
        torch.testing.assert_close(cnn.encode(images), latents)
        torch.testing.assert_close(cnn.decode(latents), whole)
        assert seen[2:] == [2, 2, 1, 2, 2, 1]
        assert cnn.decode(latents[:0]).shape == (0, 3, 14, 16)


@variants
def test_every_parameter_is_used(config):
    cnn = config.build()
    cnn.decode(cnn.encode(noise(2, 3, 2 * config.reduction, 2 * config.reduction))).square().sum().backward()
    assert [name for name, parameter in cnn.named_parameters() if parameter.grad is None] == []


def test_the_reduction_counts_patches_and_levels():
    assert (CNNConfig().reduction, CONFIG.reduction, PATCHED.reduction) == (16, 2, 8)


def test_blocks_and_attention_are_where_they_belong():
    cnn = CONFIG.build()
    assert modules(cnn.encoder, ResBlock) == 1 + 2 + 2  # levels, bottleneck
    assert modules(cnn.decoder, ResBlock) == 2 + 1 + 2
    assert modules(cnn.encoder, SpatialAttention) == 2 + 1  # after each block of the lowest level, bottleneck
    assert modules(cnn.decoder, SpatialAttention) == 1 + 1
    assert modules(replace(CONFIG, bottleneck=False).build(), SpatialAttention) == 0


def test_the_last_layer_is_the_one_that_makes_pixels():
    cnn = CONFIG.build()
    cnn.last_layer.data.zero_()
    pixels = cnn.decode(noise(1, 2, 2, 6))
    assert torch.equal(pixels, cnn.decoder.conv_out.bias[None, :, None, None].expand_as(pixels))


def test_dropout_is_for_training_only():
    cnn, images = replace(CONFIG, dropout=0.5).build().eval(), noise(1, 3, 4, 4)
    assert torch.equal(cnn.encode(images), cnn.encode(images))
    cnn.train()
    assert not torch.equal(cnn.encode(images), cnn.encode(images))


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 7)])
def test_sides_that_cannot_be_cut_are_told_with_the_remedy(height, width):
    with pytest.raises(ValueError, match=rf"{width} x {height} pixels .* multiples of 2"):
        CONFIG.build().encode(noise(1, 3, height, width))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_blocks": (1, 1, 1)}, "encoder_widths .* and encoder_blocks .* must be of one length"),
        ({"decoder_widths": (8,)}, "decoder_widths .* and decoder_blocks .* must be of one length"),
        ({"decoder_patch": 2}, "reduces by 2 but the decoder enlarges by 4"),
        ({"encoder_widths": (), "encoder_blocks": ()}, "at least 1"),
    ],
)
def test_halves_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize(("config", "local"), [(LOCAL, True), (replace(LOCAL, encoder_norm_groups=4), False)])
def test_a_local_encoder_says_nothing_of_distant_parts(config, local):
    cnn = config.build().eval()
    images = noise(1, 3, 48, 48)
    changed = images.clone()
    changed[:, :, :, 40:] += 1.0
    difference = (cnn.encode(images) - cnn.encode(changed)).abs().amax((0, 1, 3))  # of each column of the grid
    assert difference[-1] > 1e-3
    assert (difference[:3].max() < 1e-6) == local


def test_hidden_weights_are_those_between_the_first_and_the_last_convolution():
    cnn = CONFIG.build()
    hidden = {id(weight) for weight in cnn.hidden_weights()}
    others = [name for name, weight in cnn.named_parameters() if weight.ndim >= 2 and id(weight) not in hidden]
    assert others == [f"{half}.{end}.weight" for half in ("encoder", "decoder") for end in ("conv_in", "conv_out")]
