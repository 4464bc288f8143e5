import json
import re
from dataclasses import replace

import pytest
import torch

from imgtok import hub
from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.compression import Compressor
from imgtok.data import read_picture
from imgtok.nn.nested import NestedDropout
from imgtok.sample.codecs import Point, at_rate, bytes_for, lost, mean

VIT = ViTConfig(width=16, depth=1, num_heads=2)


@pytest.fixture
def picture(pictures):
    return pictures / "dogs & more" / "1.png"  # 19 x 22 pixels


@pytest.fixture
def ordered(tokenizer_config, tmp_path):
    backbone = QueryConfig(latents=(6,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=VIT, nested=NestedDropout())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hub.save(replace(tokenizer_config, backbone=backbone).build(), tmp_path / "ordered")
    return tmp_path / "ordered"


def test_a_picture_is_compressed_and_decompressed(run, models, picture, tmp_path):
    file, back, model = tmp_path / "a.imtk", tmp_path / "a.png", models / "tokenizer"
    result = run("compress", picture, "-o", file, "--model", model)
    assert (result.status, result.err) == (0, "")
    count = file.stat().st_size
    assert re.search(rf"{count} bytes, {8 * count / 19 / 22:.3f} bits a pixel, 30 of 30 tokens, PSNR", result.out)
    result = run("decompress", file, "-o", back, "--model", model)
    assert (result.status, result.err) == (0, "")
    assert "19 x 22 pixels from 30 of 30 tokens" in result.out
    compressor = Compressor(hub.load(model))
    assert torch.equal(read_picture(back), compressor.decode(compressor.encode(read_picture(picture))))


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--tokens", 2), 2),
        (("--quality", -99), 1),
        (("--quality", 99), 6),
        (("--quality", 2, "--metric", "ssim"), 6),
        (("--quality", 1e-9, "--metric", "efficientnet-lite0"), 6),
        (("--quality", 1e9, "--metric", "efficientnet-lite0"), 1),
        (("--bytes", 23, "--coding", "packed"), 4),
        (("--bytes", 1000), 6),
    ],
)
def test_the_first_tokens_alone(run, ordered, picture, tmp_path, words, count):
    result = run("compress", picture, "-o", tmp_path / "a.imtk", "--model", ordered, *words)
    assert (result.status, result.err) == (0, "")
    assert f" {count} of 6 tokens" in result.out
    assert run("decompress", tmp_path / "a.imtk", "-o", tmp_path / "a.png", "--model", ordered).status == 0


def test_a_file_that_is_cut_is_decompressed(run, ordered, picture, tmp_path):
    words = ("-o", tmp_path / "a.imtk", "--model", ordered, "--coding", "packed")
    assert run("compress", picture, *words).status == 0
    content = (tmp_path / "a.imtk").read_bytes()
    (tmp_path / "b.imtk").write_bytes(content[:-2])
    result = run("decompress", tmp_path / "b.imtk", "-o", tmp_path / "b.png", "--model", ordered)
    assert "from 3 of 6 tokens" in result.out


def test_a_square_of_one_size(run, models, picture, tmp_path):
    words = ("-o", tmp_path / "a.imtk", "--model", models / "tokenizer", "--size", 12)
    assert "9 of 9 tokens" in run("compress", picture, *words).out


def test_what_is_refused(run, refused, models, picture, ordered, tmp_path):
    file, model = tmp_path / "a.imtk", models / "tokenizer"
    assert run("compress", picture, "-o", file, "--model", model).status == 0
    new = ("-o", tmp_path / "b.imtk", "--model", model)
    refused("give one of them", "compress", picture, *new, "--tokens", 2, "--bytes", 90)
    refused("--tokens must be at least 1", "compress", picture, *new, "--tokens", 0)
    refused("use 30", "compress", picture, *new, "--tokens", 2)
    refused("20 bytes are too few", "compress", picture, *new, "--bytes", 20)
    refused("is there already", "compress", picture, "-o", file, "--model", model)
    refused("would replace what is read", "compress", picture, "-o", picture, "--model", model)
    refused("is a folder", "compress", picture, "-o", tmp_path, "--model", model)
    refused("is not a file", "compress", tmp_path / "none.png", *new)
    refused("not a picture", "compress", file, *new)
    image = ("-o", tmp_path / "b.png")
    refused("written as PNG", "decompress", file, "-o", tmp_path / "b.jpg", "--model", model)
    refused("but this one is", "decompress", file, *image, "--model", models / "other-tokenizer")
    refused("no token file", "decompress", picture, *image, "--model", model)


