import logging
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgtok.data import FolderSource, LabelSet, UnreadableImage, load, read_folder
from imgtok.data.folder import split_of

RED, BLUE = (255, 0, 0), (0, 0, 255)


def write(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write_all(root: Path, *names: str) -> Path:
    for name in names:
        write(root / name)
    return root


def classes_of(source: FolderSource) -> dict[str, str]:
    (label_set,) = source.label_sets
    return {name: label_set.values[number] for name, number in zip(source.names, source.labels[:, 0], strict=True)}


# Layout: classes


def test_first_level_folders_are_classes_and_deeper_ones_belong_to_them(tmp_path):
    source = read_folder(write_all(tmp_path, "cat/1.png", "dog/2.png", "dog/old/deep/3.png"))
    assert source.label_sets == (LabelSet("class", ("cat", "dog")),)
    assert classes_of(source) == {"cat/1.png": "cat", "dog/2.png": "dog", "dog/old/deep/3.png": "dog"}


def test_images_without_sub_folders_have_no_label_set(tmp_path):
    (tmp_path / "notes").mkdir()
    source = read_folder(write_all(tmp_path, "b.png", "a.png"))
    assert source.names == ["a.png", "b.png"]
    assert source.label_sets == () and source.labels.shape == (2, 0) and source.labels.dtype == torch.int64


def test_images_beside_class_folders_are_left_out_with_a_warning(tmp_path, caplog):
    source = read_folder(write_all(tmp_path, "cat/1.png", "dog/1.png", "x.png", "y.png"))
    assert source.names == ["cat/1.png", "dog/1.png"]
    assert "2 images beside them left out: x.png, y.png" in caplog.text


def test_one_class_is_fine_and_said_in_the_log(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        source = read_folder(write_all(tmp_path, "cat/1.png", "cat/2.png"))
    assert source.label_sets == (LabelSet("class", ("cat",)),) and source.labels.tolist() == [[0], [0]]
    assert "one class, 'cat'" in caplog.text


def test_extensions_are_read_in_any_case_and_others_are_not(tmp_path):
    names = ["a.png", "b.JPG", "c.Jpeg", "d.webp", "e.BMP", "f.gif", "g.tif", "h.TIFF"]
    write_all(tmp_path, *names)
    (tmp_path / "i.txt").write_text("no image")
    (tmp_path / "png").write_text("no extension")
    assert read_folder(tmp_path).names == names


def test_hidden_files_and_folders_are_left_out(tmp_path):
    source = read_folder(write_all(tmp_path, "cat/1.png", "cat/.2.png", ".cache/3.png", "cat/.old/4.png"))
    assert source.names == ["cat/1.png"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write_all(tmp_path, "elsewhere/1.png", "root/cat/2.png")
    root = tmp_path / "root"
    try:
        (root / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (root / "cat" / "again").symlink_to(root, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    assert classes_of(read_folder(root)) == {"cat/2.png": "cat", "dog/1.png": "dog"}


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    assert read_folder(write_all(tmp_path, "cat.png/1.png", "dog/1.png")).names == ["cat.png/1.png", "dog/1.png"]


@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist on Windows")
def test_names_that_are_not_unicode_are_read(tmp_path):
    write(tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"\xff.png"))
    write(tmp_path / "b.png")
    assert len(read_folder(tmp_path)) == 2
    assert len(read_folder(tmp_path, "train")) == len(read_folder(tmp_path, "val")) == 1


# Layout: splits


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_train_and_val_folders_are_the_splits(tmp_path, val):
    write_all(tmp_path, "train/cat/1.png", "train/dog/2.png", f"{val}/dog/3.png")
    train, held_out, both = (read_folder(tmp_path, split) for split in ("train", "val", None))
    assert classes_of(train) == {"train/cat/1.png": "cat", "train/dog/2.png": "dog"}
    assert classes_of(held_out) == {f"{val}/dog/3.png": "dog"}
    assert classes_of(both) == classes_of(train) | classes_of(held_out)
    assert train.label_sets == held_out.label_sets == (LabelSet("class", ("cat", "dog")),)


def test_train_and_val_folders_without_classes_have_no_label_set(tmp_path):
    source = read_folder(write_all(tmp_path, "train/1.png", "val/2.png"), "val")
    assert source.names == ["val/2.png"] and source.label_sets == ()


def test_folders_beside_train_and_val_are_named_in_a_warning(tmp_path, caplog):
    source = read_folder(write_all(tmp_path, "train/1.png", "val/2.png", "test/3.png", "valid/4.png"))
    assert source.names == ["train/1.png", "val/2.png"]
    assert "not read: test, valid" in caplog.text


def test_train_without_val_is_a_class_with_a_warning(tmp_path, caplog):
    source = read_folder(write_all(tmp_path, "train/cat/1.png", "train/dog/1.png"))
    assert source.label_sets[0].values == ("train",)
    assert "taken as a class" in caplog.text


def test_an_empty_val_folder_is_refused_for_val_only(tmp_path):
    write_all(tmp_path, "train/cat/1.png")
    (tmp_path / "val").mkdir()
    assert len(read_folder(tmp_path, "train")) == 1
    with pytest.raises(ValueError, match=r"split 'val' of .* is empty; use split None"):
        read_folder(tmp_path, "val")


def test_the_hash_split_is_disjoint_and_covers_everything(tmp_path):
    write_all(tmp_path, *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(30)))
    train, val, both = (read_folder(tmp_path, split, 0.3) for split in ("train", "val", None))
    assert not set(train.names) & set(val.names)
    assert sorted(train.names + val.names) == both.names
    assert train.label_sets == val.label_sets == both.label_sets


def test_the_hash_split_does_not_depend_on_where_the_folder_lies(tmp_path):
    names = [f"cat/{i}.png" for i in range(20)]
    a, b = write_all(tmp_path / "a", *names), write_all(tmp_path / "b" / "deeper", *reversed(names))
    assert read_folder(a, "val", 0.3).names == read_folder(b, "val", 0.3).names


def test_the_hash_split_of_known_names_never_changes():
    names = [f"cat/{i}.jpg" for i in range(12)]
    chosen = [name for name, split in zip(names, split_of(names, 0.3), strict=True) if split == "val"]
    assert chosen == [f"cat/{i}.jpg" for i in (0, 1, 8, 9, 10, 11)]


def test_the_hash_split_is_the_same_for_both_ways_to_write_an_accent():
    composed, decomposed = [f"caf\u00e9/{i}.png" for i in range(50)], [f"cafe\u0301/{i}.png" for i in range(50)]
    assert split_of(composed, 0.5) == split_of(decomposed, 0.5)


def test_the_hash_split_has_the_share_asked_for():
    n, share = 5000, 0.1
    count = split_of([f"class {i % 7}/picture_{i:06d}.jpg" for i in range(n)], share).count("val")
    assert abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5


def test_new_images_do_not_move_old_ones():
    names = [f"{i}.png" for i in range(200)]
    assert split_of([*names, "new.png", "newer.png"], 0.2)[:200] == split_of(names, 0.2)


@pytest.mark.parametrize("val_share", [1e-6, 0.1, 0.5, 1 - 1e-6])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_both_splits_of_two_or_more_images_have_some(n, val_share):
    assert set(split_of([f"{i}.png" for i in range(n)], val_share)) == {"train", "val"}


@pytest.mark.parametrize("val_share", [1e-6, 1 - 1e-6])
def test_a_single_image_is_in_train(tmp_path, val_share):
    write(tmp_path / "a.png")
    assert len(read_folder(tmp_path, "train", val_share)) == 1
    with pytest.raises(ValueError, match="split 'val'"):
        read_folder(tmp_path, "val", val_share)


# What is refused


def test_an_empty_folder_is_refused_with_the_extensions(tmp_path):
    with pytest.raises(ValueError, match=r"has no images; put files ending in \.png, .*\.tiff"):
        load(tmp_path)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match=re.escape(repr(str(tmp_path)))):
        read_folder(tmp_path)


def test_a_folder_of_broken_files_only_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="none of the 1 image files"):
        read_folder(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        read_folder(tmp_path / "missing")


@pytest.mark.parametrize(
    ("split", "val_share", "message"),
    [("test", 0.1, "split 'test' is unknown"), ("val", 0.0, r"val_share 0\.0"), (None, 1.5, r"val_share 1\.5")],
)
def test_unknown_splits_and_shares_are_refused(tmp_path, split, val_share, message):
    with pytest.raises(ValueError, match=message):
        read_folder(write_all(tmp_path, "a.png"), split, val_share)


# Damaged files


def test_broken_files_are_left_out_and_named_with_reasons_in_one_warning(tmp_path, caplog):
    write(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("This is a text, not a picture.")
    assert read_folder(tmp_path).names == ["good.png"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "2 unreadable files left out" in record.getMessage()
    assert "empty.jpg (empty file)" in record.getMessage() and "text.png (not a picture" in record.getMessage()


def test_of_many_broken_files_ten_are_named(tmp_path, caplog):
    write(tmp_path / "good.png")
    for i in range(12):
        (tmp_path / f"broken{i:02d}.png").touch()
    assert len(read_folder(tmp_path)) == 1
    assert "12 unreadable" in caplog.text and "broken09.png" in caplog.text and "(12 in all)" in caplog.text
    assert "broken10.png" not in caplog.text


def test_class_numbers_do_not_depend_on_broken_files(tmp_path):
    write_all(tmp_path, "cat/1.png", "dog/1.png")
    before = classes_of(read_folder(tmp_path))
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "1.png").touch()
    source = read_folder(tmp_path)
    assert source.label_sets[0].values == ("bird", "cat", "dog") and classes_of(source) == before


def test_only_the_split_asked_for_is_opened_when_folders_say_the_split(tmp_path, caplog):
    write_all(tmp_path, "train/cat/1.png", "val/cat/1.png")
    (tmp_path / "train" / "cat" / "2.png").touch()
    assert len(read_folder(tmp_path, "val")) == 1
    assert "unreadable" not in caplog.text


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.bmp", "cut.gif"])
def test_a_truncated_file_is_found_when_decoded(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = read_folder(tmp_path)
    assert len(source) == 1
    with pytest.raises(UnreadableImage, match=rf"{re.escape(str(path))}: .+"):
        source.image(0)


def test_a_file_that_vanished_is_unreadable(tmp_path):
    source = read_folder(write_all(tmp_path, "a.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableImage, match=r"a\.png: No such file"):
        source.image(0)


def test_a_picture_too_large_to_decode_is_left_out(tmp_path, monkeypatch, caplog):
    write(tmp_path / "large.png", size=(50, 50))
    write(tmp_path / "small.png", size=(5, 5))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_folder(tmp_path).names == ["small.png"]
    assert "large.png (Image size (2500 pixels) exceeds limit" in caplog.text


def test_a_picture_that_became_too_large_is_unreadable(tmp_path, monkeypatch):
    source = read_folder(write_all(tmp_path, "a.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(UnreadableImage, match="exceeds limit"):
        source.image(0)


def test_a_picture_of_another_format_than_its_extension_is_read(tmp_path):
    write(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_folder(tmp_path).image(0)[:, 0, 0].tolist() == list(RED)


def test_a_file_for_one_of_pillows_other_readers_is_left_out(tmp_path, caplog):
    Image.new("RGB", (4, 4)).save(tmp_path / "postscript.eps")
    (tmp_path / "postscript.eps").rename(tmp_path / "a.png")
    write(tmp_path / "b.png")
    assert read_folder(tmp_path).names == ["b.png"]
    assert "a.png (not a picture" in caplog.text


def test_a_source_can_be_sent_to_worker_processes(tmp_path):
    source = read_folder(write_all(tmp_path, "cat/1.png", "dog/2.png"))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.names == source.names and torch.equal(copy.image(1), source.image(1))
