"""NFIG's presets: VAR's models over frequency bands, which nobody has published weights for."""

from dataclasses import replace

import pytest
import torch

import imgtok
from imgtok.backbones.cnn import CNNConfig
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.hub import build_empty
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.quantizers.views import BandsConfig
from imgtok.sample.images import check_pair

PRESET = TOKENIZERS["nfig-vq-f16"]
ITS_GENERATORS = [name for name, preset in GENERATORS.items() if preset.tokenizer == "nfig-vq-f16"]


def test_the_tokenizer_differs_from_vars_in_its_view_only():
    theirs, view = TOKENIZERS["var-vq-f16"].config, PRESET.config.quantizer.view
    assert isinstance(view, BandsConfig)
    assert view.scales == replace(theirs.quantizer.view, other_scales=())
    assert replace(PRESET.config, quantizer=replace(PRESET.config.quantizer, view=theirs.quantizer.view)) == theirs


@pytest.mark.parametrize("name", ITS_GENERATORS)
def test_a_generator_takes_the_tokenizer_and_no_other(name):
    generator = build_empty(GENERATORS[name].config)
    check_pair(generator, build_empty(PRESET.config))
    with pytest.raises(ValueError, match="do not belong together"):
        check_pair(generator, build_empty(TOKENIZERS["llamagen-vq-f16"].config))


def test_there_are_the_papers_two_sizes():
    millions = [
        sum(p.numel() for p in build_empty(GENERATORS[name].config).parameters()) / 1e6 for name in ITS_GENERATORS
    ]
    assert [round(size, -1) for size in millions] == [310, 600]


@pytest.fixture
def tiny(monkeypatch) -> str:
    """The row with a small backbone, for latents of 4 x 4."""
    backbone = CNNConfig(
        encoder_widths=(8,), decoder_widths=(8,), encoder_blocks=(1,), decoder_blocks=(1,), encoder_patch=4,
        decoder_patch=4, latent_channels=8, bottleneck=False, norm_groups=4,
    )  # fmt: skip
    config = replace(PRESET.config, image_size=16, backbone=backbone)
    monkeypatch.setitem(TOKENIZERS, "tiny", replace(PRESET, config=config))
    return "tiny"


def test_without_published_weights_yours_are_asked_for(tiny):
    with pytest.raises(ValueError, match="no weights were published for tiny; pass weights=FILE or train it"):
        imgtok.load(tiny)


def test_weights_of_your_own_load_by_the_presets_name(tiny, tmp_path, capsys):
    own = TOKENIZERS[tiny].config.build().eval()
    imgtok.save(own, tmp_path)
    loaded = imgtok.load(tiny, weights=tmp_path / "model.safetensors")
    assert "no published weights, yours are used" in capsys.readouterr().err
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(loaded.reconstruct(images), own.reconstruct(images))
