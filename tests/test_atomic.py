"""A file or folder is there whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from imgtok import atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "new" / "file.bin"
    with atomic.replacing(target) as temporary:
        temporary.write_bytes(b"whole")
        assert not target.exists()
        assert temporary.parent == target.parent  # same file system, so that renaming is one step
    assert target.read_bytes() == b"whole"
    assert names(target.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic.replacing(target) as temporary:
        temporary.write_bytes(b"ha")
        raise error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be replaced there")
def test_whoever_reads_the_old_file_reads_it_to_the_end(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with target.open() as reader:
        atomic.write_text(target, "new")
        assert reader.read() == "old"
    assert target.read_text() == "new"


def test_text_is_utf8_and_replaces(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "a much longer text than the next")
    atomic.write_text(tmp_path / "a.txt", "Grüße\n")
    assert (tmp_path / "a.txt").read_bytes() == "Grüße\n".encode()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        atomic.write_bytes(tmp_path / "file", b"")
        with atomic.replacing_folder(tmp_path / "folder"):
            pass
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with atomic.replacing_folder(target) as temporary:
            (temporary / content).mkdir()
            (temporary / content / "file").write_text(content)
    assert names(target) == ["second"]
    assert (target / "second" / "file").read_text() == "second"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_folder_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(error), atomic.replacing_folder(target) as temporary:
        (temporary / "new").touch()
        raise error
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_failed_exchange_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename = Path.replace

    def replace(self: Path, other: Path) -> Path:
        if (self / "new").exists():
            raise OSError("disk full")
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="disk full"), atomic.replacing_folder(target) as temporary:
        (temporary / "new").touch()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]
