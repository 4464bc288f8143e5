"""The pairs that come with the package: small, in half precision, and as good as their cards say."""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file

import imgtok
from imgtok import generators, zoo
from imgtok.data import load, to_float
from imgtok.generators.hub import tokenizer_source
from imgtok.hub import fingerprint
from imgtok.metrics.image import psnr
from imgtok.sample.images import SamplerConfig, check_pair, generate
from imgtok.sample.law import Law
from imgtok.train import recipes


@pytest.fixture(params=zoo.names())
def name(request):
    return request.param


def test_there_is_a_pair_of_each_kind_and_the_default_is_one():
    assert {"emoji64-gpt", "emoji64-var", "emoji64-1d"} <= set(zoo.names())
    assert zoo.names()[0] == zoo.DEFAULT


def test_all_together_are_small_and_in_half_precision():
    files = list(zoo.ROOT.rglob("*.safetensors"))
    assert len(files) == 2 * len(zoo.names())
    assert sum(path.stat().st_size for path in files) <= 12e6
    for path in files:
        assert {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()} == {torch.float16}


def test_a_pair_loads_by_its_name_in_float32_and_in_what_is_asked_for(name):
    generator, tokenizer = generators.load(name), imgtok.load(name)
    check_pair(generator, tokenizer)
    for model in (generator, tokenizer):
        assert not model.training
        assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}
    assert next(imgtok.load(name, dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_whoever_has_the_generators_name_finds_the_tokenizer(name):
    source = tokenizer_source(name)
    assert source is not None
    assert fingerprint(imgtok.load(source, dtype=torch.float32)) == fingerprint(imgtok.load(name))


def test_its_reconstructions_are_as_good_as_its_card_says(name):
    pictures, tokenizer = load("emoji64", "val"), imgtok.load(name)
    images = to_float(torch.stack([pictures.image(i) for i in range(len(pictures))]))
    found = torch.cat([psnr(tokenizer.reconstruct(part), part) for part in images.split(59)]).mean()
    assert float(found) == pytest.approx(zoo.card(name).measured["PSNR"], abs=0.02)


def test_its_pictures_are_the_same_at_any_batch_size_and_no_two_are_equal(name):
    generator, tokenizer = generators.load(name), imgtok.load(name)
    labels = torch.tensor([[i, label, style] for i, label, style in ((0, 81, 3), (3, 81, 3), (4, 81, 3))])
    way = SamplerConfig(law=Law(temperature=0.8, top_k=50), batch_size=3)
    together = torch.cat(list(generate(generator, tokenizer, labels, way, seed=5)))
    alone = torch.cat(list(generate(generator, tokenizer, labels[1:2], way, seed=5, first=1)))
    torch.testing.assert_close(together[1:2], alone, atol=0.02, rtol=0)
    assert (together[0] - together[1]).abs().mean() > 0.05


def test_the_commands_of_its_card_name_recipes_that_there_are(name):
    known = {"tokenizer": recipes.TOKENIZERS, "generator": recipes.GENERATORS, "posttrain": recipes.POST_TRAININGS}
    for command in zoo.card(name).training:
        words = shlex.split(command)
        assert words[0] == "imgtok"
        if words[1] == "train":
            assert words[3] in known[words[2]]


def test_a_name_that_is_none_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no pair of the zoo; there are emoji64-"):
        zoo.card("emoji65")
    with pytest.raises(ValueError, match="presets: emoji64-gpt, "):
        imgtok.load("emoji65")


def test_cards_are_whole(name):
    card = zoo.card(name)
    assert card.licence and card.data and card.training and card.evaluation
    assert {"PSNR", "gFD-efflite0", "KD-efflite0"} <= card.measured.keys()
    assert json.loads((zoo.ROOT / name / zoo.CARD_FILE).read_text())
