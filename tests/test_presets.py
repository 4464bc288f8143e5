"""Every row of presets: it builds, it has the published number of parameters, it survives JSON, it is complete."""

import json
from dataclasses import replace

import pytest
import torch

from imgtok import config as configs
from imgtok.generators.generator import GeneratorConfig
from imgtok.generators.masked import MaskedConfig
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
    "nfig-vq-f16": 108_948_355,  # ours: VAR's
}
# Of these, ours have other numbers: a sum of constants is one vector, convolutions have biases of zeros, and so on.
CNN_DECODER, CNN_ENCODER = 89_472, 892_800  # what MaskGIT's halves have more
QUERY_PARAMETERS = {  # as published; the difference: of encoder (width x vectors merged), decoder, and CNN
    "maskgit-vqgan-f16": (54_515_587, CNN_DECODER + CNN_ENCODER + 2 * 256 * 257),
    "titok-l32": (641_054_735, CNN_DECODER - 1024 * (32 + 1) - 1024 * 2),
    "titok-s128": (83_674_639, CNN_DECODER - 512 * (128 + 1) - 512 * 2),
    "titok-sl256-vq8k": (330_260_884, -512 * (256 + 1) - 1024 * 2),
    "one-d-piece-s256": (83_871_247, CNN_DECODER - 512 * (256 + 1) - 512 * 2),
    "robusttok-f16": (172_288_064, 768 * (256 - 3) - 768 * 3),
}
ROUNDED_PARAMETERS = {
    "titok-b64": 204.8e6,
    "titok-bl64-vq8k": 390.0e6,
    "one-d-piece-b256": 205.3e6,
    "one-d-piece-l256": 641.7e6,
}
BACKBONES = {  # of these the codes differ alone, or the number of latents
    "robusttok-f16-post": "robusttok-f16",
    "xqgan-f16-4096": "robusttok-f16",
    "xqgan-f16-8192": "robusttok-f16",
    "titok-bl128-vq8k": "titok-bl64-vq8k",
    "titok-bl64-vae": "titok-bl64-vq8k",
    "titok-bl128-vae": "titok-bl64-vq8k",
    "imagefolder-8192": "imagefolder-4096",
    "imagefolder-16384": "imagefolder-4096",
    "xqgan-f16-vp2-4096": "imagefolder-4096",
    "xqgan-f16-vp2-16384": "imagefolder-4096",
    "xqgan-f16-msb-4096": "imagefolder-4096",
    "xqgan-f16-msb-16384": "imagefolder-4096",
}
BILLIONS = {  # as the hub shows them, with the autoencoder
    "flextok-d12-d12": "0.3",
    "flextok-d18-d18": "0.9",
    "flextok-d18-d28": "3",
    "flextok-d18-d28-dfn": "3",
}
NOT_COUNTED = {"imagefolder-4096", "titok-ll32-vae"}  # no number was published
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
VIT = 177_202_432  # of L-32; ours have one type of token in place of two, and it is part of the positions
MASKED_PARAMETERS = {"l32": VIT - 2 * 768, "b64": VIT - 2 * 768 + 32 * 768}


def on_meta(config):
    with torch.device("meta"):
        return config.build()


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TOKENIZER_PARAMETERS)
def test_a_tokenizer_has_the_published_number_of_parameters(name):
    assert count(on_meta(TOKENIZERS[name].config)) == TOKENIZER_PARAMETERS[name]


@pytest.mark.parametrize("name", QUERY_PARAMETERS)
def test_a_tokenizer_with_queries_has_the_published_number_of_parameters_but_for_merged_ones(name):
    assert count(on_meta(TOKENIZERS[name].config)) == sum(QUERY_PARAMETERS[name])


@pytest.mark.parametrize("name", ROUNDED_PARAMETERS)
def test_a_tokenizer_has_about_the_published_number_of_parameters(name):
    assert abs(count(on_meta(TOKENIZERS[name].config)) / ROUNDED_PARAMETERS[name] - 1) < 1e-3


@pytest.mark.parametrize("name", BILLIONS)
def test_a_flow_has_as_many_billions_of_parameters_as_published(name):
    assert f"{count(on_meta(TOKENIZERS[name].config)) / 1e9:.1g}" == BILLIONS[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_variants_have_the_backbone_of_the_one_whose_number_is_known(name):
    backbone, known = TOKENIZERS[name].config.backbone, TOKENIZERS[BACKBONES[name]].config.backbone
    assert replace(backbone, latents=known.latents) == known


def test_every_tokenizer_is_counted_or_compared():
    assert TOKENIZERS.keys() == {
        *TOKENIZER_PARAMETERS,
        *QUERY_PARAMETERS,
        *ROUNDED_PARAMETERS,
        *BACKBONES,
        *BILLIONS,
        *NOT_COUNTED,
    }


@pytest.mark.parametrize("name", [name for name in GENERATORS if name.startswith("llamagen-")])
def test_a_generator_has_the_published_number_of_parameters(name):
    size, text = name.split("-")[2], "t2i" in name
    assert count(on_meta(GENERATORS[name].config)) == GPT_PARAMETERS[size][text]


@pytest.mark.parametrize("name", [name for name in GENERATORS if name.startswith(("var-", "nfig-"))])
def test_a_next_scale_generator_has_the_published_number_of_parameters(name):
    config = GENERATORS[name].config
    assert count(on_meta(config)) - config.depth * config.width == VAR_PARAMETERS[name.split("-")[1]]


@pytest.mark.parametrize("name", MASKED_PARAMETERS)
def test_a_masked_generator_has_the_published_number_of_parameters_but_for_merged_ones(name):
    assert count(on_meta(GENERATORS[f"titok-maskgit-{name}-256"].config)) == MASKED_PARAMETERS[name]


def test_the_masked_u_vit_has_about_the_published_number_of_parameters():
    assert abs(count(on_meta(GENERATORS["titok-maskgit-s128-256"].config)) / 295.0e6 - 1) < 1e-3


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
    ("presets", "kind"), [(TOKENIZERS, TokenizerConfig), (GENERATORS, (GeneratorConfig, NextScaleConfig, MaskedConfig))]
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
