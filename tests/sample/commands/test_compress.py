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
from imgtok.sample.codecs import Point, at_rate

VIT = ViTConfig(width=16, depth=1, num_heads=2)


@pytest.fixture
def picture(pictures):
    return pictures / "dogs & more" / "1.png"  # 19 x 22 pixels


@pytest.fixture
def ordered(tokenizer_config, tmp_path):
    backbone = QueryConfig(latents=(6,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=VIT, drop_tail=True)
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


def test_rate_and_distortion_beside_picture_formats(run, refused, models, ordered, pictures, tmp_path):
    out, words = tmp_path / "out", ("--model", models / "tokenizer", "--model", ordered, "--size", 16, "--num", 3)
    result = run("rate-distortion", pictures / "cats", "emoji64", *words, "--out", out)
    assert (result.status, result.err) == (0, "")
    assert {path.name for path in out.iterdir()} == {"rate-distortion.png", "rate-distortion.json"}
    numbers = json.loads((out / "rate-distortion.json").read_text())
    assert set(numbers) == {str(pictures / "cats"), "emoji64"}
    for entry in numbers.values():
        assert entry["pictures"] == 3
        assert {"JPEG", str(models / "tokenizer"), str(ordered)} <= set(entry["curves"])
        jpeg = entry["curves"]["JPEG"]
        assert [point["bits"] for point in jpeg] == sorted(point["bits"] for point in jpeg)
        assert jpeg[-1]["psnr"] > jpeg[0]["psnr"]
        assert len(entry["curves"][str(models / "tokenizer")]) == 1
        assert len(entry["curves"][str(ordered)]) == 6
    assert "JPEG none (its smallest: " in result.out
    refused("add --overwrite", "rate-distortion", pictures / "cats", *words, "--out", out)
    refused("at least one --model", "rate-distortion", pictures / "cats", "--out", tmp_path / "new")


def test_between_two_points_the_curve_follows_the_logarithm_of_the_rate():
    curve = [Point(bits=1.0, psnr=10.0, ssim=0.2), Point(bits=4.0, psnr=20.0, ssim=0.4)]
    middle = at_rate(curve, 2.0)
    assert (middle.psnr, middle.ssim) == (pytest.approx(15), pytest.approx(0.3))
    assert at_rate(curve, 1.0).psnr == 10
    assert at_rate(curve, 0.9) is at_rate(curve, 4.1) is None
