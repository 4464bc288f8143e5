"""Vision transformers with queries: shapes, other sizes than the trained one, prefixes, what the settings promise."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imgtok.backbones.cnn import CNNConfig
from imgtok.backbones.query import CNNHeadConfig, CodeHeadConfig, PixelHeadConfig, QueryConfig
from imgtok.backbones.vit import ImageFeaturesConfig, ViTConfig
from imgtok.nn.nested import NestedDropout

VIT = ViTConfig(width=16, depth=2, num_heads=2)
CNN = CNNConfig(
    encoder_widths=(8, 8, 8),
    decoder_widths=(8, 8, 8),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1, 1),
    latent_channels=6,
    norm_groups=4,
    attention=False,
    resample="mean",
)
SEQUENCE = QueryConfig(latents=(5,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=replace(VIT, width=24))
GRID = replace(SEQUENCE, latents=(3, 3), branches=2, code_class=True, head=PixelHeadConfig(kernel=3))
CODES = replace(
    SEQUENCE,
    encoder=replace(VIT, norm_first=True, layer_scale=0.5),
    scrambled=True,
    head=CodeHeadConfig(codebook_size=7, cnn=CNN),
)
MAPS = replace(SEQUENCE, head=CNNHeadConfig(cnn=CNN))
variants = pytest.mark.parametrize("config", [SEQUENCE, GRID, CODES, MAPS], ids=["sequence", "grid", "codes", "maps"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latents_for(config: QueryConfig, images: Tensor) -> Tensor:
    shape = config.latent_shape(images.shape[-2], images.shape[-1])
    return noise(len(images), *shape, config.decoder_channels, seed=1)


@variants
@pytest.mark.parametrize(("height", "width"), [(16, 16), (4, 4), (12, 28), (32, 8)])
@torch.no_grad()
def test_any_image_goes_in_and_comes_out(config, height, width):
    model, images = config.build().eval(), noise(2, 3, height, width)
    found = model.encode(images)
    assert found.shape == (2, *config.latent_shape(height, width), config.encoder_channels)
    assert model.decode(latents_for(config, images), (height, width)).shape == images.shape


@pytest.mark.parametrize(
    ("image", "latents"), [((16, 16), (3, 3)), ((32, 32), (6, 6)), ((16, 32), (3, 6)), ((4, 12), (1, 2))]
)
def test_a_grid_of_latents_is_in_proportion_and_a_sequence_is_not(image, latents):
    assert GRID.latent_shape(*image) == latents
    assert SEQUENCE.latent_shape(*image) == (5,)


@variants
@torch.no_grad()
def test_without_a_size_the_picture_is_as_large_as_the_trained_ones(config):
    model, images = config.build().eval(), noise(1, 3, 16, 16)
    latents = latents_for(config, images)
    assert torch.equal(model.decode(latents), model.decode(latents, (16, 16)))


@torch.no_grad()
def test_latents_on_a_grid_tell_the_size_of_their_image():
    model = replace(GRID, latents=(4, 4)).build().eval()
    assert model.decode(noise(1, 2, 6, 24)).shape == (1, 3, 8, 24)


@variants
@torch.no_grad()
def test_any_batch_split_is_the_whole(config):
    model, images = config.build().eval(), noise(3, 3, 16, 16)
    found, latents = model.encode(images), latents_for(config, images)
    torch.testing.assert_close(torch.cat([model.encode(images[:1]), model.encode(images[1:])]), found)
    torch.testing.assert_close(torch.cat([model.decode(latents[:2]), model.decode(latents[2:])]), model.decode(latents))


@variants
def test_every_parameter_is_used(config):
    model, images = config.build(), noise(2, 3, 16, 16)
    model.encode(images).square().sum().backward()
    model.decode(latents_for(config, images)).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_every_query_has_a_latent_of_its_own():
    """A changed query changes its own latent at once; others see it through attention alone."""
    model, images = replace(SEQUENCE, encoder=replace(VIT, depth=0)).build().eval(), noise(1, 3, 16, 16)
    before = model.encode(images)
    model.encoder.queries[0, 2] += noise(16)
    assert (model.encode(images) != before).any(-1).flatten().nonzero().flatten().tolist() == [2]


@torch.no_grad()
def test_branches_lie_side_by_side_along_the_channels():
    model, images = replace(GRID, encoder=replace(VIT, depth=0)).build().eval(), noise(1, 3, 16, 16)
    before = model.encode(images)
    model.encoder.queries[1, 2, 0] += noise(16)
    changed = (model.encode(images) != before)[0]
    assert changed.any(-1).nonzero().tolist() == [[2, 0]]
    assert changed[2, 0].nonzero().flatten().tolist() == list(range(16, 32))


@torch.no_grad()
def test_scrambled_latents_are_the_same_numbers_in_another_order():
    torch.manual_seed(0)
    model, images = replace(SEQUENCE, scrambled=True).build().eval(), noise(2, 3, 16, 16)
    plain = replace(SEQUENCE, scrambled=False).build().eval()
    plain.load_state_dict(model.state_dict())
    flat = plain.encode(images).flatten(1)  # latent after latent
    scrambled = model.encode(images)
    for n in range(5):
        torch.testing.assert_close(scrambled[:, n], flat[:, n::5])  # one number in five, through all of them


@torch.no_grad()
def test_the_first_latents_alone_are_decoded_as_if_there_were_no_others():
    model, latents = SEQUENCE.build().eval(), noise(2, 5, 24)
    shorter = replace(SEQUENCE, latents=(2,)).build().eval()
    state = model.state_dict()
    state |= {"decoder.code_positions": state["decoder.code_positions"][:2]}
    shorter.load_state_dict(state | {"encoder.queries": state["encoder.queries"][:, :2]})
    assert torch.equal(model.decode(latents[:, :2]), shorter.decode(latents[:, :2]))
    assert not torch.allclose(model.decode(latents[:, :2]), model.decode(latents))


def test_more_latents_than_positions_are_refused():
    with pytest.raises(ValueError, match="6 latents were given, but there are positions for 5"):
        SEQUENCE.build().decode(noise(1, 6, 24))


@torch.no_grad()
def test_in_training_a_random_number_of_first_latents_is_read():
    """All five lengths occur, about equally often: each count within 5 standard deviations."""
    model, latents, draws = replace(SEQUENCE, nested=NestedDropout()).build().eval(), noise(1, 5, 24), 400
    prefixes = torch.cat([model.decode(latents[:, :n]) for n in range(1, 6)])
    torch.manual_seed(0)
    model.train()
    counts = torch.zeros(5)
    for _ in range(draws):
        counts[(prefixes - model.decode(latents)).abs().amax((1, 2, 3)).argmin()] += 1
    assert (counts - draws / 5).abs().max() < 5 * (draws * 0.2 * 0.8) ** 0.5
    plain = SEQUENCE.build()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.train().decode(latents), prefixes[4:])  # without the setting, all are read


@pytest.mark.parametrize("config", [SEQUENCE, replace(SEQUENCE, code_class=True), CODES])
def test_each_row_of_a_batch_is_decoded_from_its_own_first_latents_as_if_it_were_alone(config):
    model, latents, lengths = config.build(), noise(4, 5, config.decoder_channels).requires_grad_(), [1, 3, 5, 2]
    mixed = model.decoder.prefix_features(latents, (4, 4), torch.tensor(lengths))
    alone = [model.decoder.patch_features(latents[i : i + 1, : lengths[i]], (4, 4)) for i in range(4)]
    torch.testing.assert_close(mixed, torch.cat(alone))
    (seen,) = torch.autograd.grad(mixed.square().sum(), latents)
    assert (seen != 0).any(-1).sum(1).tolist() == lengths  # and only those are learned from


@torch.no_grad()
def test_images_of_a_training_batch_have_lengths_of_their_own():
    """Of 40 images, each is decoded from one of its prefixes; all four lengths of the law occur, and no other."""
    config = replace(SEQUENCE, nested=NestedDropout(law="powers", per="image"))
    model, latents = config.build().eval(), noise(1, 5, 24).expand(40, -1, -1)
    prefixes = torch.cat([model.decode(latents[:1, :n]) for n in range(1, 6)])
    torch.manual_seed(0)
    pictures = model.train().decode(latents)
    distance = (pictures[:, None] - prefixes).abs().amax((2, 3, 4))
    assert distance.amin(1).max() < 1e-4
    assert (distance.argmin(1) + 1).unique().tolist() == [1, 2, 4, 5]


@torch.no_grad()
def test_patches_are_unfolded_by_row_column_and_colour():
    head = PixelHeadConfig().build(8, 4).eval()
    x = noise(1, 2, 3, 8)
    pixels = head(x)
    values = head.to_pixels(x)
    assert pixels.shape == (1, 3, 8, 12)
    for row, column, p, q, colour in [(0, 0, 0, 0, 0), (1, 2, 3, 1, 2), (0, 1, 2, 3, 1)]:
        assert pixels[0, colour, 4 * row + p, 4 * column + q] == values[0, row, column, (p * 4 + q) * 3 + colour]


@torch.no_grad()
def test_a_sure_patch_is_decoded_from_its_code():
    head = CodeHeadConfig(codebook_size=7, cnn=CNN).build(8, 4).eval()
    head.to_logits.weight.zero_()
    head.to_logits.bias.copy_(1e4 * torch.eye(7)[3])
    expected = head.cnn(head.codebook[3][None, :, None, None].expand(1, -1, 2, 3))
    torch.testing.assert_close(head(noise(1, 2, 3, 8)), expected)


@variants
def test_the_last_layer_is_the_one_that_makes_pixels(config):
    model = config.build().eval()
    with torch.no_grad():
        model.last_layer.zero_()
        pixels = model.decode(latents_for(config, noise(1, 3, 16, 16)))
    assert pixels.unfold(2, 4, 4).unfold(3, 4, 4).std((2, 3)).max() < 1e-6  # every patch is the layer's bias


@variants
def test_hidden_weights_are_those_of_the_blocks(config):
    """And of the levels of a CNN that makes the pixels, but not of a frozen one behind codes."""
    model = config.build()
    hidden = {id(weight) for weight in model.hidden_weights()}
    inner = [".vit.blocks.", *([".levels.", ".mid."] if config == MAPS else [])]
    blocks = [weight for name, weight in model.named_parameters() if any(part in name for part in inner)]
    assert hidden == {id(weight) for weight in blocks if weight.ndim >= 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": ()}, "latents must be"),
        ({"latents": (0,)}, "latents must be"),
        ({"branches": 0}, "branches must be at least 1, got 0"),
        ({"latents": (2, 2), "scrambled": True}, "for latents in a sequence"),
        ({"latents": (2, 2), "nested": NestedDropout()}, "for latents in a sequence"),
        ({"nested": NestedDropout(least=9)}, "at least 9 tokens are to be kept, but an image has only 5"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SEQUENCE, **change)


def test_a_head_of_a_cnn_must_have_the_patches_size():
    with pytest.raises(ValueError, match="the patches have 8 pixels a side, but the CNN's latents 4"):
        replace(MAPS, patch_size=8).build()


@torch.no_grad()
def test_only_a_head_of_codes_has_logits_of_them():
    model, latents = CODES.build().eval(), noise(2, 5, CODES.decoder_channels)
    assert model.code_logits(latents, (8, 12)).shape == (2, 2, 3, 7)
    with pytest.raises(ValueError, match="but this one is a PixelHead"):
        SEQUENCE.build().code_logits(noise(2, 5, 24))


def test_a_head_of_codes_must_have_the_patches_size():
    with pytest.raises(ValueError, match="the patches have 8 pixels a side, but the other tokenizer's codes 4"):
        replace(CODES, patch_size=8).build()


@pytest.mark.parametrize(("height", "width"), [(18, 16), (16, 5)])
def test_sides_that_cannot_be_cut_are_told_with_the_remedy(height, width):
    with pytest.raises(ValueError, match=rf"{width} x {height} pixels .* multiples of 4"):
        SEQUENCE.build().encode(noise(1, 3, height, width))
    with pytest.raises(ValueError, match=rf"{width} x {height} pixels .* multiples of 4"):
        SEQUENCE.build().decode(noise(1, 5, 24), (height, width))


@torch.no_grad()
def test_features_are_the_class_token_and_the_patches():
    model = ImageFeaturesConfig(vit=VIT, patch_size=4, grid=(4, 4)).build().eval()
    images = noise(2, 3, 8, 12)
    tokens = model.vit(model.patches(images))
    features = model(images)
    assert torch.equal(features.whole, tokens[:, 0])
    assert torch.equal(features.patches[:, 1, 2], tokens[:, 1 + 3 + 2])
    assert features.patches.shape == (2, 2, 3, 16)


@pytest.mark.parametrize(("matched", "least", "most"), [(True, 0.7, 1.0), (False, 0.0, 0.4)])
def test_matched_queries_and_codes_begin_with_their_own_patch(matched: bool, least: float, most: float) -> None:
    torch.manual_seed(0)
    vit = ViTConfig(width=64, depth=1, num_heads=2)
    config = QueryConfig(latents=(16,), patch_size=4, grid=(4, 4), encoder=vit, decoder=vit, matched=matched)
    backbone, draw = config.build().eval(), torch.Generator().manual_seed(0)
    images, latents = torch.randn(1, 3, 16, 16, generator=draw), torch.randn(1, 16, 64, generator=draw)
    found = []
    for place in range(16):
        row, column = 4 * (place // 4), 4 * (place % 4)
        other = images.clone()
        other[..., row : row + 4, column : column + 4] *= -1
        found.append((backbone.encode(other) - backbone.encode(images)).norm(dim=-1)[0].argmax() == place)
        swapped = latents.clone()
        swapped[:, place] *= -1
        changes = backbone.decoder.patch_features(swapped, (4, 4)) - backbone.decoder.patch_features(latents, (4, 4))
        found.append(changes.norm(dim=-1).flatten().argmax() == place)
    assert least <= torch.stack(found).float().mean() <= most


def test_matched_is_for_sequences() -> None:
    with pytest.raises(ValueError, match="scrambled, nested and matched are for latents in a sequence"):
        QueryConfig(latents=(4, 4), matched=True)
