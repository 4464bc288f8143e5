"""Classifier-free guidance and its schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from imgtok.sample.coupling import overlap
from imgtok.sample.guidance import Guidance, guide, last_guided
from imgtok.sample.law import Law

from . import oracles


def test_guidance_goes_from_the_null_past_the_condition():
    conditional, null = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 3.0]])
    both = torch.cat([conditional, null])
    assert guide(both, 0.0).tolist() == null.tolist()
    assert guide(both, 1.0).tolist() == conditional.tolist()
    assert guide(both, 3.0).tolist() == [[3.0, 0.0]]


def test_guidance_is_computed_in_float32():
    both = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(guide(both, 7.5), guide(both.float(), 7.5))


def test_rows_keep_their_partner():
    both = torch.arange(12.0).reshape(6, 2)
    torch.testing.assert_close(guide(both, 2.0), both[3:] + 2 * (both[:3] - both[3:]))


def test_a_constant_scale_is_the_same_throughout():
    assert Guidance(scale=4.0).scales(3) == [4.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("steps", "expected"), [(0, [1, 1, 1]), (1, [4, 1, 1]), (2, [4, 4, 1]), (3, [4, 4, 4]), (9, [4, 4, 4])]
)
def test_guidance_ends_after_its_steps(steps, expected):
    assert Guidance(scale=4.0, steps=steps).scales(3) == expected


def test_a_linear_scale_begins_at_one_and_ends_at_the_scale():
    assert Guidance(scale=3.0, schedule="linear").scales(5) == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert Guidance(scale=3.0, schedule="linear").scales(1) == [1.0]


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_a_cosine_scale_follows_its_formula(power):
    scales = Guidance(scale=6.0, schedule="cosine", power=power).scales(8)
    for i, scale in enumerate(scales):
        assert scale == pytest.approx(1 + 5 * (1 - math.cos(math.pi * (i / 8) ** power)) / 2)
    assert scales == sorted(scales)


def test_steps_cut_a_schedule_without_changing_it():
    whole = Guidance(scale=3.0, schedule="linear").scales(6)
    assert Guidance(scale=3.0, schedule="linear", steps=4).scales(6) == [*whole[:4], 1.0, 1.0]


@pytest.mark.parametrize(
    ("scales", "expected"), [([], 0), ([1.0, 1.0], 0), ([1.0, 2.0, 1.0], 2), ([2.0], 1), ([0.5, 1.0], 1)]
)
def test_null_rows_are_needed_up_to_the_last_scale_that_is_not_one(scales, expected):
    assert last_guided(scales) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": math.inf}, "scale must be a finite number"),
        ({"scale": math.nan}, "scale must be a finite number"),
        ({"steps": -1}, "steps must be 0 or more"),
        ({"power": 0.0}, "power must be above 0"),
    ],
)
def test_values_without_a_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**values)


def guided(conditional: list[float], null: list[float], scale: float) -> Tensor:
    """In float64, for the tolerance of the oracles; `guide` itself is checked against it in float32."""
    both = torch.stack([oracles.law(conditional), oracles.law(null)])
    logits = both[1] + scale * (both[0] - both[1])
    torch.testing.assert_close(guide(both, scale)[0].double(), logits, atol=1e-5, rtol=1e-5)
    return logits


@pytest.mark.parametrize("case", oracles.cases("guidance"))
def test_guided_laws_are_the_known_ones(case):
    inputs, expected = case["inputs"], case["expected"]
    if "steps" in inputs:  # a schedule
        scales = Guidance(scale=1 + inputs["cfg"], schedule="linear").scales(inputs["steps"])
        oracles.close(case, scales, expected["scale_of_cond_minus_uncond_per_step"], "scales")
        for name in (name for name in expected if name.startswith("probs_step_")):
            logits = guided(inputs["cond_logits"], inputs["uncond_logits"], scales[int(name.rpartition("_")[2])])
            oracles.close(case, Law()(logits).exp(), expected[name], name)
        return
    law, scale = Law(temperature=inputs["temperature"], top_k=inputs["top_k"] or 0), inputs["scale"]
    draft = guided(inputs["draft_cond_logits"], inputs["draft_uncond_logits"], scale)
    laws = {
        "target": law(guided(inputs["target_cond_logits"], inputs["target_uncond_logits"], scale)),
        "draft_guided_and_truncated": law(draft),
        "draft_guided_untruncated": Law(temperature=inputs["temperature"])(draft),
        "draft_unguided_truncated": law(oracles.law(inputs["draft_cond_logits"])),
    }
    for name, log_probs in laws.items():
        oracles.close(case, log_probs.exp(), expected[name], name)
    for name in list(laws)[1:]:
        oracles.close(case, overlap(laws["target"].exp(), laws[name].exp()), expected[f"acceptance_{name}"], name)
