"""Tools for published state dicts."""

import random
from pathlib import Path

import pytest
import torch

from imgtok.convert import drop, fuse, read_state, rename, unwrap


def zeros(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2) for name in names}


def test_rules_are_applied_in_turn():
    state = rename(zeros("a.b.weight", "c"), [(r"^a\.", "x."), (r"^x\.b\.", "y.")])
    assert list(state) == ["y.weight", "c"]


def test_two_names_that_become_one_are_refused():
    with pytest.raises(ValueError, match="both called 'x' after renaming"):
        rename(zeros("a", "b"), [("a|b", "x")])


def test_drop_takes_whole_names_only():
    assert list(drop(zeros("loss.a", "loss", "my.loss.b"), r"loss\..*")) == ["loss", "my.loss.b"]


def test_fuse_joins_along_the_first_axis_in_the_given_order():
    state = {f"{part}.weight": torch.full((2, 3), float(i)) for i, part in enumerate(("l.k", "l.q", "l.v"))}
    fused = fuse(state, ("q", "k", "v"), "qkv")
    assert list(fused) == ["l.qkv.weight"]
    assert fused["l.qkv.weight"][:, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 2.0, 2.0]
    assert len(state) == 3  # the given dictionary stays as it was


@pytest.mark.parametrize(
    "state", [zeros("q.weight", "k.weight"), zeros("q.weight", "k.weight") | {"v.weight": torch.zeros(2, 2)}]
)
def test_fuse_leaves_incomplete_or_unfitting_parts_to_the_strict_loader(state):
    assert list(fuse(state, ("q", "k", "v"), "qkv")) == list(state)


def test_unwrap_stops_at_tensors_called_like_a_wrapper():
    state = zeros("model", "weight")
    assert unwrap({"state_dict": state}, Path("x.pt")) is state


@pytest.mark.parametrize("new_format", [True, False])
def test_a_damaged_file_is_read_or_refused_but_never_another_error(tmp_path, new_format):
    path, dice = tmp_path / "w.pt", random.Random(0)
    torch.save({"a": torch.randn(7, 5), "b": torch.arange(9)}, path, _use_new_zipfile_serialization=new_format)
    content, refused = path.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(dice.choice([1, 3, 20])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])])
        try:
            read_state(path)
        except ValueError:
            refused += 1
    assert refused > 75
