"""What may import what, and a few calls that no module may make. Read from the source with `ast`: nothing is imported.

A module's layer is that of its longest prefix in `LAYERS`; it imports its own layer and those above it in the table.
Imports under TYPE_CHECKING and inside functions count too, since they tie modules together just the same; names in
strings (a package's lazy `_HOMES`) do not. In `imgtok/__init__.py` the imports under TYPE_CHECKING, which only repeat
its lazy names for type checkers, are free.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"imgtok": "imgtok", "generators": "imgtok.generators", "sample": "imgtok.sample", "train": "imgtok.train"}

LAYERS = (
    ("imgtok.config", "imgtok.tokens", "imgtok.atomic"),  # leaves: they import only each other, and all may import them
    ("imgtok.nn",),
    ("imgtok.quantizers",),
    ("imgtok.backbones",),
    ("imgtok",),  # everything else: tokenizer, presets, hub, metrics, data, convert
    ("imgtok.generators",),
    ("imgtok.sample",),
    ("imgtok.train",),
    ("imgtok.sample.cli", "imgtok.sample.commands", "imgtok.sample.__main__", "imgtok.__main__"),  # composition roots
)
LAYER_OF = {prefix: number for number, prefixes in enumerate(LAYERS) for prefix in prefixes}
MODELS = ("imgtok.nn", "imgtok.quantizers", "imgtok.backbones", "imgtok.tokenizer", "imgtok.generators")
ONLY_IN_FUNCTIONS = ("transformers", "timm", "lpips", "diffusers", "matplotlib")
ACCELERATE_HOMES = ("imgtok.train", "imgtok.sample.evaluate")
MAY_PRINT = ("imgtok.sample.cli", "imgtok.sample.commands")


class Found(NamedTuple):
    """A node and where it stands."""

    node: ast.AST
    in_function: bool
    for_types: bool  # under `if TYPE_CHECKING`


def module_name(path: str) -> str:
    """`generators/presets/__init__.py` -> `imgtok.generators.presets`."""
    folder, *rest = path.removesuffix(".py").split("/")
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


def starts_with(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{prefix}.") for prefix in prefixes)


def layer(module: str) -> int:
    """The layer of the longest prefix of `module` in the table."""
    while module not in LAYER_OF:
        module = module.rpartition(".")[0]
    return LAYER_OF[module]


def walk(node: ast.AST, in_function: bool = False, for_types: bool = False) -> Iterator[Found]:
    yield Found(node, in_function, for_types)
    in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    typing_block = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from walk(child, in_function, for_types or (typing_block and name == "body"))


def imported(node: ast.AST) -> list[str]:
    """Full names that a node imports: `from a import b` is `a.b`, a submodule or a name inside `a`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def layer_error(module: str, target: str) -> str | None:
    if not starts_with(target, ("imgtok",)):
        return None
    if layer(target) > layer(module):
        return f"{module} (layer of {LAYERS[layer(module)][0]}) imports {target} (layer of {LAYERS[layer(target)][0]})"
    return None


def foreign_error(module: str, target: str, in_function: bool) -> str | None:
    top = target.partition(".")[0]
    if top in FOLDERS and top != "imgtok":
        return f"import {top} by its full name, {FOLDERS[top]}"
    if top in ("pickle", "_pickle") and target != "pickle.UnpicklingError":  # which torch.load raises
        return "pickle runs code from files; use safetensors or JSON"
    if top == "accelerate" and not starts_with(module, ACCELERATE_HOMES):
        return "accelerate is for train/ and sample/evaluate.py only"
    if top in ONLY_IN_FUNCTIONS and not in_function:
        return f"import {top} inside the function that needs it"
    if target == "torch.load":
        return "call torch.load by its full name, so that weights_only=True can be checked"
    if target.startswith(("os.environ", "os.getenv")) and starts_with(module, MODELS):
        return "models do not read the environment"
    return None


def import_errors(module: str, is_root: bool, found: Found) -> Iterator[str | None]:
    if isinstance(found.node, ast.ImportFrom) and found.node.level:
        yield "relative import"
        return
    for target in imported(found.node):
        yield foreign_error(module, target, found.in_function)
        if not (is_root and found.for_types):
            yield layer_error(module, target)


