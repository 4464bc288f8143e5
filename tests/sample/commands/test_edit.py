import json

import pytest
import torch

from imgtok import zoo
from imgtok.data import read_picture, save_png


def versions(folder):
    return torch.stack([read_picture(path) for path in sorted(folder.glob("[0-9]*.png"))])


@pytest.fixture
def picture(pictures):
    return pictures / "cats" / "0.png"


@pytest.mark.parametrize("model", ["generator", "next-scale", "masked"])
def test_what_the_box_leaves_stays_and_the_rest_is_drawn(run, models, picture, tmp_path, model):
    words = ("--box", "8,4,8,12", "--border", 0, "--num", 3, "--label", "category=Flags", "--guidance", 1)
    result = run("edit", picture, "--model", models / model, *words, "--out", tmp_path)
    assert (result.status, result.err) == (0, "")
    assert "3 images" in result.out
    original, drawn = read_picture(picture), versions(tmp_path)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:, 8:] = True
    assert torch.equal(drawn[:, :, ~mask], original[:, ~mask].expand(3, -1, -1))
    assert len(drawn[:, :, mask].unique(dim=0)) == 3
    assert not (drawn[:, :, mask] == original[:, mask]).flatten(1).all(1).any()
    settings = json.loads((tmp_path / "samples.json").read_text())
    assert (settings["image"], settings["box"]) == (str(picture), "8,4,8,12")
    assert [image["condition"] for image in settings["images"]] == [{"category": "Flags"}] * 3
    shown = read_picture(tmp_path / "grid.png")[:, 2:18, 2:18]
    assert torch.equal(shown[:, ~mask], original[:, ~mask])
    assert bool((shown[:, mask] == 127).all())


@pytest.mark.parametrize("model", ["generator", "next-scale"])
def test_a_box_in_shares_and_a_mask_are_the_same_edit(run, models, picture, tmp_path, model):
    mask = torch.zeros(3, 16, 16, dtype=torch.uint8)
    mask[:, 4:, 8:] = 255
    save_png(tmp_path / "mask.png", mask)
    for name, region in (
        ("pixels", ("--box", "8,4,8,12")),
        ("shares", ("--box", "0.5,0.25,0.5,.75")),
        ("mask", ("--mask", tmp_path / "mask.png")),
    ):
        result = run("edit", picture, "--model", models / model, *region, "--num", 2, "--out", tmp_path / name)
        assert (result.status, result.err) == (0, "")
    assert torch.equal(versions(tmp_path / "pixels"), versions(tmp_path / "shares"))
    assert torch.equal(versions(tmp_path / "pixels"), versions(tmp_path / "mask"))


def test_a_picture_is_put_into_the_box_and_painted_around(run, models, picture, tmp_path):
    words = ("--outpaint", "4,0,12,12", "--border", 0, "--num", 2, "--out", tmp_path)
    assert run("edit", picture, "--model", models / "generator", *words).status == 0
    drawn, shown = versions(tmp_path), read_picture(tmp_path / "grid.png")[:, 2:18, 2:18]
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[:12, 4:] = True
    assert bool((shown[:, ~inside] == 127).all())
    assert torch.equal(drawn[:, :, inside], shown[:, inside].expand(2, -1, -1))
    assert not torch.equal(drawn[0][:, ~inside], drawn[1][:, ~inside])
    assert (shown[:, inside].float().mean() - read_picture(picture).float().mean()).abs() < 8  # all of it, smaller


def test_a_picture_of_another_size_is_cropped_with_its_mask(run, models, pictures, tmp_path):
    """19 x 22 pixels to 16 x 16 of 16 x 19: rows 0 to 10 become rows 0 to 8, of which the crop takes the first."""
    mask = torch.zeros(3, 22, 19, dtype=torch.uint8)
    mask[:, :10] = 255
    save_png(tmp_path / "mask.png", mask)
    words = ("--mask", tmp_path / "mask.png", "--num", 1, "--out", tmp_path / "out")
    assert run("edit", pictures / "dogs & more" / "0.png", "--model", models / "generator", *words).status == 0
    grey = (read_picture(tmp_path / "out" / "grid.png")[:, 2:18, 2:18] == 127).all(0)
    assert bool(grey[:7].all()) and not bool(grey[8:].all(1).any())


