"""The runner itself: a case that is wrong must fail."""

import json

import pytest
import torch
from safetensors.torch import save_file

from .runner import Case, Family, gap_to_second, pick


@pytest.fixture
def case(tmp_path):
    """One call `double` of x (4 x 6); rows 1 and 2 and every other column of its output are stored."""
    x = torch.arange(24.0).reshape(4, 6)
    call = {
        "call": "double",
        "inputs": ["x"],
        "outputs": ["y", "y_stats"],
        "atol": 1e-4,
        "arguments": {"std": "unbiased"},
        "slices": {"y": [[1, 2], "::2"]},
        "full_shapes": {"y": [4, 6]},
    }
    tensors = {"x": x, "y": (2 * x)[1:3, ::2].contiguous(), "y_stats": torch.stack([(2 * x).mean(), (2 * x).std()])}
    path = tmp_path / "toys" / "tiny.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"config": {}, "params": [["w", [3, 4]], ["b", [3]]], "calls": [call]}))
    save_file(tensors, path.with_suffix(".safetensors"))
    return Case(path)


def family(factor: float) -> Family:
    def double(case: Case, model: float, call: dict) -> None:
        (x,) = case.inputs(call)
        whole, stats = case.outputs(call, known=2)
        case.compare(call, whole, model * x)
        case.compare_stats(call, stats, model * x)

    return Family(build=lambda case: factor, calls={"double": double})


def test_a_right_model_passes(case):
    family(2.0).run(case, 2.0, case.calls[0])
    assert case.num_parameters == 15
    assert case.call_id(0) == "toys/tiny/0-double"


def test_a_wrong_model_fails(case):
    with pytest.raises(AssertionError, match="y: "):
        family(2.0).run(case, 2.0001, case.calls[0])


def test_an_unknown_call_fails(case):
    with pytest.raises(AssertionError, match="no call 'treble'"):
        family(2.0).run(case, 2.0, {**case.calls[0], "call": "treble"})


def test_an_output_that_no_adapter_knows_fails(case):
    with pytest.raises(ValueError, match="are known"):
        family(2.0).run(case, 2.0, {**case.calls[0], "outputs": ["y", "y_stats", "z"]})


def test_a_wrong_shape_fails(case):
    with pytest.raises(AssertionError, match=r"\[3, 6\] instead of \[4, 6\]"):
        case.compare(case.calls[0], "y", torch.zeros(3, 6))
    with pytest.raises(AssertionError, match=r"\[1\] instead of \[2\] stored"):
        case.compare(case.calls[0], "y_stats", torch.zeros(1))


def test_the_standard_deviation_is_the_one_that_was_recorded(case):
    call = {**case.calls[0], "arguments": {"std": "population"}}
    with pytest.raises(AssertionError):
        family(2.0).run(case, 2.0, call)


def test_only_ties_excuse_another_choice(case):
    case.stored["chosen"] = torch.tensor([1, 2, 3])
    ours, tie, clear = torch.tensor([1, 2, 0]), torch.tensor([1.0, 1.0, 9e-5]), torch.tensor([1.0, 1.0, 2e-4])
    assert case.compare_choices("chosen", ours, tie).tolist() == [False, False, True]
    with pytest.raises(AssertionError, match=r"1 of 3 differ .* first at \[2\]"):
        case.compare_choices("chosen", ours, clear)


def test_slices_are_applied_axis_by_axis():
    x = torch.arange(120).reshape(4, 5, 6)
    torch.testing.assert_close(pick(x, [":", "1:4:2", [5, 0]]), x[:, 1:4:2][:, :, [5, 0]])
    torch.testing.assert_close(pick(x, ["-2:"]), x[-2:])
    assert pick(x, None) is x


def test_the_gap_is_between_the_two_best():
    torch.testing.assert_close(
        gap_to_second(torch.tensor([[1.0, 5.0, 2.0], [3.0, 3.0, 0.0]])), torch.tensor([3.0, 0.0])
    )