def call_error(module: str, node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.environb", "os.getenv"):
        return "models do not read the environment" if starts_with(module, MODELS) else None
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
        return "no .cuda(): use the device of an argument, or .to(device)"
    if ast.unparse(node.func) == "torch.load" and "weights_only=True" not in map(ast.unparse, node.keywords):
        return "torch.load without weights_only=True"
    if ast.unparse(node.func) == "print" and not starts_with(module, MAY_PRINT):
        return "print outside the command line; use logging"
    return None


def violations(path: str, source: str) -> list[str]:
    """`file:line: reason` of all that is forbidden in a file, by line. `path` is relative to the root."""
    module = module_name(path)
    errors = [
        (found.node.lineno, error)
        for found in walk(ast.parse(source))
        for error in (*import_errors(module, path == "imgtok/__init__.py", found), call_error(module, found.node))
        if error
    ]
    return [f"{path}:{line}: {error}" for line, error in sorted(errors)]


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_every_module_keeps_to_its_layer():
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sources()}
    assert {path.partition("/")[0] for path in files} == set(FOLDERS)
    found = [error for path, source in files.items() for error in violations(path, source)]
    assert not found, f"{found[0]} (first of {len(found)})"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("imgtok/nn/block.py", "from imgtok.quantizers.base import Quantized"),
        ("imgtok/nn/block.py", "import imgtok.backbones.cnn as cnn"),
        ("imgtok/quantizers/vector.py", "from imgtok import Tokenizer"),
        ("imgtok/quantizers/vector.py", "from imgtok import backbones"),
        ("imgtok/backbones/cnn.py", "def f():\n    from imgtok.hub import load"),
        ("imgtok/hub.py", "if TYPE_CHECKING:\n    from imgtok.generators import Generator"),
        ("imgtok/hub.py", "from imgtok import (\n    generators,\n)"),
        ("imgtok/hub.py", "from importlib import import_module\nimport_module('imgtok.train.loop')"),
        ("imgtok/__init__.py", "from imgtok.generators import Generator"),
        ("imgtok/presets/__init__.py", "import imgtok.sample"),
        ("imgtok/config.py", "import imgtok.hub"),
        ("imgtok/tokens.py", "from imgtok.nn import mask"),
        ("generators/order.py", "from imgtok.sample.policy import top_k"),
        ("sample/images.py", "from imgtok.train.config import TrainConfig"),
        ("sample/images.py", "from imgtok.sample import cli"),
        ("train/loop.py", "def f():\n    from imgtok.sample.commands.train import run"),
        ("train/loop.py", "import imgtok.__main__"),
        ("imgtok/nn/norm.py", "from . import block"),
        ("generators/heads.py", "from .order import Order"),
        ("sample/cli.py", "import train"),
        ("sample/cli.py", "from generators.order import Order"),
        ("sample/images.py", "import accelerate"),
        ("imgtok/hub.py", "def f():\n    from accelerate import Accelerator"),
        ("imgtok/backbones/vae.py", "from diffusers import AutoencoderKL"),
        ("imgtok/backbones/vae.py", "class A:\n    import timm"),
        ("train/loop.py", "import matplotlib.pyplot as plt"),
        ("imgtok/metrics/image.py", "try:\n    import lpips\nexcept ImportError:\n    lpips = None"),
        ("imgtok/hub.py", "import pickle"),
        ("imgtok/hub.py", "from pickle import UnpicklingError, load"),
        ("imgtok/hub.py", "import torch\ntorch.load('a.pt')"),
        ("imgtok/hub.py", "import torch\ntorch.load('a.pt', weights_only=False)"),
        ("imgtok/hub.py", "from torch import load"),
        ("train/loop.py", "model.cuda()"),
        ("train/loop.py", "batch['image'].cuda(non_blocking=True)"),
        ("sample/evaluate.py", "print('done')"),
        ("imgtok/nn/attention.py", "import os\nslow = os.environ.get('SLOW')"),
        ("imgtok/tokenizer.py", "import os\nslow = os.getenv('SLOW')"),
        ("generators/generator.py", "from os import environ"),
    ],
)
def test_the_checker_catches(path, source):
    found = violations(path, "x = 0\n" + source)
    assert found
    assert found[0].startswith(f"{path}:")
    assert int(found[0].split(":")[1]) > 1


def test_a_finding_names_file_and_line():
    source = "import torch\n\n\ndef f(x):\n    print(x)\n    return x.cuda()\n"
    assert [error.partition(": ")[0] for error in violations("imgtok/nn/norm.py", source)] == [
        "imgtok/nn/norm.py:5",
        "imgtok/nn/norm.py:6",
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("imgtok/nn/block.py", "from imgtok.nn.norm import RMSNorm\nfrom imgtok.config import Config"),
        ("imgtok/backbones/cnn.py", "from imgtok.nn import resnet\nfrom imgtok.quantizers.base import Quantized"),
        ("imgtok/hub.py", "import imgtok.tokenizer, imgtok.backbones.cnn, imgtok.atomic"),
        ("imgtok/__init__.py", "if TYPE_CHECKING:\n    from imgtok.generators import Generator"),
        ("imgtok/config.py", "from imgtok.atomic import write_text"),
        ("imgtok/__init__.py", "_HOMES = {'Generator': 'imgtok.generators.generator'}"),
        ("generators/order.py", "from imgtok import Tokenizer, tokens"),
        ("sample/evaluate.py", "import accelerate\nfrom imgtok.generators import Generator"),
        ("train/loop.py", "from accelerate import Accelerator\nfrom imgtok.sample.evaluate import scores"),
        ("sample/cli.py", "def f():\n    import imgtok.train.loop\n    print(1)"),
        ("sample/commands/train.py", "import imgtok.train.loop\nprint(1)"),
        ("sample/__main__.py", "from imgtok.sample.cli import main"),
        ("imgtok/__main__.py", "from imgtok.sample.cli import main"),
        ("imgtok/backbones/vae.py", "def f():\n    from diffusers import AutoencoderKL"),
        ("imgtok/hub.py", "from pickle import UnpicklingError"),
        ("imgtok/hub.py", "import os, torch\ntorch.load('a.pt', weights_only=True, mmap=True)\nos.environ['A']"),
        ("train/loop.py", "import torch\ntorch.cuda.is_available()\ntorch.nn.Linear(2, 2).to('cuda')"),
    ],
)
def test_the_checker_lets_pass(path, source):
    assert violations(path, source) == []


def test_the_longest_prefix_gives_the_layer():
    assert layer("imgtok.sample.cli") == layer("imgtok.__main__") == len(LAYERS) - 1
    assert layer("imgtok.sample.client") == layer("imgtok.sample")
    assert layer("imgtok.metrics.tokens") == layer("imgtok.hub") == layer("imgtok")
    assert layer("imgtok.tokens") == 0
