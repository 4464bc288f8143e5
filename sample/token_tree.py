"""Trees of guesses by a smaller generator, scored in one network call: of fixed shape, or grown where it is sure."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from imgtok.generators.generator import Generator
from imgtok.generators.tree import Tree
from imgtok.sample.coupling import Choice, verify_recursive, without_replacement
from imgtok.sample.draft_model import chances, draft_scorer, read_committed
from imgtok.sample.guidance import Guidance
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import DRAFTING, SHARED, Draft, Guarantee, Job, Progress, Verdict, purpose
from imgtok.sample.walk import descend, grow, match, of_node, root_only, settle, subtree


class Memory(NamedTuple):
    scorer: Scorer
    """Of the drafting generator."""
    tree: Tree
    laws: Tensor | None = None
    """b n v, the drafting generator's after each node that has children, from `draft` to `couple`."""


@dataclass(frozen=True)
class StaticTree:
    """Every node of a level has the same number of children, drawn without replacement from the drafting law.

    "recursive": with noise of their own; each is judged by what its elder siblings left over (RSD-C, arXiv:2402.14160).
    "shared": those likeliest under the noise of plain sampling, whose choice is looked for among them, so the images
    are those of plain sampling (arXiv:2408.07978 for trees). The drafting generator is called once for each level.
    """

    generator: Generator
    """Its codes, their layout and its condition are those of the generator it drafts for."""
    _: KW_ONLY
    branching: tuple[int, ...] = (4, 2, 2, 1)
    """Children of each node, from the root down."""
    coupling: Literal["recursive", "shared"] = "recursive"
    guidance: Guidance | None = None
    """Of the drafts; None: that of the images."""

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1:
            raise ValueError(f"branching must be numbers of 1 or more, at least one, got {self.branching}")
        if self.coupling not in ("recursive", "shared"):
            raise ValueError(f'coupling must be "recursive" or "shared", got {self.coupling!r}')

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise" if self.coupling == "shared" else "exact"

    @property
    def depth(self) -> int:
        return len(self.branching)

    @property
    def window(self) -> int:
        return sum(prod(self.branching[: level + 1]) for level in range(self.depth))

    def begin(self, job: Job, earlier: Any = None) -> Memory:
        if max(self.branching) > job.codebook_size:
            raise ValueError(f"branching {self.branching} needs as many codes, but there are {job.codebook_size}")
        tree, level = root_only(len(job.keys), job.keys.device), torch.zeros_like(job.keys[:, :1], dtype=torch.int64)
        for width in self.branching:
            known = tree.depths.shape[1]
            tree = grow(tree, level.repeat_interleave(width, dim=1))
            level = torch.arange(known, tree.depths.shape[1], device=level.device).expand(len(level), -1)
        return Memory(draft_scorer(job, self.generator, self.guidance, self.window), tree)

    def draft(self, job: Job, progress: Progress, memory: Memory) -> tuple[Draft, Memory]:
        scorer, tree, _ = memory
        kind = SHARED if self.coupling == "shared" else purpose(DRAFTING, progress)
        log_laws = [job.law(read_committed(scorer, job, progress, self.depth + 1))[:, None]]
        nodes = [progress.root]
        for level, width in enumerate(self.branching):
            if level:
                tokens = torch.cat(nodes, dim=1)
                size, last = tokens.shape[1], nodes[-1].shape[1]
                part = Tree(tree.depths[:, :size], tree.sees[:, :size, :size])
                log_laws.append(job.law(scorer(tokens, progress.start, scorer.cache.length, part)[:, -last:]))
            # one noise for the level: of its nodes only one can be on the path, whichever earlier levels decide
            noisy = log_laws[-1] + job.noise(progress.next + level, kind)
            nodes.append(noisy.topk(width).indices.flatten(1))
        return Draft(torch.cat(nodes[1:], dim=1), tree), memory._replace(laws=torch.cat(log_laws, dim=1).exp())

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Memory
    ) -> tuple[Verdict, Memory]:
        laws, memory = memory.laws, memory._replace(laws=None)
        if self.coupling == "shared":
            return match(job, progress, draft, log_law, self.depth), memory
        assert laws is not None
        uniforms = chances(job, progress, sum(self.branching)).split(self.branching, dim=1)  # of the way down

        def judge(level: int, node: Tensor, target: Tensor, candidates: Tensor) -> Choice:
            siblings = without_replacement(of_node(laws, node), candidates)
            return verify_recursive(target, siblings, candidates, uniforms[level])

        return settle(job, progress, draft, descend(draft.tokens, self.branching, log_law, judge)), memory


