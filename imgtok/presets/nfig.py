"""NFIG's tokenizer (arXiv:2503.07076): ten maps as VAR's, each of the latents up to a frequency.

Nothing was released. The maps and the number of codes are the paper's. Its encoder begins as DINOv2, and sources
disagree on the widths of latents and codes; here the encoder, the decoder, the blends and the 32 numbers of a code are
VAR's, so that the view is all that differs from `var-vq-f16`. Where bands end is `BandsConfig`'s default, chosen by
measurement (docs/next-scale.md): the paper's rule leaves four of the ten bands empty.
"""

from __future__ import annotations

from dataclasses import replace

from imgtok.preset import Preset, State
from imgtok.presets.var import SCALES_256, VQ16
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import BandsConfig, ScalesConfig

PAPER = "arXiv:2503.07076"
CODE = "none was found"
QUANTIZER = ResidualConfig(
    stage=VectorConfig(codebook_size=4096, codebook_dim=32, l2_norm=False),
    view=BandsConfig(scales=ScalesConfig(scales=SCALES_256)),
)


def as_it_is(state: State) -> State:
    """There are no published names: a file of weights has ours."""
    return state


PRESETS = {
    "nfig-vq-f16": Preset(
        config=replace(VQ16, quantizer=QUANTIZER),
        convert=as_it_is,
        paper=PAPER,
        code=CODE,
        note="10 frequency bands in VAR's sizes; no weights were released (rFID in the paper: 0.85)",
    )
}
