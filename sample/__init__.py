"""Sampling: loops that draw from a generator. No parameters live here."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgtok.sample.edit import edit
    from imgtok.sample.guidance import Guidance
    from imgtok.sample.images import SamplerConfig, generate, generate_tokens
    from imgtok.sample.law import Law

_HOMES = {
    "Guidance": "imgtok.sample.guidance",
    "Law": "imgtok.sample.law",
    "SamplerConfig": "imgtok.sample.images",
    "edit": "imgtok.sample.edit",
    "generate": "imgtok.sample.images",
    "generate_tokens": "imgtok.sample.images",
}
__all__ = ["Guidance", "Law", "SamplerConfig", "edit", "generate", "generate_tokens"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'imgtok.sample' has no attribute {name!r}")
