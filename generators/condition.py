"""What a generator is told: labels that add up, or text features. Each kind knows its own null condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prefix(NamedTuple):
    """The condition slots in front of the image tokens."""

    embeddings: Tensor
    """b p c"""
    visible: Tensor | None
    """b p, False where a slot is padding; None: all are visible."""


class Condition(Protocol):
    """A module that turns conditions into a prefix. A condition is what `forward` takes, with a batch axis first."""

    num_slots: int

    def __call__(self, condition: Any) -> Prefix: ...

    def with_null(self, condition: Any) -> Any:
        """Rows [given; null], twice as many: what classifier-free guidance compares."""
        ...

    def drop(self, condition: Any, generator: torch.Generator) -> Any:
        """Some rows made null, as in training for guidance (arXiv:2207.12598)."""
        ...

    def select(self, condition: Any, rows: slice) -> Any:
        """Part of the batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Label:
    """One set of classes that a condition can name."""

    name: str = "class"
    size: int
    """Number of classes."""
    values: tuple[str, ...] = ()
    """Their names, if they have any."""
    drop: float = 0.0
    """Probability of dropping this label alone, in training."""

    def __post_init__(self) -> None:
        if self.values and len(self.values) != self.size:
            raise ValueError(f"label {self.name!r} has size {self.size} but {len(self.values)} names")

    def index(self, value: str) -> int:
        """Of a class's name or number; ValueError listing the names if there is no such class."""
        if value in self.values:
            return self.values.index(value)
        if value.isdecimal() and int(value) < self.size:
            return int(value)
        known = ", ".join(self.values) if self.values else f"0 to {self.size - 1}"
        raise ValueError(f"{self.name} {value!r} is unknown; choose from {known}")


LENGTH = "length"  # the name of the label that tells how many tokens will be drawn


def length_label(num_tokens: int, drop: float = 0.0) -> Label:
    """The label of a generator that is told how many of `num_tokens` tokens will be drawn: a class for each number."""
    values = tuple(str(number) for number in range(1, num_tokens + 1))
    return Label(name=LENGTH, size=num_tokens, values=values, drop=drop)


@dataclass(frozen=True, kw_only=True)
class LabelConditionConfig:
    labels: tuple[Label, ...]
    """Their embeddings are added up to one slot."""
    drop: float = 0.1
    """Probability of dropping all labels of a row together, in training."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("a label condition needs at least one label; for none, use one Label of size 1")

    def build(self, width: int) -> LabelCondition:
        return LabelCondition(self, width)


class LabelCondition(nn.Module):
    """Labels (b k, or b for a single one) -> one slot. The null of a label is its number `size`."""

    num_slots = 1

    def __init__(self, config: LabelConditionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(nn.Embedding(label.size + 1, width) for label in config.labels)

    def forward(self, condition: Tensor) -> Prefix:
        columns = self.columns(condition).unbind(1)
        slots = [table(column) for table, column in zip(self.embeddings, columns, strict=True)]
        return Prefix(torch.stack(slots).sum(0)[:, None], None)

    def null(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """b k"""
        sizes = torch.tensor([label.size for label in self.config.labels], device=device)
        return sizes.expand(rows, -1)

    def with_null(self, condition: Tensor) -> Tensor:
        condition = self.columns(condition)
        return torch.cat([condition, self.null(len(condition), condition.device)])

    def drop(self, condition: Tensor, generator: torch.Generator) -> Tensor:
        condition = self.columns(condition)
        draw = torch.rand(len(condition), 1 + condition.shape[1], generator=generator).to(condition.device)
        shares = torch.tensor([self.config.drop, *(label.drop for label in self.config.labels)], device=draw.device)
        dropped = draw < shares
        return torch.where(dropped[:, :1] | dropped[:, 1:], self.null(len(condition), condition.device), condition)

    def select(self, condition: Tensor, rows: slice) -> Tensor:
        return condition[rows]

    @property
    def told_length(self) -> bool:
        """Whether the last label is the number of tokens."""
        return self.config.labels[-1].name == LENGTH

    def with_lengths(self, condition: Tensor, lengths: Tensor) -> Tensor:
        """Labels b k, or b (k - 1) without the last, that of the length: b k, with `lengths` (b) where it was null.

        Labels of a generator that is not told a length stay as they are.
        """
        if not self.told_length:
            return condition
        condition = condition[:, None] if condition.ndim == 1 else condition
        count, null = len(self.config.labels), self.config.labels[-1].size
        if condition.shape[1] == count - 1:
            condition = torch.cat([condition, condition.new_full((len(condition), 1), null)], dim=1)
        condition = self.columns(condition)
        last = torch.where(condition[:, -1] == null, lengths.to(condition) - 1, condition[:, -1])
        return torch.cat([condition[:, :-1], last[:, None]], dim=1)

    def columns(self, condition: Tensor) -> Tensor:
        """b -> b 1, and a check of the number of labels."""
        condition = condition[:, None] if condition.ndim == 1 else condition
        if condition.shape[1] != len(self.config.labels):
            names = ", ".join(label.name for label in self.config.labels)
            raise ValueError(f"a condition of {condition.shape[1]} labels was given, but the generator takes: {names}")
        return condition


class TextFeatures(NamedTuple):
    """Features of captions, padded on the left with zero vectors."""

    features: Tensor
    """b p f"""
    visible: Tensor
    """b p, False (or 0) where a slot is padding."""


@dataclass(frozen=True, kw_only=True)
class TextConditionConfig:
    num_slots: int = 120
    """Length of a caption, padding included."""
    feature_dim: int = 2048
    """Width of the text encoder's features (FLAN-T5-XL: 2048)."""
    drop: float = 0.1
    """Probability of replacing a caption by the null features, in training."""

    def build(self, width: int) -> TextCondition:
        return TextCondition(self, width)


class TextCondition(nn.Module):
    """TextFeatures -> p slots, through a two-layer MLP. The null condition is a frozen random matrix of features.

    The unconditional row sees only as many null vectors as its caption has words (LlamaGen, arXiv:2406.06525).
    """

    null_features: Tensor

    def __init__(self, config: TextConditionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.num_slots = config.num_slots
        self.fc1 = nn.Linear(config.feature_dim, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)
        null = torch.empty(config.num_slots, config.feature_dim)
        self.register_buffer("null_features", nn.init.normal_(null, std=config.feature_dim**-0.5))

    def forward(self, condition: TextFeatures) -> Prefix:
        features, visible = condition
        if features.shape[1:] != self.null_features.shape:
            slots, dim = self.null_features.shape
            raise ValueError(f"text features must be b {slots} {dim}, got {tuple(features.shape)}")
        hidden = F.gelu(self.fc1(features.to(self.fc1.weight.dtype)), approximate="tanh")
        return Prefix(self.fc2(hidden), visible.bool())

    def with_null(self, condition: TextFeatures) -> TextFeatures:
        features, visible = condition
        null = self.null_features.to(features).expand_as(features)
        return TextFeatures(torch.cat([features, null]), torch.cat([visible, visible]))

    def drop(self, condition: TextFeatures, generator: torch.Generator) -> TextFeatures:
        features, visible = condition
        dropped = torch.rand(len(features), 1, 1, generator=generator).to(features.device) < self.config.drop
        return TextFeatures(torch.where(dropped, self.null_features.to(features), features), visible)

    def select(self, condition: TextFeatures, rows: slice) -> TextFeatures:
        return TextFeatures(condition.features[rows], condition.visible[rows])