@dataclass(frozen=True)
class DynamicTree:
    """The likeliest paths of the drafting generator (EAGLE-2, arXiv:2406.16858), of any shape within a fixed size.

    The `width` likeliest nodes of each level get `width` children each; of all nodes, the `nodes` likeliest are kept.
    Nothing is drawn, and the choice of plain sampling is looked for among a node's children: so the images are those
    of plain sampling, and a child is right with the probability that the target gives it. Flat laws do not suit it.
    """

    generator: Generator
    """Its codes, their layout and its condition are those of the generator it drafts for."""
    _: KW_ONLY
    nodes: int = 16
    depth: int = 4
    width: int = 4
    guidance: Guidance | None = None
    """Of the drafts; None: that of the images."""

    def __post_init__(self) -> None:
        if min(self.nodes, self.depth, self.width) < 1:
            raise ValueError(f"nodes, depth and width must be 1 or more, got {self.nodes}, {self.depth}, {self.width}")
        most = self.width + (self.depth - 1) * self.width**2
        if self.nodes > most:
            raise ValueError(
                f"nodes {self.nodes} is more than the {most} that depth {self.depth}, width {self.width} grow"
            )

    @property
    def guarantee(self) -> Guarantee:
        return "pathwise"

    @property
    def window(self) -> int:
        return self.nodes

    def begin(self, job: Job, earlier: Any = None) -> Scorer:
        if self.width > job.codebook_size:
            raise ValueError(f"width {self.width} needs as many codes, but there are {job.codebook_size}")
        # while it grows, the tree is scored with what gets children
        return draft_scorer(job, self.generator, self.guidance, max(self.depth + 1, self.depth * self.width))

    def draft(self, job: Job, progress: Progress, memory: Scorer) -> tuple[Draft, Scorer]:
        """Nodes are ordered by depth, then by the tokens on the way to them, as children are by their tokens."""
        tree = root_only(len(progress.start), progress.start.device)
        tokens, scores = progress.root, torch.zeros_like(progress.root, dtype=torch.float32)  # of all nodes, b n
        open_nodes = last = torch.zeros_like(tokens)  # get children: so far, and in this level
        log_law = job.law(read_committed(memory, job, progress, self.depth + 1))[:, None]
        for level in range(self.depth):
            if level:
                first = 1 if level == 1 else tree.depths.shape[1] - self.width**2
                last = first + likeliest(scores[:, first:], self.width)
                open_nodes = torch.cat([open_nodes, last], dim=1)
                grown = subtree(tree, open_nodes)
                logits = memory(tokens.gather(1, open_nodes), progress.start, memory.cache.length, grown)
                log_law = job.law(logits[:, -self.width :])
            children = log_law.topk(self.width).indices.sort(-1).values
            steps = scores.gather(1, last)[..., None] + log_law.gather(-1, children)
            scores = torch.cat([scores, steps.flatten(1)], dim=1)
            tokens = torch.cat([tokens, children.flatten(1)], dim=1)
            tree = grow(tree, last.repeat_interleave(self.width, dim=1))
        kept = likeliest(scores[:, 1:], self.nodes) + 1
        return Draft(tokens.gather(1, kept), subtree(tree, torch.cat([torch.zeros_like(kept[:, :1]), kept], 1))), memory

    def couple(
        self, job: Job, progress: Progress, draft: Draft, log_law: Tensor, memory: Scorer
    ) -> tuple[Verdict, Scorer]:
        return match(job, progress, draft, log_law, self.depth), memory


def likeliest(scores: Tensor, count: int) -> Tensor:
    """The `count` largest of scores b n, of equals the earlier: b count, ascending.

    With the log-probabilities of paths, parents first, the parent of a node that is kept is kept too: it is no less
    likely than its child.
    """
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
