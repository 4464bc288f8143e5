"""NFIG's generators (arXiv:2503.07076): VAR's transformers, which draw frequency bands in place of scales.

Depth 16 has 310 million parameters and depth 20 has 600 million, as in the paper.
"""

from __future__ import annotations

from imgtok.generators.next_scale import NextScaleConfig
from imgtok.generators.presets.var import sized
from imgtok.preset import Preset
from imgtok.presets.nfig import CODE, PAPER, as_it_is


def preset(depth: int, note: str = "") -> Preset[NextScaleConfig]:
    return Preset(
        config=sized(depth),
        convert=as_it_is,
        paper=PAPER,
        code=CODE,
        tokenizer="nfig-vq-f16",
        note=f"no weights were released{note}; its authors draw with cfg 4.5 and top-k 990, as VAR counts cfg: "
        "--guidance 5.5 --guidance-schedule linear --top-k 990",
    )


PRESETS = {"nfig-d16-256": preset(16, " (gFID in the paper: 2.81)"), "nfig-d20-256": preset(20)}
