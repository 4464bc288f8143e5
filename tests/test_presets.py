"""Every row of presets: it builds, it has the published number of parameters, it survives JSON, it is complete."""

import json

import pytest
import torch

from imgtok import config as configs
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.next_scale import NextScaleConfig
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.generators.presets.llamagen import sized
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.tokenizer import TokenizerConfig

# Trainable parameters as published; a text condition's null features are no parameter.
TOKENIZER_PARAMETERS = {
    "llamagen-vq-f16": 71_883_403,
    "llamagen-vq-f16-t2i": 71_883_403,
    "llamagen-vq-f8": 70_109_835,
    "var-vq-f16": 108_948_355,
}
GPT_PARAMETERS = {  # size -> class-conditional, text-conditional
    "b": (110_888_448, 112_282_368),
    "l": (342_910_976, 345_031_680),
    "xl": (774_699_520, 777_678_080),
    "xxl": (1_410_972_672, 1_414_940_160),
    "3b": (3_096_659_200, 3_110_249_600),
}
VAR_PARAMETERS = {  # depth -> as published; ours have a bias of zeros for keys too
    "d16": 310_283_520,
    "d20": 600_917_136,
    "d24": 1_033_399_360,
    "d30": 2_010_020_356,
    "d36": 2_353_893_904,
}


def on_meta(config):
    with torch.device("meta"):
        return config.build()


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_has_the_published_number_of_parameters(name):
    assert count(on_meta(TOKENIZERS[name].config)) == TOKENIZER_PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in GENERATORS if name.startswith("llamagen-")])
def test_a_generator_has_the_published_number_of_parameters(name):
    size, text = name.split("-")[2], "t2i" in name
    assert count(on_meta(GENERATORS[name].config)) == GPT_PARAMETERS[size][text]


@pytest.mark.parametrize("name", [name for name in GENERATORS if name.startswith("var-")])
def test_a_next_scale_generator_has_the_published_number_of_parameters(name):
    config = GENERATORS[name].config
    assert count(on_meta(config)) - config.depth * config.width == VAR_PARAMETERS[name.split("-")[1]]


@pytest.mark.parametrize("size", GPT_PARAMETERS)
def test_every_size_with_a_text_prefix_has_the_published_number_of_parameters(size):
    assert count(on_meta(sized(size, 256, "t2i"))) == GPT_PARAMETERS[size][1]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_fits_its_tokenizer(name):
    preset = GENERATORS[name]
    tokenizer = TOKENIZERS[preset.tokenizer].config
    layout, side = preset.config.layout, int(name.rpartition("-")[2])
    assert preset.config.codebook_size == tokenizer.quantizer.codebook_size
    assert layout == tokenizer.layout_of(side, side)


@pytest.mark.parametrize(
    ("presets", "kind"), [(TOKENIZERS, TokenizerConfig), (GENERATORS, (GeneratorConfig, NextScaleConfig))]
)
def test_configurations_survive_json(presets, kind):
    for preset in presets.values():
        assert configs.from_dict(kind, json.loads(json.dumps(configs.to_dict(preset.config)))) == preset.config


@pytest.mark.parametrize("name", [*TOKENIZERS, *GENERATORS])
def test_a_row_is_complete(name):
    preset = {**TOKENIZERS, **GENERATORS}[name]
    assert preset.paper.startswith("arXiv:")
    assert preset.code
    assert preset.licence
    assert preset.weights or not preset.published  # numbers belong to files
    assert all(value > 0 for value in preset.published.values())


def test_no_name_is_both_a_tokenizer_and_a_generator():
    assert not TOKENIZERS.keys() & GENERATORS.keys()


def test_no_two_rows_share_a_file():
    files = [
        (preset.weights.repo, preset.weights.file)
        for preset in [*TOKENIZERS.values(), *GENERATORS.values()]
        if preset.weights
    ]
    assert len(files) == len(set(files))
