"""Published generators by name; one file per family."""

from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.presets import llamagen
from imgtok.preset import Preset

PRESETS: dict[str, Preset[GeneratorConfig]] = {**llamagen.PRESETS}
