"""Images to indices and back."""

import json
from dataclasses import replace

import pytest
import torch

from imgtok import config as configs
from imgtok.backbones.cnn import CNNConfig
from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout

CNN = CNNConfig(
    encoder_widths=(8, 8, 8),
    decoder_widths=(8, 8, 8),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
    latent_channels=8,
    norm_groups=4,
)
CONFIG = TokenizerConfig(image_size=16, backbone=CNN, quantizer=VectorConfig(codebook_size=64, codebook_dim=4))
SCALES = replace(
    CONFIG,
    quantizer=ResidualConfig(
        stage=VectorConfig(codebook_size=64, codebook_dim=4, l2_norm=False),
        view=ScalesConfig(scales=(1, 2, 4), blends=2),
    ),
    code_kernel=3,
)
both = pytest.mark.parametrize("config", [CONFIG, SCALES], ids=["grid", "scales"])


def shaken(config: TokenizerConfig) -> Tokenizer:
    """Random weights, the same whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = config.build().eval()
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=dice))
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Random weights; the last bias takes some pixels out of [-1, 1]."""
    tokenizer = shaken(CONFIG)
    with torch.no_grad():
        tokenizer.backbone.decoder.conv_out.bias.copy_(torch.tensor([0.9, 0.0, -0.9]))
    return tokenizer


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 4), (8, 20), (20, 8)])
def test_any_size_is_encoded_and_decoded(tokenizer, height, width):
    images = pictures(2, height, width)
    indices = tokenizer.encode(images)
    assert indices.shape == (2, height * width // 16)
    assert indices.dtype == torch.int64
    assert tokenizer.decode(indices, GridLayout(height // 4, width // 4)).shape == images.shape


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 20)])
def test_reconstructing_is_decoding_what_was_encoded(tokenizer, height, width):
    images = pictures(2, height, width)
    decoded = tokenizer.decode(tokenizer.encode(images), tokenizer.layout_of(images))
    assert torch.equal(tokenizer.reconstruct(images), decoded)
    torch.testing.assert_close(tokenizer(images).images.clamp(-1, 1), decoded)


def test_indices_are_in_raster_order(tokenizer):
    images = pictures(1, 8, 20)
    grid = tokenizer.quantizer.nearest(tokenizer.latents(images))
    assert torch.equal(tokenizer.encode(images), grid.reshape(1, 10))
    assert grid.unique().numel() > 3


def test_any_batch_split_is_the_whole(tokenizer):
    images = pictures(5, 16, 16)
    indices = tokenizer.encode(images)
    assert torch.equal(torch.cat([tokenizer.encode(part) for part in images.split([1, 3, 1])]), indices)
    whole = tokenizer.decode(indices)
    torch.testing.assert_close(torch.cat([tokenizer.decode(part) for part in indices.split([2, 3])]), whole)


def test_decoded_pixels_are_clamped(tokenizer):
    images = pictures(2, 16, 16)
    assert tokenizer(images).images.abs().max() > 1
    assert tokenizer.reconstruct(images).abs().max() == 1


def test_training_reaches_every_parameter(tokenizer):
    model = CONFIG.build().train()
    out = model(pictures(2, 16, 16))
    (out.images.square().mean() + sum(out.quantized.losses.values())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert out.latents.shape == (2, 4, 4, 4)


def test_no_gradients_are_kept_outside_training(tokenizer):
    images = pictures(1, 16, 16)
    assert not tokenizer.decode(tokenizer.encode(images)).requires_grad
    assert not tokenizer.reconstruct(images).requires_grad


def test_a_tokenizer_in_half_precision_works(tokenizer):
    half = CONFIG.build().eval().bfloat16()
    half.load_state_dict(tokenizer.state_dict())
    images = pictures(2, 16, 16)
    assert half.reconstruct(images.bfloat16()).shape == images.shape


def test_images_go_in_and_come_out_in_float32_whatever_the_weights_are(tokenizer):
    half = CONFIG.build().eval().bfloat16().to(memory_format=torch.channels_last)
    half.load_state_dict(tokenizer.state_dict())
    images = pictures(2, 16, 16)
    indices = half.encode(images)
    assert torch.equal(indices, half.encode(images.bfloat16()))
    decoded = half.decode(indices)
    assert decoded.dtype == half(images).images.dtype == torch.float32
    torch.testing.assert_close(decoded, tokenizer.decode(indices), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("value", "message"), [(64, "from 0 to 64 but the codebook has codes 0 to 63"), (-1, "from -1")]
)
def test_an_index_outside_the_codebook_is_told(tokenizer, value, message):
    indices = torch.zeros(1, 16, dtype=torch.int64)
    indices[0, 7] = value
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(indices)


def test_a_wrong_number_of_tokens_is_told(tokenizer):
    with pytest.raises(ValueError, match="10 tokens do not fill a grid of 4 x 4 = 16; pass layout"):
        tokenizer.decode(torch.zeros(1, 10, dtype=torch.int64))


def test_an_image_that_cannot_be_cut_is_told(tokenizer):
    with pytest.raises(ValueError, match="18 x 16 pixels"):
        tokenizer.encode(pictures(1, 16, 18))


def test_an_image_size_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"image_size 18 is not divisible by .* 4"):
        replace(CONFIG, image_size=18)


