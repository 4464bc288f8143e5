"""Published tokenizers by name; one file per family."""

from imgtok.preset import Preset
from imgtok.presets import llamagen, var
from imgtok.tokenizer import TokenizerConfig

PRESETS: dict[str, Preset[TokenizerConfig]] = {**llamagen.PRESETS, **var.PRESETS}
