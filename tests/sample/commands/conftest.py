"""A tiny tokenizer and generator on disk, pictures to feed them, and a way to run commands as a user would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from imgtok import hub
from imgtok.backbones.cnn import CNNConfig
from imgtok.data import save_png
from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.masked import MaskedConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.hub import ModelConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample.cli import main
from imgtok.tokenizer import TokenizerConfig


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys) -> Callable[..., Result]:
    """`imgtok` with these words."""

    def run(*words: object) -> Result:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # tyro's, for --help and for words it cannot read
            status = int(stop.code or 0)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run, tmp_path) -> Callable[..., None]:
    """Asserts that `imgtok` refuses these words: status 2, one line that has `part` in it, and no file touched."""

    def refused(part: str, *words: object) -> None:
        before = snapshot(tmp_path)
        result = run(*words)
        assert (result.status, result.out) == (2, "")
        assert result.err.count("\n") == 1, result.err
        assert part in result.err
        assert snapshot(tmp_path) == before

    return refused


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="session")
def tokenizer_config() -> TokenizerConfig:
    """16 x 16 pixels to 4 x 4 tokens of 32 codes."""
    backbone = CNNConfig(
        encoder_widths=(8,),
        decoder_widths=(8,),
        encoder_blocks=(1,),
        decoder_blocks=(1,),
        encoder_patch=4,
        decoder_patch=4,
        latent_channels=8,
        bottleneck=False,
        norm_groups=4,
    )
    return TokenizerConfig(image_size=16, backbone=backbone, quantizer=VectorConfig(codebook_size=32, codebook_dim=4))


@pytest.fixture(scope="session")
def models(tmp_path_factory, tokenizer_config) -> Path:
    """Folders: tokenizer, other-tokenizer, generator (labels, tokenizer inside), text-generator (no tokenizer).

    And masked, with that tokenizer inside, and next-scale, with a tokenizer of three maps inside.
    """
    root = tmp_path_factory.mktemp("models")
    labels = LabelConditionConfig(
        labels=(
            Label(name="category", size=3, values=("Food & Drink", "Flags", "Objects")),
            Label(name="style", size=2, values=("noto", "fluent")),
        )
    )
    tokenizer = filled(tokenizer_config, 1)
    hub.save(tokenizer, root / "tokenizer")
    hub.save(filled(tokenizer_config, 2), root / "other-tokenizer")
    hub.save(filled(generator_config(tokenizer_config, labels), 3), root / "generator")
    hub.save(tokenizer, root / "generator" / "tokenizer")
    hub.save(
        filled(generator_config(tokenizer_config, TextConditionConfig(num_slots=3, feature_dim=6)), 4),
        root / "text-generator",
    )
    masked = MaskedConfig(
        layout=tokenizer_config.layout, codebook_size=32, condition=labels, width=16, depth=2, num_heads=2
    )
    unsure = filled(masked, 7)
    unsure.head.logits.weight.data.mul_(0.2)  # so that images of a class differ
    hub.save(unsure, root / "masked")
    hub.save(tokenizer, root / "masked" / "tokenizer")
    stage = VectorConfig(codebook_size=32, codebook_dim=4, l2_norm=False)
    maps = replace(
        tokenizer_config, quantizer=ResidualConfig(stage=stage, view=ScalesConfig(scales=(1, 2, 4), blends=2))
    )
    hub.save(
        filled(
            NextScaleConfig(
                layout=maps.layout, codebook_size=32, codebook_dim=4, condition=labels, width=16, depth=1, num_heads=2
            ),
            5,
        ),
        root / "next-scale",
    )
    hub.save(filled(maps, 6), root / "next-scale" / "tokenizer")
    return root


def generator_config(
    tokenizer: TokenizerConfig, condition: LabelConditionConfig | TextConditionConfig
) -> GeneratorConfig:
    return GeneratorConfig(
        layout=tokenizer.layout,
        codebook_size=tokenizer.quantizer.codebook_size,
        condition=condition,
        width=16,
        depth=1,
        num_heads=2,
        mlp_hidden=16,
    )


def filled(config: ModelConfig, seed: int) -> torch.nn.Module:
    """A model with random weights that are strong enough for outputs that differ."""
    model, dice = config.build(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=dice)
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 100
            parameter.copy_(noise * 1.5 / fan_in**0.5 + (parameter.ndim == 1))
    return model.eval()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Two classes of four pictures: `cats` of 16 x 16 pixels, `dogs & more` of 19 x 22."""
    root = tmp_path_factory.mktemp("pictures")
    dice = torch.Generator().manual_seed(0)
    for label, (height, width) in {"cats": (16, 16), "dogs & more": (22, 19)}.items():
        for i in range(4):
            colours = torch.randint(256, (3, 4, 4), generator=dice, dtype=torch.uint8)
            picture = torch.nn.functional.interpolate(colours[None], size=(height, width))[0]
            save_png(root / label / f"{i}.png", picture)
    return root
