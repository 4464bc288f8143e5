"""Load and save models: a preset's name, a folder (config.json, model.safetensors), or a published file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from imgtok import atomic, zoo
from imgtok import config as configs
from imgtok.convert import State, load_strict, read_state
from imgtok.preset import Preset
from imgtok.tokenizer import Tokenizer, TokenizerConfig

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class ModelConfig(Protocol):
    def build(self) -> Any: ...


C = TypeVar("C", bound=ModelConfig)


def load(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Tokenizer:
    """A tokenizer in evaluation mode.

    `source` is a preset's name ("llamagen-vq-f16"), a pair's of the zoo ("emoji64-gpt"), or a folder that `save` wrote.
    `weights`: a local .pt, .pth or .safetensors file with the preset's published parameters, instead of a download from
    the hub. `dtype`: None: as they are stored, but those of the zoo in float32.
    Raises ValueError for an unknown name, a damaged file, or parameters that are missing, unexpected or misshapen.
    """
    from imgtok.presets import PRESETS

    packaged = zoo.tokenizer_folder(source)
    dtype = dtype or (torch.float32 if packaged else None)
    return load_model(packaged or source, TokenizerConfig, PRESETS, weights=weights, device=device, dtype=dtype)


def load_config(source: str | Path) -> TokenizerConfig:
    """The configuration alone, of a preset or a folder."""
    from imgtok.presets import PRESETS

    return find_config(zoo.tokenizer_folder(source) or source, TokenizerConfig, PRESETS)


def save(model: nn.Module, folder: str | Path) -> None:
    """Writes `model.config` and its parameters to `folder`; the folder is replaced whole or not at all."""
    with atomic.replacing_folder(folder) as temporary:
        write_model(model, temporary)


def write_model(model: nn.Module, folder: str | Path) -> None:
    """The two files of a model into a folder that may hold others; each is replaced whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic.replacing(Path(folder) / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary)
    configs.save(model.config, Path(folder) / CONFIG_FILE)


def load_model(
    source: str | Path,
    config_class: type[C] | tuple[type[C], ...],
    presets: Mapping[str, Preset[C]],
    *,
    weights: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> Any:
    """What `load` does, for any kind of model."""
    config = find_config(source, config_class, presets)
    if str(source) in presets:
        state = published_state(str(source), presets[str(source)], weights)
        origin = f"{weights or presets[str(source)].weights} as {source}"
    else:
        if weights is not None:
            raise ValueError(f"weights {weights} were given with the folder {source}; they go with a preset's name")
        state = read_state(Path(source) / WEIGHTS_FILE)
        origin = str(source)
    return build_from_state(config, state, origin).to(device=device, dtype=dtype).eval()


def build_from_state(config: ModelConfig, state: State, origin: str) -> Any:
    """The model of `config` with exactly the parameters `state`; nothing is initialised first."""
    model = build_empty(config)
    load_strict(model, state, origin)
    return model


def build_empty(config: ModelConfig) -> Any:
    """The model of `config` on the meta device: names and shapes without memory."""
    with torch.device("meta"), _WithoutInit():
        return config.build()


class _WithoutInit(TorchFunctionMode):
    """Leaves out torch.nn.init: on the meta device it does nothing but import torch's compiler for seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)  # how these functions pass themselves on
        return function(*args, **(kwargs or {}))


def find_config(source: str | Path, config_class: type[C] | tuple[type[C], ...], presets: Mapping[str, Preset[C]]) -> C:
    if str(source) in presets:
        return presets[str(source)].config
    path = Path(source) / CONFIG_FILE
    if path.is_file():
        return configs.load(config_class, path)
    raise ValueError(
        f"{str(source)!r} is neither a preset nor a folder with {CONFIG_FILE}; "
        f"presets: {', '.join([*zoo.names(), *sorted(presets)])}"
    )


def published_state(name: str, preset: Preset[Any], weights: str | Path | None) -> State:
    """The preset's parameters under our names, from `weights` or the hub; tells the licence on the error stream."""
    path = Path(weights) if weights is not None else download(name, preset)
    licence = f"weights {preset.licence}" if preset.weights else "no published weights, yours are used"
    sys.stderr.write(f"{name}: {licence}; code {preset.code}; {preset.paper}\n")
    state = read_state(path)
    try:
        return preset.convert(state)
    except KeyError as error:
        raise ValueError(f"{path} is no published file of {name}: it lacks the parameter {error}") from error


def download(name: str, preset: Preset[Any]) -> Path:
    """The published file from the hub or its cache."""
    from huggingface_hub import hf_hub_download

    if preset.weights is None:
        raise ValueError(f"no weights were published for {name}; pass weights=FILE or train it")
    published = preset.weights
    try:
        return Path(hf_hub_download(published.repo, published.file, revision=published.revision))
    except Exception as error:  # the hub's own errors, and those of whatever it fetches with (requests, httpx)
        raise ValueError(
            f"{published.file} of {published.repo} could not be fetched from the hub and is not in its cache "
            f"({type(error).__name__}); download it elsewhere and pass its path as weights"
        ) from error


def fingerprint(model: nn.Module) -> str:
    """Of configuration and parameters together: 16 hexadecimal digits, the same on every machine."""
    digest = hashlib.blake2b(json.dumps(configs.to_dict(model.config), sort_keys=True).encode(), digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
