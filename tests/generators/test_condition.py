"""Conditions: their null, dropping them, and the slots they become."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig, TextFeatures


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(*sizes: int, drop: float = 0.1, drops: tuple[float, ...] = ()) -> LabelConditionConfig:
    drops = drops or (0.0,) * len(sizes)
    rows = zip(sizes, drops, strict=True)
    return LabelConditionConfig(
        labels=tuple(Label(name=f"label{i}", size=size, drop=share) for i, (size, share) in enumerate(rows)), drop=drop
    )


def text_features(rows: int) -> TextFeatures:
    visible = torch.arange(4) >= torch.arange(rows)[:, None] % 4
    return TextFeatures(torch.randn(rows, 4, 3, generator=dice()) * visible[:, :, None], visible)


def within(count: int | Tensor, share: float, total: int) -> bool:
    """Five standard deviations of a binomial: one in two million fails by chance."""
    return abs(int(count) - share * total) <= 5 * math.sqrt(total * share * (1 - share))


# -- labels -----------------------------------------------------------------------------------------------------------


def test_embeddings_of_labels_add_up_to_one_slot():
    condition = labels(3, 2).build(width=8)
    prefix = condition(torch.tensor([[2, 0], [3, 2]]))
    first, second = (table.weight for table in condition.embeddings)
    torch.testing.assert_close(prefix.embeddings, torch.stack([first[2] + second[0], first[3] + second[2]])[:, None])
    assert prefix.visible is None


def test_a_single_label_needs_no_second_axis():
    condition = labels(3).build(width=8)
    assert torch.equal(condition(torch.tensor([2, 0])).embeddings, condition(torch.tensor([[2], [0]])).embeddings)


def test_the_null_of_a_label_is_the_number_after_its_classes():
    condition = labels(3, 2).build(width=8)
    given = torch.tensor([[0, 1], [2, 0]])
    assert condition.with_null(given).tolist() == [[0, 1], [2, 0], [3, 2], [3, 2]]
    assert condition.null(1).tolist() == [[3, 2]]


def test_a_wrong_number_of_labels_is_told_with_their_names():
    condition = labels(3, 2).build(width=8)
    for call in (condition, condition.with_null):
        with pytest.raises(
            ValueError, match="a condition of 3 labels was given, but the generator takes: label0, label1"
        ):
            call(torch.zeros(2, 3, dtype=torch.int64))


def test_labels_are_dropped_together_and_alone_as_often_as_said():
    condition, n = labels(3, 2, drop=0.2, drops=(0.0, 0.3)).build(width=8), 100_000
    given = torch.tensor([[1, 0]]).expand(n, -1)
    dropped = condition.drop(given, dice()) == torch.tensor([3, 2])
    assert torch.equal(condition.drop(given, dice())[~dropped], given[~dropped])
    assert within(dropped[:, 0].sum(), 0.2, n)
    assert dropped[:, 1][dropped[:, 0]].all()  # together
    assert within(dropped[:, 1].sum(), 1 - 0.8 * 0.7, n)
    assert within((dropped[:, 1] & ~dropped[:, 0]).sum(), 0.8 * 0.3, n)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_never_and_always_are_exact(share):
    condition = labels(3, 2, drop=share).build(width=8)
    given = torch.tensor([[1, 0]]).expand(1000, -1)
    expected = given if share == 0 else condition.null(1000)
    assert torch.equal(condition.drop(given, dice()), expected)


def test_the_same_generator_drops_the_same():
    condition, given = labels(3, drop=0.5).build(width=8), torch.zeros(100, dtype=torch.int64)
    assert torch.equal(condition.drop(given, dice(1)), condition.drop(given, dice(1)))
    assert not torch.equal(condition.drop(given, dice(1)), condition.drop(given, dice(2)))


def test_classes_are_found_by_name_and_number():
    label = Label(size=3, values=("cat", "dog", "0"))
    assert [label.index(value) for value in ("dog", "0", "1")] == [1, 2, 1]
    for value in ("bird", "3", "-1", "²"):
        with pytest.raises(ValueError, match=f"class '{value}' is unknown; choose from cat, dog, 0"):
            label.index(value)
    with pytest.raises(ValueError, match="choose from 0 to 4"):
        Label(size=5).index("5")


def test_names_must_be_as_many_as_classes():
    with pytest.raises(ValueError, match="size 3 but 1 names"):
        Label(size=3, values=("cat",))


def test_a_condition_needs_a_label():
    with pytest.raises(ValueError, match="at least one label"):
        LabelConditionConfig(labels=())


# -- text -------------------------------------------------------------------------------------------------------------


def test_the_null_of_a_caption_keeps_its_padding():
    condition = TextConditionConfig(num_slots=4, feature_dim=3).build(width=8)
    given = text_features(3)
    both = condition.with_null(given)
    assert torch.equal(both.features[:3], given.features)
    assert torch.equal(both.features[3:], condition.null_features.expand(3, 4, 3))
    assert torch.equal(both.visible, given.visible.repeat(2, 1))


def test_the_null_features_are_saved_but_never_trained():
    condition = TextConditionConfig(num_slots=4, feature_dim=3).build(width=8)
    assert "null_features" in condition.state_dict()
    assert "null_features" not in dict(condition.named_parameters())


def test_captions_are_dropped_whole_as_often_as_said():
    condition, n = TextConditionConfig(num_slots=4, feature_dim=3, drop=0.2).build(width=8), 20_000
    given = text_features(n)
    out = condition.drop(given, dice())
    dropped = (out.features == condition.null_features).all(-1).all(-1)
    assert torch.equal(out.features[~dropped], given.features[~dropped])
    assert torch.equal(out.visible, given.visible)
    assert within(dropped.sum(), 0.2, n)


def test_features_of_another_shape_are_told():
    condition = TextConditionConfig(num_slots=4, feature_dim=3).build(width=8)
    with pytest.raises(ValueError, match=r"text features must be b 4 3, got \(2, 4, 5\)"):
        condition(TextFeatures(torch.zeros(2, 4, 5), torch.ones(2, 4)))


def test_features_are_taken_in_any_precision():
    condition = TextConditionConfig(num_slots=4, feature_dim=3).build(width=8)
    given = text_features(3)
    half = condition(TextFeatures(given.features.half(), given.visible.long()))
    assert half.embeddings.dtype == torch.float32
    assert half.visible.dtype == torch.bool
    torch.testing.assert_close(half.embeddings, condition(given).embeddings, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", ["labels", "text"])
def test_select_takes_rows(kind):
    if kind == "labels":
        condition, given = labels(3, 2).build(width=8), torch.tensor([[0, 1], [2, 0], [1, 1]])
    else:
        condition, given = TextConditionConfig(num_slots=4, feature_dim=3).build(width=8), text_features(3)
    part = condition(condition.select(given, slice(1, 3)))
    whole = condition(given)
    torch.testing.assert_close(part.embeddings, whole.embeddings[1:3])
    assert part.visible is None or torch.equal(part.visible, whole.visible[1:3])
