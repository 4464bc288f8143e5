import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from imgtok import hub
from imgtok.data import read_picture, to_float, to_uint8
from imgtok.metrics.image import psnr
from imgtok.sample.commands.common import picture_names
from imgtok.tokencache import TokenCache


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def reconstruct_words(models, out, *words):
    return ("reconstruct", *words, "--model", models / "tokenizer", "--out", out)


def test_a_folder_is_reconstructed_and_scored(run, models, pictures, tmp_path):
    result = run(*reconstruct_words(models, tmp_path, pictures))
    assert result.status == 0
    names = [f"{label}/{i}.png" for label in ("cats", "dogs & more") for i in range(4)]
    assert files(tmp_path) == [*names[:4], "comparison.png", *names[4:]]
    lines = result.out.splitlines()
    assert [line.partition("  ")[0] for line in lines[:8]] == names
    scores = [float(re.search(r"PSNR +([\d.]+) dB", line)[1]) for line in lines[:9]]
    assert scores[8] == pytest.approx(sum(scores[:8]) / 8, abs=0.011)

    tokenizer = hub.load(models / "tokenizer")
    original = to_float(read_picture(pictures / "cats" / "2.png"))[None]
    expected = tokenizer.reconstruct(original)
    assert torch.equal(read_picture(tmp_path / "cats" / "2.png"), to_uint8(expected)[0])
    assert scores[2] == pytest.approx(float(psnr(expected, original)), abs=0.005)


def test_edges_that_fill_no_token_are_cut_off(run, models, pictures, tmp_path, caplog):
    picture = pictures / "dogs & more" / "1.png"
    caplog.set_level("INFO")
    assert run(*reconstruct_words(models, tmp_path / "out", picture)).status == 0
    assert "1.png: cropped from 19 x 22 to 16 x 20 pixels" in caplog.text
    middle = to_float(read_picture(picture)[:, 1:21, 1:17])[None]
    expected = to_uint8(hub.load(models / "tokenizer").reconstruct(middle))[0]
    assert torch.equal(read_picture(tmp_path / "out" / "1.png"), expected)


def test_one_size_for_all(run, models, pictures, tmp_path):
    assert run(*reconstruct_words(models, tmp_path, pictures, "--size", 12)).status == 0
    assert {read_picture(tmp_path / name).shape for name in files(tmp_path) if "/" in name} == {(3, 12, 12)}


def test_several_inputs_and_equal_names(run, models, pictures, tmp_path):
    words = (pictures / "cats" / "0.png", pictures / "dogs & more" / "0.png", "photos", "--size", 16)
    assert run(*reconstruct_words(models, tmp_path, *words)).status == 0
    assert {"0.png", "0-2.png", "astronaut.png"} < set(files(tmp_path))
    assert len(files(tmp_path)) == 2 + 15 + 1