@pytest.mark.parametrize(("name", "tokens"), [("generator", 16), ("next-scale", 21)])
def test_a_picture_under_a_generators_law(run, refused, models, pictures, tmp_path, name, tokens):
    picture, file, back, model = pictures / "cats" / "1.png", tmp_path / "a.imtk", tmp_path / "a.png", models / name
    words = ("--model", model, "--label", "style=fluent", "--coding", "predicted")
    result = run("compress", picture, "-o", file, *words)
    assert (result.status, result.err) == (0, "")
    assert f"{tokens} of {tokens} tokens" in result.out
    refused("decode with it (its folder as --model)", "decompress", file, "-o", back, "--model", model / "tokenizer")
    refused("but the generator goes with", "decompress", file, "-o", back, "--model", other_pair(models, name))
    assert run("decompress", file, "-o", back, "--model", model).status == 0
    compressor = Compressor(hub.load(model / "tokenizer"))
    assert torch.equal(read_picture(back), compressor.decode(compressor.encode(read_picture(picture))))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    refused("do not agree with their checksum", "decompress", file, "-o", tmp_path / "b.png", "--model", model)


def other_pair(models, name):
    return models / ("next-scale" if name == "generator" else "generator")


def test_as_many_tokens_as_fit_under_a_generators_law(run, models, pictures, tmp_path):
    words = ("--model", models / "next-scale", "--coding", "predicted")
    assert run("compress", pictures / "cats" / "0.png", "-o", tmp_path / "a.imtk", *words).status == 0
    most = (tmp_path / "a.imtk").stat().st_size - 2
    result = run("compress", pictures / "cats" / "0.png", "-o", tmp_path / "b.imtk", *words, "--bytes", most)
    assert " 5 of 21 tokens" in result.out
    assert (tmp_path / "b.imtk").stat().st_size <= most


def test_what_a_generator_does_not_predict_is_refused(refused, models, picture, pictures, tmp_path):
    new, cat = ("-o", tmp_path / "b.imtk"), pictures / "cats" / "1.png"
    refused("scale the picture", "compress", picture, *new, "--model", models / "generator")
    refused("a masked generator knows no law", "compress", cat, *new, "--model", models / "masked")
    texts = ("--model", models / "text-generator", "--tokenizer", models / "tokenizer")
    refused("told texts", "compress", cat, *new, *texts)
    tokenizer = ("--model", models / "tokenizer")
    refused("--label goes with a generator", "compress", cat, *new, *tokenizer, "--label", "style=noto")
    refused("--tokenizer goes with a generator", "compress", cat, *new, *tokenizer, "--tokenizer", models / "tokenizer")
    refused("needs a generator", "compress", cat, *new, *tokenizer, "--coding", "predicted")


