"""VAR's transformer, together with the tokenizer case that it needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.generators.next_scale import NextScaleGenerator
from imgtok.generators.presets.var import convert, generator_config
from imgtok.hub import build_from_state
from imgtok.presets.var import convert_tokenizer, tokenizer_config
from imgtok.sample.guidance import Guidance, guide
from imgtok.sample.law import Law
from imgtok.sample.next_scale import sample_stages
from imgtok.sample.noise import image_keys
from imgtok.tokenizer import Tokenizer

from ..sample.toys import Recorder
from .llamagen import follow
from .runner import Call, Case, gap_to_second, positions


class Pair(NamedTuple):
    generator: NextScaleGenerator
    tokenizer: Tokenizer

    @property
    def quantizer(self) -> Any:
        return self.tokenizer.quantizer


def build(case: Case) -> Pair:
    needed = Case(case.path.with_stem(case.description["requires"]["tokenizer"]))
    tokenizer = build_from_state(tokenizer_config(needed.config), convert_tokenizer(needed.state()), needed.name)
    return Pair(
        build_from_state(generator_config(case.config), convert(case.state()), case.name).eval(), tokenizer.eval()
    )


def teacher_forced(case: Case, pair: Pair, call: Call) -> None:
    labels, tokens = case.inputs(call)
    tokens = tokens.long()
    stored, stats, argmax, loss = case.outputs(call, known=4)
    check_null(pair.generator, call)
    assert call["arguments"]["label_drop"] == 0
    logits = pair.generator(pair.quantizer.inputs(tokens, pair.generator.config.layout), labels)
    case.compare(call, stored, logits)
    case.compare_stats(call, stats, logits)
    case.compare_choices(argmax, logits.argmax(-1), gap_to_second(logits))
    rows = positions(call["arguments"]["loss_positions"], tokens.shape[1])
    case.compare(call, loss, F.cross_entropy(logits[:, rows].flatten(0, 1), tokens[:, rows].flatten())[None])


def greedy(case: Case, pair: Pair, call: Call) -> None:
    (labels,) = case.inputs(call)
    tokens, stored, picture, stats = case.outputs(call, known=4)
    check_null(pair.generator, call)
    recorder, keys = Recorder(Law(temperature=0)), image_keys(0, range(len(labels)))
    ours = sample_stages(pair.generator, pair.quantizer, labels, keys, law=recorder, guidance=guidance_of(call)).tokens
    logits, published = torch.cat(recorder.logits, dim=1), case.stored[call["outputs"][0]].long()
    # After a tie that fell the other way, all later stages may differ; within a stage tokens do not see each other.
    layout = pair.generator.config.layout
    stages = layout.group_sizes
    right = torch.stack([part.all(1) for part in (ours == published).split(stages, dim=1)], dim=1)
    followed = follow(right.long(), torch.ones_like(right.long())).repeat_interleave(torch.tensor(stages), dim=1)
    case.compare_choices(tokens, ours, gap_to_second(logits).masked_fill(~followed, 0))
    case.compare(call, stored, logits, where=followed[..., None].expand_as(logits))
    low, high = call["arguments"]["output_range"]
    decoded = (pair.tokenizer.decode(published, layout) + 1) / 2 * (high - low) + low
    case.compare(call, picture, decoded)
    case.compare_stats(call, stats, decoded)


def forced_incremental(case: Case, pair: Pair, call: Call) -> None:
    """The cached way, stage by stage, with given tokens."""
    labels, tokens = case.inputs(call)
    stored, stats, argmax = case.outputs(call, known=3)
    check_null(pair.generator, call)
    generator, quantizer, layout = pair.generator, pair.quantizer, pair.generator.config.layout
    maps, scales = layout.unflatten(tokens.long()), guidance_of(call).scales(generator.num_stages)
    cache = generator.new_cache(2 * len(labels))
    told, latents, parts = generator.tell(generator.condition.with_null(labels)), None, list[Tensor]()
    for stage, chosen in enumerate(maps):
        seen = None if latents is None else quantizer.seen(latents, stage, layout).flatten(1, 2).repeat(2, 1, 1)
        parts.append(guide(generator.score(told, stage, seen, cache), scales[stage]))
        latents = quantizer.start(len(labels), layout) if latents is None else latents
        latents = quantizer.accumulate(latents, chosen, stage, layout)
    logits = torch.cat(parts, dim=1)
    case.compare(call, stored, logits)
    case.compare_stats(call, stats, logits)
    case.compare_choices(argmax, logits.argmax(-1), gap_to_second(logits))


def guidance_of(call: Call) -> Guidance:
    """Published: (1 + t) conditional - t null; t rises to its full strength."""
    schedule: Any = call["arguments"]["guidance_schedule"]
    return Guidance(scale=1 + call["arguments"]["guidance_scale"], schedule=schedule)


def check_null(generator: NextScaleGenerator, call: Call) -> None:
    assert generator.condition.null(1).tolist() == [[call["arguments"]["null_label"]]]


CALLS = {"teacher_forced": teacher_forced, "greedy": greedy, "forced_incremental": forced_incremental}
