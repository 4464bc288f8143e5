"""One-D-Piece (arXiv:2501.10064): TiTok's two-stage tokenizer, trained so that the first tokens alone will do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from imgtok.backbones.query import QueryConfig
from imgtok.nn.nested import NestedDropout
from imgtok.preset import Preset, Weights
from imgtok.presets import titok
from imgtok.tokenizer import TokenizerConfig

PAPER = "arXiv:2501.10064"
CODE = "turingmotors/One-D-Piece (Apache-2.0)"
NOTE = "any number of the first tokens can be decoded"
NESTED = NestedDropout(law="uniform", per="batch")

convert_tokenizer = titok.convert_tokenizer  # the parameters are TiTok's


def tokenizer_config(published: Mapping[str, Any]) -> TokenizerConfig:
    """TiTok's configuration under its published names, and in training a random number of tokens."""
    return with_nested_dropout(titok.tokenizer_config(published))


def with_nested_dropout(config: TokenizerConfig) -> TokenizerConfig:
    assert isinstance(config.backbone, QueryConfig)
    return replace(config, backbone=replace(config.backbone, nested=NESTED))


def preset(size: str, rfid: float) -> Preset[TokenizerConfig]:
    return Preset(
        config=with_nested_dropout(titok.two_stage(size, 256)),
        convert=convert_tokenizer,
        paper=PAPER,
        code=CODE,
        weights=Weights(repo=f"turing-motors/One-D-Piece-{size.upper()}-256", file="model.safetensors", licence="MIT"),
        published={"rfid": rfid},
        note=NOTE,
    )


PRESETS = {
    "one-d-piece-s256": preset("s", 1.48),
    "one-d-piece-b256": preset("b", 1.11),
    "one-d-piece-l256": preset("l", 1.08),
}
