import csv
import re
from pathlib import Path

import pytest
import torch

from imgtok.data import EMBEDDED, ArraySource, ImageSource, LabelSet, load

ROOT = Path(__file__).parents[2]
DATA = ROOT / "imgtok" / "data"
LABEL_SETS = (LabelSet("colour", ("blue", "red")), LabelSet("size", ("large", "middle", "small")))


@pytest.fixture(scope="module")
def emoji() -> dict[str | None, ImageSource]:
    return {split: load("emoji64", split) for split in (None, "train", "val")}


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def small_source() -> ArraySource:
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2).contiguous()
    return ArraySource(images, torch.tensor([[0, 2], [1, 1], [0, 0], [1, 2]]), LABEL_SETS, ["a", "b", "c", "d"])


def test_emoji64_has_3737_pictures_and_a_split_of_3265_and_472(emoji):
    assert {split: len(source) for split, source in emoji.items()} == {None: 3737, "train": 3265, "val": 472}


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_emoji64_has_the_same_label_sets_in_every_split(emoji, split):
    label_sets = emoji[split].label_sets
    assert label_sets == emoji[None].label_sets
    assert [(s.name, len(s.values)) for s in label_sets] == [("category", 7), ("subcategory", 81), ("style", 3)]
    assert all(list(s.values) == sorted(s.values) for s in label_sets)


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_emoji64_labels_and_names_are_those_of_the_index(emoji, split):
    source = emoji[split]
    expected = [row for row in rows("emoji64") if split in (None, row["split"])]
    assert source.labels.dtype == torch.int64
    assert source.names == [f"{row['name']} ({row['style']})" for row in expected]
    for column, label_set in enumerate(source.label_sets):
        values = [label_set.values[number] for number in source.labels[:, column].tolist()]
        assert values == [row[label_set.name] for row in expected]


def test_emoji64_category_counts_are_those_of_its_readme(emoji):
    values = emoji[None].label_sets[0].values
    counts = dict(zip(values, emoji[None].labels[:, 0].bincount().tolist(), strict=True))
    assert counts == {
        "People & Body": 989,
        "Objects": 720,
        "Travel & Places": 591,
        "Animals & Nature": 437,
        "Smileys & Emotion": 427,
        "Food & Drink": 351,
        "Activities": 222,
    }


def test_the_same_emoji_never_crosses_the_split(emoji):
    emojis = {
        split: {row["codepoints"] for row in rows("emoji64") if row["split"] == split} for split in ("train", "val")
    }
    assert not emojis["train"] & emojis["val"]
    assert sorted(emoji["train"].names + emoji["val"].names) == sorted(emoji[None].names)


def test_emoji64_pictures_are_64x64_upright_tiles_of_their_sheet(emoji):
    source = emoji[None]
    image = source.image(0)
    assert image.dtype == torch.uint8 and image.shape == (3, 64, 64)
    face = image[:, 20:30, 28:36].float().mean((1, 2))
    assert face[0] > 200 and face[2] < 120, "grinning face is yellow: red high, blue low"
    assert image[:, 0, 0].tolist() == [255, 255, 255]


def test_emoji64_pictures_are_the_same_whatever_split_is_selected(emoji):
    splits = [row["split"] for row in rows("emoji64")]
    for split in ("train", "val"):
        chosen = [i for i, at in enumerate(splits) if at == split]
        assert torch.equal(emoji[split].images, emoji[None].images[chosen])


def test_photos_are_unlabelled_and_both_splits_have_some():
    source, train, val = load("photos"), load("photos", "train"), load("photos", "val")
    assert source.label_sets == () and source.labels.shape == (15, 0) and source.labels.dtype == torch.int64
    assert len(train) > len(val) > 0
    assert sorted(train.names + val.names) == sorted(source.names) == sorted(row["file"] for row in rows("photos"))


def test_photos_have_the_sizes_of_their_index():
    source = load("photos")
    for i, row in enumerate(rows("photos")):
        image = source.image(i)
        assert image.dtype == torch.uint8 and image.shape == (3, int(row["height"]), int(row["width"]))


def test_a_larger_share_moves_more_photos_to_val():
    few, many = load("photos", "val", val_share=0.1), load("photos", "val", val_share=0.4)
    assert set(few.names) < set(many.names)


def test_the_notice_credits_every_embedded_picture():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for row in rows("photos"):
        columns = [row[key] for key in ("file", "title", "author", "licence", "source")]
        assert re.search(r"\s+".join(map(re.escape, columns)), notice), f"{row['file']} is not credited"
    for style in {row["style"] for row in rows("emoji64")}:
        assert f"{style}.webp" in notice
    assert "scaled to 64x64 and composed on white" in notice


@pytest.mark.parametrize("source", ["no-such-set", "emoji65", "/no/such/folder", Path("photos-of-mine")])
def test_an_unknown_source_is_refused_with_the_embedded_names(source):
    with pytest.raises(ValueError, match=re.escape(repr(str(source)))) as caught:
        load(source)
    assert all(name in str(caught.value) for name in EMBEDDED)
    assert "folder of images" in str(caught.value)


def test_a_file_as_source_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        load(tmp_path / "a.png")


@pytest.mark.parametrize("source", EMBEDDED)
def test_an_unknown_split_of_an_embedded_set_is_refused(source):
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        load(source, "test")


def test_a_folder_with_the_name_of_an_embedded_set_is_read_when_given_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes((DATA / "photos" / "wine.jpg").read_bytes())
    assert load(Path("photos")).names == load("./photos").names == ["mine.jpg"]
    assert len(load("photos")) == 15


@pytest.mark.parametrize("indices", [[2, 0], range(1, 3), torch.tensor([3, 3, 1]), []])
def test_select_of_an_array_takes_images_labels_and_names_alike(indices):
    source = small_source()
    selected = source.select(indices)
    assert selected.label_sets == LABEL_SETS and len(selected) == len(indices)
    for new, old in enumerate(int(i) for i in indices):
        assert torch.equal(selected.image(new), source.image(old))
        assert torch.equal(selected.labels[new], source.labels[old]) and selected.names[new] == source.names[old]


def test_select_of_a_folder_takes_images_labels_and_names_alike():
    source = load("photos")
    selected = source.select([4, 1])
    assert selected.names == [source.names[4], source.names[1]] and selected.labels.shape == (2, 0)
    assert torch.equal(selected.image(1), source.image(1))


def test_select_refuses_a_mask():
    with pytest.raises(ValueError, match="mask"):
        small_source().select(torch.tensor([True, False, True, False]))


@pytest.mark.parametrize(
    "labels", [torch.zeros(4, 1, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(4, 2)]
)
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(ValueError, match=re.escape("expected torch.int64 [4, 2]")):
        ArraySource(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), labels, LABEL_SETS, list("abcd"))


@pytest.mark.parametrize("value", [-1, 3])
def test_labels_outside_their_label_set_are_refused(value):
    labels = torch.tensor([[0, 0], [0, value]])
    with pytest.raises(ValueError, match="'size' leave the range of its 3 values"):
        ArraySource(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), labels, LABEL_SETS, ["a", "b"])


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)])
def test_images_of_another_shape_or_type_are_refused(images):
    with pytest.raises(ValueError, match=re.escape("expected torch.uint8 [2, 3, h, w]")):
        ArraySource(images, torch.zeros(2, 0, dtype=torch.int64), (), ["a", "b"])