def test_the_layout_is_that_of_the_image_size():
    assert CONFIG.layout == GridLayout(4, 4)
    assert CONFIG.layout_of(8, 20) == GridLayout(2, 5)


# -- several maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 4), (8, 20), (32, 24)])
def test_any_size_is_encoded_to_maps_and_decoded(height, width):
    model, images = shaken(SCALES), pictures(2, height, width)
    layout = model.layout_of(images)
    assert layout.latent_shape == (height // 4, width // 4)
    indices = model.encode(images)
    assert indices.shape == (2, layout.num_tokens)
    assert indices.unique().numel() > 2
    assert torch.equal(model(images).quantized.indices, indices)
    decoded = model.decode(indices, layout)
    assert decoded.shape == images.shape
    assert torch.equal(model.reconstruct(images), decoded)
    torch.testing.assert_close(model(images).images.clamp(-1, 1), decoded)


def test_the_layout_of_maps_is_that_of_the_image_size():
    assert SCALES.layout == ScaleLayout(((1, 1), (2, 2), (4, 4)))
    assert SCALES.layout_of(8, 16) == ScaleLayout(((1, 1), (1, 2), (2, 4)))


def test_the_first_stages_decode_alone():
    model, images = shaken(SCALES), pictures(2, 16, 16)
    indices = model.encode(images)
    assert torch.equal(model.decode(indices, stages=3), model.decode(indices))
    first = model.decode(indices, stages=1)
    assert not torch.equal(first, model.decode(indices))
    others = indices.clone()
    others[:, 1:] = 0
    assert torch.equal(model.decode(others, stages=1), first)
    with pytest.raises(ValueError, match="at most the quantizer's 3, got 4"):
        model.decode(indices, stages=4)


def test_a_grid_has_one_stage(tokenizer):
    indices = torch.zeros(1, 16, dtype=torch.int64)
    assert torch.equal(tokenizer.decode(indices, stages=1), tokenizer.decode(indices))
    with pytest.raises(ValueError, match="at most the quantizer's 1, got 2"):
        tokenizer.decode(indices, stages=2)


@both
def test_configurations_survive_json(config):
    assert configs.from_dict(TokenizerConfig, json.loads(json.dumps(configs.to_dict(config)))) == config


def test_a_tokenizer_saved_before_there_were_code_kernels_is_the_same():
    written = configs.to_dict(CONFIG)
    del written["code_kernel"]
    assert configs.from_dict(TokenizerConfig, written) == CONFIG


def test_training_reaches_every_parameter_of_a_tokenizer_of_maps():
    model = SCALES.build().train()
    out = model(pictures(2, 16, 16))
    (out.images.square().mean() + sum(out.quantized.losses.values())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_code_kernels_of_one_are_linear_layers_and_larger_ones_see_neighbours(tokenizer):
    assert tokenizer.to_codes.weight.shape == (4, 8)
    model = shaken(SCALES)
    assert model.to_codes.weight.shape == (4, 8, 3, 3)
    x = torch.zeros(1, 5, 5, 8)
    x[0, 2, 2] = 1
    touched = (model.to_codes(x) - model.to_codes(torch.zeros_like(x))).abs().sum(-1)[0] > 0
    assert touched.nonzero().tolist() == [[row, column] for row in (1, 2, 3) for column in (1, 2, 3)]


@pytest.mark.parametrize("kernel", [0, 2])
def test_an_even_code_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match=f"odd and at least 1, got {kernel}"):
        replace(CONFIG, code_kernel=kernel)


def test_maps_in_half_precision_are_added_in_float32():
    model, half, images = shaken(SCALES), SCALES.build().eval().bfloat16(), pictures(2, 16, 16)
    half.load_state_dict(model.state_dict())
    decoded = half.decode(half.encode(images))
    assert decoded.dtype == half(images).quantized.latents.dtype == torch.float32
    torch.testing.assert_close(decoded, model.decode(half.encode(images)), atol=0.1, rtol=0)


# -- other backbones, and several codes for each token ----------------------------------------------------------------

VIT = ViTConfig(width=16, depth=1, num_heads=2)
SEQUENCE = replace(
    CONFIG,
    backbone=QueryConfig(latents=(6,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=replace(VIT, width=24)),
    pixel_range=(0.0, 1.0),
)
PAIRS = replace(
    CONFIG,
    backbone=replace(SEQUENCE.backbone, latents=(3, 3), branches=2),
    quantizer=ProductConfig(branch=VectorConfig(codebook_size=64, codebook_dim=4)),
)
TWO_MAPS = replace(SCALES.quantizer, view=ScalesConfig(scales=(1, 3), blends=1))
SCALED_PAIRS = replace(PAIRS, quantizer=ProductConfig(branch=TWO_MAPS))
new = pytest.mark.parametrize("config", [SEQUENCE, PAIRS, SCALED_PAIRS], ids=["sequence", "pairs", "scaled-pairs"])


@new
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 20)])
def test_any_size_is_encoded_by_queries_and_decoded(config, height, width):
    model, images = shaken(config), pictures(2, height, width)
    indices = model.encode(images)
    assert indices.shape == (2, model.layout_of(images).num_tokens, *config.quantizer.index_shape)
    assert indices.unique().numel() > 2
    decoded = model.decode(indices, size=(height, width))
    assert decoded.shape == images.shape
    assert torch.equal(model.decode(indices, model.layout_of(images), size=(height, width)), decoded)
    assert torch.equal(model.reconstruct(images), decoded)
    torch.testing.assert_close(model(images).images.clamp(-1, 1), decoded)