def test_rate_and_distortion_beside_picture_formats(run, refused, models, ordered, pictures, tmp_path):
    out, words = tmp_path / "out", ("--model", models / "generator", "--model", ordered, "--size", 16, "--pictures", 2)
    result = run("rate-distortion", pictures / "cats", "emoji64", *words, "--out", out)
    assert (result.status, result.err) == (0, "")
    assert {path.suffix for path in out.iterdir()} == {".png", ".svg", ".json"}
    numbers = json.loads((out / "rate-distortion.json").read_text())
    assert set(numbers) == {str(pictures / "cats"), "emoji64"}
    law = f"{models / 'generator'} + law"
    for entry in numbers.values():
        assert entry["pictures"] == 2
        assert {"JPEG", str(models / "generator"), law, str(ordered)} <= set(entry["curves"])
        jpeg = entry["curves"]["JPEG"]
        assert [point["means"]["bits"] for point in jpeg] == sorted(point["means"]["bits"] for point in jpeg)
        assert jpeg[-1]["means"]["psnr"] > jpeg[0]["means"]["psnr"]
        assert (
            set(jpeg[0]["means"]) == set(jpeg[0]["errors"]) == {"bytes", "bits", "psnr", "ssim", "efficientnet-lite0"}
        )
        (alone,), (predicted,) = entry["curves"][str(models / "generator")], entry["curves"][law]
        assert predicted["means"]["bytes"] <= alone["means"]["bytes"]
        assert predicted["means"]["psnr"] == alone["means"]["psnr"]
        assert [point["label"] for point in entry["curves"][str(ordered)]] == [f"{i} tokens" for i in range(1, 7)]
    assert "JPEG none (its smallest: " in result.out
    assert re.search(r"beside JPEG: JPEG has no files so small; for the [\d.]+ dB of its \d+ bytes JPEG", result.out)
    refused("add --overwrite", "rate-distortion", pictures / "cats", *words, "--out", out)
    refused("at least one --model", "rate-distortion", pictures / "cats", "--out", tmp_path / "new")


def test_pictures_that_a_generator_does_not_predict_are_measured_without_it(run, models, pictures, tmp_path, caplog):
    words = ("--model", models / "generator", "--metric", "none", "--pictures", 2, "--out", tmp_path / "out")
    assert run("rate-distortion", pictures / "dogs & more", *words).status == 0
    assert "is measured without its law: the generator predicts tokens of" in caplog.text


def test_a_pair_of_the_zoo_is_measured_under_its_law_too(run, tmp_path):
    words = ("--model", "emoji64-var", "--metric", "none", "--pictures", 1, "--out", tmp_path / "out")
    assert run("rate-distortion", "emoji64", *words).status == 0
    curves = json.loads((tmp_path / "out" / "rate-distortion.json").read_text())["emoji64"]["curves"]
    alone, predicted = (curves[name][-1]["means"]["bytes"] for name in ("emoji64-var", "emoji64-var + law"))
    assert predicted < alone


def point(**means: float) -> Point:
    return Point(label="", means=means)


def test_between_two_points_the_curve_follows_the_logarithm_of_the_rate():
    curve = [point(bytes=10, bits=1.0, psnr=10.0, ssim=0.2), point(bytes=40, bits=4.0, psnr=20.0, ssim=0.4)]
    middle = at_rate(curve, 2.0).means
    assert (middle["psnr"], middle["ssim"]) == (pytest.approx(15), pytest.approx(0.3))
    assert at_rate(curve, 1.0).means["psnr"] == 10
    assert at_rate(curve, 0.9) is at_rate(curve, 4.1) is None
    assert bytes_for(curve, "psnr", 15) == pytest.approx(20)
    assert bytes_for(curve, "psnr", 9) is bytes_for(curve, "psnr", 21) is None


def test_what_is_lost_is_what_is_worse():
    one, other = point(bits=1.0, psnr=10.0, ssim=0.2, lpips=0.3), point(bits=2.0, psnr=11.0, ssim=0.2, lpips=0.2)
    assert lost(one, other) == ["psnr", "lpips"]
    assert lost(other, one) == []


def test_errors_of_means_are_standard_errors():
    found = mean("", [{"psnr": value} for value in (1.0, 3.0, 5.0, 7.0)])
    assert found.means == {"psnr": 4.0}
    assert found.errors["psnr"] == pytest.approx((20 / 3) ** 0.5 / 2)
    assert mean("", [{"psnr": 1.0}]).errors == {}
