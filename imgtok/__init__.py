"""Image tokenizers, generators over their tokens, and samplers. Names are imported on first use, so this is cheap."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgtok.hub import load, load_config, save
    from imgtok.quantizers.base import Quantized
    from imgtok.tokenizer import Tokenizer, TokenizerConfig

__version__ = "0.1.0"

_HOMES = {
    "Quantized": "imgtok.quantizers.base",
    "Tokenizer": "imgtok.tokenizer",
    "TokenizerConfig": "imgtok.tokenizer",
    "load": "imgtok.hub",
    "load_config": "imgtok.hub",
    "save": "imgtok.hub",
}
__all__ = ["Quantized", "Tokenizer", "TokenizerConfig", "load", "load_config", "save"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'imgtok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
