"""Generators: models over tokens. None of them samples; see imgtok.sample."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig, TextFeatures
    from imgtok.generators.generator import Generator, GeneratorConfig
    from imgtok.generators.hub import load, load_config
    from imgtok.generators.masked import MaskedConfig, MaskedGenerator
    from imgtok.generators.next_scale import NextScaleConfig, NextScaleGenerator

_HOMES = {
    "Generator": "imgtok.generators.generator",
    "GeneratorConfig": "imgtok.generators.generator",
    "Label": "imgtok.generators.condition",
    "LabelConditionConfig": "imgtok.generators.condition",
    "MaskedConfig": "imgtok.generators.masked",
    "MaskedGenerator": "imgtok.generators.masked",
    "NextScaleConfig": "imgtok.generators.next_scale",
    "NextScaleGenerator": "imgtok.generators.next_scale",
    "TextConditionConfig": "imgtok.generators.condition",
    "TextFeatures": "imgtok.generators.condition",
    "load": "imgtok.generators.hub",
    "load_config": "imgtok.generators.hub",
}
__all__ = [
    "Generator",
    "GeneratorConfig",
    "Label",
    "LabelConditionConfig",
    "MaskedConfig",
    "MaskedGenerator",
    "NextScaleConfig",
    "NextScaleGenerator",
    "TextConditionConfig",
    "TextFeatures",
    "load",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'imgtok.generators' has no attribute {name!r}")
