"""What strategies are tried on: a toy with a known joint law, a random generator with a near relative, one round."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imgtok.generators.condition import TextFeatures
from imgtok.generators.generator import Generator
from imgtok.sample.engine import Drawn, Round, beginning, sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys
from imgtok.sample.scorer import Scorer
from imgtok.sample.strategy import Job, Progress, Strategy
from imgtok.tokens import GridLayout

from .frequencies import check_frequencies
from .no_sync import NoSync
from .toys import TableGenerator

GUIDANCES = {
    "off": Guidance(),
    "constant": Guidance(scale=3.0),
    "cosine": Guidance(scale=4.0, schedule="cosine"),
    "stopped": Guidance(scale=3.0, steps=9),
}
ROWS = 5
KEYS = image_keys(3, range(ROWS))


class Trial(NamedTuple):
    target: Generator
    """Of 4 x 6 tokens, 13 codes."""
    draft: Generator
    """The same with other weights, not far off."""
    condition: Any

    def draw(self, strategy: Strategy | None = None, rows: list[int] | None = None, **settings: Any) -> Drawn:
        rows = list(range(ROWS)) if rows is None else rows
        given = (
            self.condition[rows]
            if isinstance(self.condition, Tensor)
            else TextFeatures(*(part[rows] for part in self.condition))
        )
        return sample_tokens(self.target, given, KEYS[rows], strategy=strategy, **settings)


@torch.no_grad()
def trial_of(make_generator: Callable[..., Generator], kind: str = "labels", depth: int = 2) -> Trial:
    """kind: "labels" or "text"."""
    target = make_generator(GridLayout(4, 6), text=kind == "text", depth=depth)
    target.head.logits.weight.mul_(0.3)
    draft, dice = deepcopy(target), torch.Generator().manual_seed(3)
    for parameter in draft.parameters():
        parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=dice))
    if kind == "labels":
        return Trial(target, draft, torch.tensor([[i % 5, i % 3] for i in range(ROWS)]))
    visible = torch.arange(5) >= torch.tensor([[i % 5] for i in range(ROWS)])
    features = torch.randn(ROWS, 5, 6, generator=torch.Generator().manual_seed(1))
    return Trial(target, draft, TextFeatures(features * visible[:, :, None], visible))


class Start(NamedTuple):
    """What the engine hands to a round."""

    round: Round
    arguments: tuple[Progress, Any, Tensor, int]


@torch.no_grad()
def start_of(trial: Trial, strategy: Strategy, guidance: Guidance | None = None) -> Start:
    guidance, most = guidance or Guidance(scale=3.0), strategy.window + 1
    scorer = Scorer(trial.target, trial.condition, guidance, ROWS, strategy.window)
    job = Job(trial.target, trial.condition, Law(top_k=9), guidance, KEYS, trial.target.num_tokens, scorer)
    progress = beginning(ROWS, job.total + most, KEYS.device)
    accepted = torch.zeros(most + 1, dtype=torch.int64)
    return Start(Round(job, strategy), (progress, strategy.begin(job), accepted, scorer.cache.length))


@torch.no_grad()
def check_a_round_never_waits(trial: Trial, strategy: Strategy) -> None:
    start = start_of(trial, strategy)
    progress, memory, accepted, columns = start.arguments
    with NoSync() as watch:
        for _ in range(3):
            progress, memory, accepted = start.round(progress, memory, accepted, columns)
    assert watch.calls > 100
    assert progress.start.min() >= 2


@torch.no_grad()
def check_a_round_compiles(trial: Trial, strategy: Strategy) -> None:
    """As a single graph, to the same."""
    plain, traced = start_of(trial, strategy), start_of(trial, strategy)
    torch._dynamo.reset()
    expected, *_ = plain.round(*plain.arguments)
    actual, *_ = torch.compile(traced.round, fullgraph=True, backend="eager")(*traced.arguments)
    assert torch.equal(actual.start, expected.start)
    kept = torch.arange(expected.tokens.shape[1]) <= expected.start[:, None]
    assert torch.equal(actual.tokens * kept, expected.tokens * kept)


def check_rows_are_alone(trial: Trial, strategy: Strategy, **settings: Any) -> None:
    """Tokens and network calls of an image do not depend on the rest of the batch."""
    whole = trial.draw(strategy, **settings)
    for rows in ([0], [3], [4, 1], [2, 3, 4]):
        part = trial.draw(strategy, rows, **settings)
        assert torch.equal(part.tokens, whole.tokens[rows])
        assert torch.equal(part.calls, whole.calls[rows])


def check_joint(
    target: TableGenerator, joint: dict[str, float], strategy: Strategy, law: Law | None = None, draws: int = 200_000
) -> Drawn:
    """Chi-square over all sequences; a right sampler exceeds the bound once in a million tries."""
    v, n = target.config.codebook_size, target.num_tokens
    drawn = sample_tokens(target, torch.zeros(draws, 1), image_keys(5, range(draws)), law=law, strategy=strategy)
    probs = torch.zeros(v**n, dtype=torch.float64)
    for sequence, probability in joint.items():
        probs[int(sequence, v)] = probability
    torch.testing.assert_close(probs.sum(), torch.tensor(1.0, dtype=torch.float64))
    counts = torch.bincount((drawn.tokens * v ** torch.arange(n).flip(0)).sum(1), minlength=v**n)
    check_frequencies(counts, probs)
    return drawn
