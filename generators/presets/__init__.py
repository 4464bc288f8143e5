"""Published generators by name; one file per family."""

from typing import Any

from imgtok.generators.presets import llamagen, nfig, titok, var
from imgtok.preset import Preset

PRESETS: dict[str, Preset[Any]] = {**llamagen.PRESETS, **var.PRESETS, **nfig.PRESETS, **titok.PRESETS}
