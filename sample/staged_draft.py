"""Two next-scale generators of one tokenizer: a smaller one drafts the first stages, or draws the last ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.sample.draft_model import check_alike
from imgtok.sample.next_scale import Canvas, StageJob, StageStrategy, finish
from imgtok.sample.strategy import Guarantee


@dataclass(frozen=True)
class StagedDraft(StageStrategy):
    """A smaller generator drafts the first stages; one call of the larger one scores them, and the stage after them.

    The noise is shared (as in arXiv:2408.07978), so the images are those of plain sampling: each stage gets the tokens
    that the larger generator chooses, and a draft only has to be right for the stage after it to be scored already.
    One wrong token of a stage makes the later drafts useless, so there is little to gain beyond the first stages. A
    batch goes on from the first stage at which any of its images has a wrong draft; whether one has waits for the
    device.
    """

    generator: NextScaleGenerator
    """That drafts."""
    stages: int = 2
    """How many it drafts. Two are what was measured to be of use: a third one was never right throughout."""
    guarantee: ClassVar[Guarantee] = "pathwise"
    takes_mixtures: ClassVar[bool] = False

    def draw(self, job: StageJob, canvas: Canvas) -> list[int]:
        check_partner(self.generator, job.generator, self.stages)
        sketch, small = Canvas(job), job.scorer_of(self.generator)
        for _ in range(self.stages):
            sketch.ask(small)
        canvas.tick("draft")
        scored = job.scorer.first(sketch.seen)
        canvas.tick("model")
        for stage, logits in enumerate(scored):
            chosen = canvas.add(logits)
            if stage < self.stages and not torch.equal(chosen, sketch.tokens[stage]):
                break
        return [canvas.stage, *finish(canvas, job.scorer)]


@dataclass(frozen=True)
class SmallerTail(StageStrategy):
    """A smaller generator draws the last stages, where most of the tokens are (CoDe, arXiv:2411.17787).

    It reads the stages before in one call, together with the first of its own. The images are from neither's law.
    """

    generator: NextScaleGenerator
    """That draws the last stages."""
    stages: int = 2
    """How many it draws. CoDe's N, of ten stages, is 10 - `stages`."""
    guarantee: ClassVar[Guarantee] = "relaxed"

    def draw(self, job: StageJob, canvas: Canvas) -> list[int]:
        check_partner(self.generator, job.generator, self.stages)
        small, num_stages = job.scorer_of(self.generator), job.generator.num_stages
        for _ in range(num_stages - self.stages):
            canvas.ask(job.scorer)
        logits = small.first(canvas.seen)[-1]
        canvas.tick("model")
        canvas.add(logits)
        finish(canvas, small)
        return [1] * num_stages


def check_partner(small: NextScaleGenerator, large: NextScaleGenerator, stages: int) -> None:
    """ValueError unless both draw the same images, and the small one some but not all stages."""
    check_alike(small, large)
    given, wanted = small.config.codebook_dim, large.config.codebook_dim
    if given != wanted:
        raise ValueError(
            f"the draft generator's code vectors have {given} numbers, those of the generator it draws with {wanted}; "
            "use one of the same tokenizer"
        )
    if not 1 <= stages < large.num_stages:
        raise ValueError(
            f"the smaller generator's stages must be at least 1 and less than all {large.num_stages}, got {stages}"
        )