def test_damaged_pictures_in_a_folder_are_named_and_left_out(run, models, pictures, tmp_path, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    whole = (pictures / "cats" / "0.png").read_bytes()
    (folder / "good.png").write_bytes(whole)
    (folder / "cut.png").write_bytes(whole[:-40])
    Image.fromarray(np.zeros((5, 40, 3), np.uint8)).save(folder / "flat.png")
    assert run(*reconstruct_words(models, tmp_path / "out", folder)).status == 0
    assert files(tmp_path / "out") == ["comparison.png", "good.png"]
    assert "cut.png" in caplog.text
    assert "flat.png: 40 x 5 pixels are too few" in caplog.text


def test_what_reconstruct_refuses(refused, models, pictures, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "flat").mkdir()
    Image.fromarray(np.zeros((3, 40, 3), np.uint8)).save(tmp_path / "flat" / "flat.png")
    refused("no images were given", *reconstruct_words(models, out))
    refused("neither an embedded set nor an existing folder", *reconstruct_words(models, out, "missing.png"))
    refused("has no images", *reconstruct_words(models, out, tmp_path / "empty"))
    refused("not a picture of the formats", *reconstruct_words(models, out, tmp_path / "text.png"))
    refused("--size must be a multiple of 4", *reconstruct_words(models, out, pictures, "--size", 18))
    refused("--size must be a multiple of 4", *reconstruct_words(models, out, pictures, "--size", 0))
    refused("neither a preset nor a folder", "reconstruct", pictures, "--model", "vq", "--out", out)
    refused("'GeneratorConfig' is none of", "reconstruct", pictures, "--model", models / "generator", "--out", out)
    refused("--weights a.pt is for a preset", *reconstruct_words(models, out, pictures, "--weights", "a.pt"))
    refused("not one of the images can be read", *reconstruct_words(models, out, tmp_path / "flat"))


def test_originals_are_never_written_over(run, refused, models, pictures, tmp_path):
    (tmp_path / "0.png").write_bytes((pictures / "cats" / "0.png").read_bytes())
    refused("is not empty", *reconstruct_words(models, tmp_path, tmp_path))
    refused("would replace the original", *reconstruct_words(models, tmp_path, tmp_path, "--overwrite"))
    assert run(*reconstruct_words(models, tmp_path / "out", tmp_path)).status == 0
    refused("add --overwrite", *reconstruct_words(models, tmp_path / "out", tmp_path / "0.png"))
    assert run(*reconstruct_words(models, tmp_path / "out", tmp_path / "0.png", "--overwrite")).status == 0


def test_encode_and_decode_give_what_reconstruct_gives(run, models, pictures, tmp_path):
    tokens, decoded, direct = (tmp_path / name for name in ("tokens", "decoded", "direct"))
    encoded = run("encode", "--model", models / "tokenizer", "--data", pictures, "--out", tokens)
    assert (encoded.status, encoded.err) == (0, "")
    assert "8 images of 4 x 4 tokens" in encoded.out
    assert run("decode", tokens, "--model", models / "tokenizer", "--out", decoded, "--batch-size", 3).status == 0
    assert run(*reconstruct_words(models, direct, pictures, "--size", 16)).status == 0
    assert files(decoded) == [name for name in files(direct) if name != "comparison.png"]
    for name in files(decoded):
        difference = read_picture(decoded / name).int() - read_picture(direct / name).int()
        assert difference.abs().max() <= 1


def test_versions_are_encoded_and_the_first_is_decoded(run, models, pictures, tmp_path):
    words = ("--flip", "--shifts", 2, "--max-shift", 3, "--batch-size", 3)
    result = run("encode", "--model", models / "tokenizer", "--data", pictures, "--out", tmp_path / "many", *words)
    assert "8 images x 6 versions" in result.out
    run("encode", "--model", models / "tokenizer", "--data", pictures, "--out", tmp_path / "one")
    many, one = TokenCache(tmp_path / "many"), TokenCache(tmp_path / "one")
    assert len(many) == 48
    assert np.array_equal(many.tokens[::6], one.tokens)
    assert many.label_sets[0].values == ("cats", "dogs & more")
    run("decode", tmp_path / "many", "--model", models / "tokenizer", "--out", tmp_path / "out")
    assert len(files(tmp_path / "out")) == 8


def test_splits_together_make_the_whole(run, models, pictures, tmp_path):
    for split in ("train", "val"):
        words = ("--data", pictures, "--split", split, "--val-share", 0.3, "--out", tmp_path / split)
        assert run("encode", "--model", models / "tokenizer", *words).status == 0
    parts = [set(TokenCache(tmp_path / split).names) for split in ("train", "val")]
    assert len(parts[0] | parts[1]) == len(parts[0]) + len(parts[1]) == 8


def test_what_encode_refuses(run, refused, models, pictures, tmp_path):
    words = ("encode", "--model", models / "tokenizer", "--data", pictures, "--out", tmp_path / "out")
    refused("--shifts must be at least 0", *words, "--shifts", -1)
    refused("--max-shift must be at least 0", *words, "--max-shift", -1)
    refused("--batch-size must be at least 1", *words, "--batch-size", 0)
    refused("val_share 1.5 must lie between 0 and 1", *words, "--split", "val", "--val-share", 1.5)
    refused("neither an embedded set", *words[:3], "--data", "emoji", "--out", tmp_path / "out")
    refused("neither a preset nor a folder", "encode", "--model", "x", *words[3:])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    refused("holds 'diary.txt', which would be lost", *words[:-1], tmp_path / "mine")
    refused("holds 'diary.txt', which would be lost", *words[:-1], tmp_path / "mine", "--overwrite")
    assert run(*words).status == 0
    refused("add --overwrite", *words)
    assert run(*words, "--flip", "--overwrite").status == 0
    assert TokenCache(tmp_path / "out").versions == 2


def test_encode_does_not_replace_the_current_folder(refused, models, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("is the current folder", "encode", "--model", models / "tokenizer", "--data", pictures, "--out", ".")


@pytest.fixture
def tokens(run, models, pictures, tmp_path):
    run("encode", "--model", models / "tokenizer", "--data", pictures, "--out", tmp_path / "tokens")
    return tmp_path / "tokens"


def test_tokens_of_another_tokenizer_need_force(run, refused, models, tokens, tmp_path):
    words = ("decode", tokens, "--model", models / "other-tokenizer", "--out", tmp_path / "out")
    refused("was made by another tokenizer", *words)
    assert run(*words, "--force").status == 0
    assert len(files(tmp_path / "out")) == 8


def test_tokens_outside_the_codebook_are_refused_even_by_force(refused, models, tokens, tmp_path):
    values = np.load(tokens / "tokens.npy")
    values[3, 1] = 32
    np.save(tokens / "tokens.npy", values)
    refused("token 32 is not among its codes 0 to 31", "decode", tokens, "--model", models / "tokenizer", "--out",
            tmp_path / "out", "--force")  # fmt: skip


def test_what_decode_refuses(refused, models, tokens, tmp_path):
    words = ("--model", models / "tokenizer", "--out", tmp_path / "out")
    refused("holds no tokens", "decode", tmp_path, *words)
    refused("--batch-size must be at least 1", "decode", tokens, *words, "--batch-size", 0)
    refused("neither a preset nor a folder", "decode", tokens, "--model", "x", "--out", tmp_path / "out")
    refused("is not empty", "decode", tokens, "--model", models / "tokenizer", "--out", tokens)
    (tokens / "tokens.npy").write_bytes((tokens / "tokens.npy").read_bytes()[:-10])
    refused("are damaged", "decode", tokens, *words)
    (tokens / "names.json").write_text('[1, "two"]')
    refused("damaged", "decode", tokens, *words)
    (tokens / "names.json").unlink()
    refused("damaged", "decode", tokens, *words)


def test_names_in_a_cache_do_not_lead_out_of_the_folder(run, models, tokens, tmp_path):
    names = ["../../a.jpg", "/b", "c/../d.PNG", "A", "a", "x:y*.webp", "", "e.tar"]
    (tokens / "names.json").write_text(json.dumps(names))
    assert run("decode", tokens, "--model", models / "tokenizer", "--out", tmp_path / "in" / "out").status == 0
    expected = ["A.png", "_.png", "_/_/a.png", "a-2.png", "b.png", "c/_/d.png", "e.tar.png", "x_y_.png"]
    assert files(tmp_path / "in") == [f"out/{name}" for name in expected]


def test_reserved_names_are_kept_free():
    assert picture_names(["Grid.jpg", "grid.png"], reserved=["grid.png"]) == ["Grid-2.png", "grid-3.png"]


def test_the_coarsest_scales_alone_give_a_preview(run, refused, models, pictures, tmp_path):
    words = ("reconstruct", pictures, "--model", models / "next-scale" / "tokenizer", "--size", 16)
    for scales in (1, 3):
        assert run(*words, "--scales", scales, "--out", tmp_path / str(scales)).status == 0
    assert run(*words, "--out", tmp_path / "all").status == 0
    one, three, every = (read_picture(next((tmp_path / name).rglob("0.png"))) for name in ("1", "3", "all"))
    assert torch.equal(three, every) and not torch.equal(one, every)
    for scales in (0, 4):
        refused("--scales must be from 1 to 3", *words, "--scales", scales, "--out", tmp_path / "refused")