def test_a_sequence_has_as_many_tokens_whatever_the_size():
    assert SEQUENCE.layout == SEQUENCE.layout_of(8, 20) == SequenceLayout(6)
    assert PAIRS.layout_of(16, 32) == GridLayout(3, 6)
    assert SCALED_PAIRS.layout == ScaleLayout(((1, 1), (3, 3)))


def test_the_first_tokens_of_a_sequence_decode_alone():
    model, images = shaken(SEQUENCE), pictures(2, 16, 16)
    indices = model.encode(images)
    assert model.decode(indices[:, :2], SequenceLayout(2)).shape == images.shape
    with pytest.raises(ValueError, match="2 tokens were given, but an image has 6"):
        model.decode(indices[:, :2])


def test_of_a_tokenizer_in_order_any_number_of_first_tokens_is_encoded_and_decoded():
    ordered = replace(SEQUENCE, backbone=replace(SEQUENCE.backbone, nested=NestedDropout()))
    model, images = shaken(ordered), pictures(2, 16, 16)
    indices = model.encode(images)
    for count in range(1, 7):
        first = model.encode(images, num_tokens=count)
        assert torch.equal(first, indices[:, :count])
        assert torch.equal(model.decode(first), model.decode(first, SequenceLayout(count)))
    for count in (0, 7, -1):
        with pytest.raises(ValueError, match=f"num_tokens must be 1 to 6, the tokens of an image, got {count}"):
            model.encode(images, num_tokens=count)
    with pytest.raises(ValueError, match="7 tokens were given, but an image has 6"):
        model.decode(torch.cat([indices, indices[:, :1]], dim=1))
    with pytest.raises(ValueError, match="this tokenizer needs all 6 tokens of an image"):
        shaken(SEQUENCE).encode(images, num_tokens=2)


def test_the_backbone_sees_pixels_in_its_own_range():
    model, images = shaken(SEQUENCE), pictures(2, 16, 16)
    expected = model.to_codes(model.backbone.encode((images + 1) / 2))
    torch.testing.assert_close(model.latents(images), expected)
    latents = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))
    pixels = model.backbone.decode(model.from_codes(latents))
    torch.testing.assert_close(model.decode_latents(latents), 2 * pixels - 1)


@new
def test_new_configurations_survive_json(config):
    assert configs.from_dict(TokenizerConfig, json.loads(json.dumps(configs.to_dict(config)))) == config


@new
def test_training_reaches_every_parameter_of_the_new_kinds(config):
    model = config.build().train()
    out = model(pictures(4, 16, 16))
    (out.images.square().mean() + sum(out.quantized.losses.values())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_kernel": 3}, "code_kernel must be 1 for latents in a sequence, got 3"),
        ({"quantizer": SCALES.quantizer, "code_kernel": 1}, "a residual quantizer codes latents on a grid"),
        ({"pixel_range": (1.0, 0.0)}, "pixel_range must rise"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SEQUENCE, **change)


def test_a_grid_s_latents_must_be_those_of_the_size(tokenizer):
    with pytest.raises(ValueError, match="latents of 4 x 4 places are not those of an image of 8 x 16 pixels"):
        tokenizer.decode_latents(torch.zeros(1, 4, 4, 4), (8, 16))