@pytest.mark.parametrize("strategy", ["plain", "jacobi", "branched", "recycled"])
def test_a_faster_way_gives_the_same_versions(run, models, picture, tmp_path, strategy):
    common = ("edit", picture, "--model", models / "generator", "--box", "4,4,8,8", "--num", 5, "--top-k", 9)
    assert run(*common, "--batch-size", 2, "--out", tmp_path / "auto").status == 0
    assert run(*common, "--strategy", strategy, "--out", tmp_path / "other").status == 0
    one, other = versions(tmp_path / "auto").int(), versions(tmp_path / "other").int()
    assert (one - other).abs().max() <= 1  # convolutions over batches of other sizes round otherwise


def test_without_labels_none_is_told_and_nothing_is_guided(run, models, picture, tmp_path):
    common = ("edit", picture, "--model", models / "generator", "--box", "4,4,8,8", "--num", 2)
    assert run(*common, "--guidance", 9, "--out", tmp_path / "one").status == 0
    assert run(*common, "--guidance", 1, "--out", tmp_path / "other").status == 0
    assert torch.equal(versions(tmp_path / "one"), versions(tmp_path / "other"))
    settings = json.loads((tmp_path / "one" / "samples.json").read_text())
    assert [image["condition"] for image in settings["images"]] == [{}, {}]


def test_a_pair_of_the_zoo_edits_as_it_draws(run, picture, tmp_path):
    best = zoo.card("emoji64-var").sampling
    words = ("--model", "emoji64-var", "--box", "16,16,32,32", "--num", 1, "--label", "style=noto")
    assert run("edit", picture, *words, "--out", tmp_path).status == 0
    settings = json.loads((tmp_path / "samples.json").read_text())
    used = settings["guidance"]["scale"], settings["law"]["temperature"], settings["law"]["top_k"]
    assert used == (best.guidance, best.temperature, best.top_k)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("say what to draw with one of --mask FILE, --box X,Y,W,H and --outpaint X,Y,W,H; none was given", ()),
        ("got --box and --outpaint", ("--box", "1,1,2,2", "--outpaint", "1,1,2,2")),
        ("--box 1,1,2 is not four numbers X,Y,WIDTH,HEIGHT, such as 4,4,8,8", ("--box", "1,1,2")),
        ("--outpaint a,b,c,d is not four numbers", ("--outpaint", "a,b,c,d")),
        ("the box is 8 x 9 at (8, 8) pixels, which is not inside a picture of 16 x 16", ("--box", "8,8,8,9")),
        ("the box is 0 x 4 at (0, 0)", ("--box", "0,0,0,4")),
        ("there is nothing to draw", ("--outpaint", "0.0,0,1,1")),
        ("--border must be at least 0, got -1", ("--box", "4,4,8,8", "--border", "-1")),
        ("--num must be at least 1", ("--box", "4,4,8,8", "--num", 0)),
        ("--strategy draft needs a draft model, which edit has no option for", ("--strategy", "draft")),
        ("--strategy nix is unknown", ("--strategy", "nix")),
        ("--label colour=red must be NAME=VALUE", ("--box", "4,4,8,8", "--label", "colour=red")),
    ],
)
def test_words_that_make_no_edit_are_refused_and_nothing_written(refused, models, picture, tmp_path, part, words):
    refused(part, "edit", picture, "--model", models / "generator", "--out", tmp_path / "out", *words)


def test_a_mask_of_another_size_or_all_black_is_refused(refused, models, pictures, picture, tmp_path):
    save_png(tmp_path / "black.png", torch.zeros(3, 16, 16, dtype=torch.uint8))
    words = ("edit", picture, "--model", models / "generator", "--out", tmp_path / "out", "--mask")
    refused("has 19 x 22 pixels but the picture 16 x 16", *words, pictures / "dogs & more" / "0.png")
    refused("there is nothing to draw", *words, tmp_path / "black.png")


def test_the_original_is_never_replaced(refused, models, picture, tmp_path):
    original = tmp_path / "00000.png"
    save_png(original, read_picture(picture))
    words = ("--model", models / "generator", "--box", "4,4,8,8", "--out", tmp_path, "--overwrite")
    refused("which could be replaced", "edit", original, *words)


def test_a_strategy_for_next_token_generators_is_refused_for_the_other_kind(refused, models, picture, tmp_path):
    words = ("--model", models / "next-scale", "--box", "4,4,8,8", "--strategy", "jacobi", "--out", tmp_path / "out")
    refused("is for next-token generators", "edit", picture, *words)
