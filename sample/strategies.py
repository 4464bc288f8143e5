"""Strategies by name, as the command line and the benchmark know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from torch import Tensor

from imgtok.generators.generator import Generator
from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.generators.quantize import quantized
from imgtok.sample.branched import BranchedJacobi
from imgtok.sample.draft_model import DraftModel, EarlyExit, check_alike, check_depth
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.lantern import Lantern
from imgtok.sample.next_scale import StageByStage, StageStrategy
from imgtok.sample.plain import Plain
from imgtok.sample.recalling import MOST_CODES, RecallingJacobi, check_table
from imgtok.sample.recycled import Recycled
from imgtok.sample.several import SeveralDrafts
from imgtok.sample.sjd import SpeculativeJacobi
from imgtok.sample.staged_draft import SmallerTail, StagedDraft, check_partner
from imgtok.sample.strategy import Guarantee, Strategy
from imgtok.sample.token_tree import DynamicTree, StaticTree


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a strategy may be built of."""

    generator: Generator
    """That draws the images, as it was loaded: a packed one cannot be quantised."""
    draft: Generator | None = None
    """A smaller one of the same tokens."""
    codes: Tensor | None = None
    """v d, the tokenizer's code vectors."""
    depth: int | None = None
    """Blocks that draft."""
    epsilon: float = 0.1
    """Largest total variation distance of each token's law, where a strategy certifies one."""

    def drafter(self, name: str) -> Generator:
        if self.draft is None:
            raise ValueError(f"strategy {name!r} needs a draft model; give --draft-model, a smaller generator")
        check_alike(self.draft, self.generator)
        return self.draft

    def exit_depth(self) -> int:
        depth = self.depth or max(1, len(self.generator.blocks) // 3)
        check_depth(depth, self.generator)
        return depth

    def recalling(self) -> RecallingJacobi:
        check_table(self.generator.config.codebook_size)
        return RecallingJacobi()

    def lantern(self, name: str, delta: float, epsilon: float | None = None) -> Lantern:
        if self.codes is None:
            raise ValueError(f"strategy {name!r} needs the tokenizer's code vectors; draw with a tokenizer")
        neighbours = min(100, len(self.codes) - 1)
        return Lantern(self.drafter(name), self.codes, neighbours=neighbours, delta=delta, epsilon=epsilon)


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """What a strategy for next-scale generators may be built of."""

    generator: NextScaleGenerator
    draft: NextScaleGenerator | None = None
    """A smaller one of the same tokens."""
    stages: int | None = None
    """How many the smaller one draws; None: as the strategy has it, but not all."""

    def drawn_by_draft(self, name: str, stages: int) -> tuple[NextScaleGenerator, int]:
        """The smaller generator and the number of its stages, usually `stages`."""
        if self.draft is None:
            raise ValueError(f"strategy {name!r} needs a draft model; give --draft-model, a smaller generator")
        count = min(stages, self.generator.num_stages - 1) if self.stages is None else self.stages
        check_partner(self.draft, self.generator, count)
        return self.draft, count


class Entry(NamedTuple):
    guarantee: Guarantee
    about: str
    build: Callable[[Parts], Any]
    needs_draft: bool = False


class StageEntry(NamedTuple):
    guarantee: Guarantee
    about: str
    build: Callable[[StageParts], StageStrategy]
    needs_draft: bool = False


ENTRIES: dict[str, Entry] = {
    "plain": Entry("pathwise", "token by token", lambda parts: Plain()),
    "jacobi": Entry("pathwise", "guesses of the last round, shared noise", lambda parts: Jacobi()),
    "branched": Entry("pathwise", "the same, with second guesses beside", lambda parts: BranchedJacobi()),
    "recalling": Entry(
        "pathwise", f"the same, corrected by experience (up to {MOST_CODES} codes)", lambda parts: parts.recalling()
    ),
    "recycled": Entry("pathwise", "successors seen before, of left and upper neighbour", lambda parts: Recycled()),
    "early-exit": Entry(
        "pathwise",
        "the first third of the blocks drafts",
        lambda parts: EarlyExit(parts.exit_depth()),
    ),
    "int8": Entry(
        "pathwise", "an int8 copy drafts", lambda parts: DraftModel(quantized(parts.generator), coupling="shared")
    ),
    "draft": Entry(
        "pathwise",
        "a draft model, shared noise",
        lambda parts: DraftModel(parts.drafter("draft"), coupling="shared"),
        True,
    ),
    "draft-tree": Entry(
        "pathwise",
        "a draft model's likeliest paths, shared noise",
        lambda parts: DynamicTree(parts.drafter("draft-tree")),
        True,
    ),
    "draft-maximal": Entry(
        "exact", "a draft model, accept or replace", lambda parts: DraftModel(parts.drafter("draft-maximal")), True
    ),
    "draft-block": Entry(
        "exact",
        "a draft model, accepted by the block",
        lambda parts: DraftModel(parts.drafter("draft-block"), coupling="block"),
        True,
    ),
    "several": Entry(
        "exact",
        "several candidates of a draft model for one place",
        lambda parts: SeveralDrafts(parts.drafter("several")),
        True,
    ),
    "k-seq": Entry(
        "exact",
        "the same, drawn independently",
        lambda parts: SeveralDrafts(parts.drafter("k-seq"), coupling="k-seq"),
        True,
    ),
    "tree": Entry("exact", "a tree of a draft model's samples", lambda parts: StaticTree(parts.drafter("tree")), True),
    "sjd": Entry("exact", "speculative Jacobi, as published", lambda parts: SpeculativeJacobi()),
    "sjd-coupled": Entry("exact", "the same, redraws coupled", lambda parts: SpeculativeJacobi(coupled=True)),
    "certified": Entry(
        "tv",
        "a draft model, neighbouring codes accepted within epsilon",
        lambda parts: parts.lantern("certified", delta=0.3, epsilon=parts.epsilon),
        True,
    ),
    "lantern": Entry("relaxed", "the same without a bound", lambda parts: parts.lantern("lantern", delta=0.1), True),
}


STAGE_ENTRIES: dict[str, StageEntry] = {
    "plain": StageEntry("pathwise", "stage by stage", lambda parts: StageByStage()),
    "staged-draft": StageEntry(
        "pathwise",
        "a draft model draws the first stages, one call scores them",
        lambda parts: StagedDraft(*parts.drawn_by_draft("staged-draft", StagedDraft.stages)),
        True,
    ),
    "smaller-tail": StageEntry(
        "relaxed",
        "the draft model draws the last stages",
        lambda parts: SmallerTail(*parts.drawn_by_draft("smaller-tail", SmallerTail.stages)),
        True,
    ),
}
"""Of next-scale generators; those above are of next-token ones."""


def build_stage_strategy(name: str, parts: StageParts) -> StageStrategy:
    """The strategy `name` of a next-scale generator. ValueError for what there is not, or cannot be."""
    if name not in STAGE_ENTRIES:
        known = ", ".join(STAGE_ENTRIES)
        raise ValueError(f"strategy {name!r} is none of next-scale generators; choose from {known}")
    return STAGE_ENTRIES[name].build(parts)


def build_strategy(name: str, parts: Parts, window: int | None = None) -> Strategy:
    """The strategy `name`, with `window` nodes in a round if given. ValueError for what there is not, or cannot be."""
    if name not in ENTRIES:
        raise ValueError(f"strategy {name!r} is unknown; choose from {', '.join(['auto', *ENTRIES])}")
    strategy = ENTRIES[name].build(parts)
    if window is None:
        return strategy
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if "window" not in (field.name for field in fields(strategy)):
        raise ValueError(f"strategy {name!r} has no window to choose; leave --window out")
    return replace(strategy, window=window)
