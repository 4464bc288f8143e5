"""Linear layers in int8: what they multiply by, and that both ways to do it agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from imgtok.nn import linear
from imgtok.nn.linear import Int8Linear, few_rows, int8


def layer(out: int = 48, into: int = 32, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """Its first row is zero; the second has one large weight."""
    built, dice = nn.Linear(into, out, bias=False), torch.Generator().manual_seed(0)
    with torch.no_grad():
        built.weight.copy_(torch.randn(out, into, generator=dice))
        built.weight[0] = 0
        built.weight[1, 0] = 100
    return built.to(dtype)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_weight_is_off_by_more_than_half_a_step(bits, dtype):
    whole = layer(dtype=dtype)
    small = int8(whole, bits)
    most = 2 ** (bits - 1) - 1
    assert small.levels.dtype == torch.int8
    assert small.scale.dtype == dtype
    assert small.levels.abs().amax(1).tolist() == [0] + [most] * 47
    error = (small.levels.float() * small.scale.float()[:, None] - whole.weight.float()).abs()
    step = whole.weight.float().abs().amax(1, keepdim=True) / most
    rounding = 0 if dtype == torch.float32 else 0.5  # of the scale, 2^-8 of 127 steps at most
    assert (error <= (0.5 + rounding) * step + 1e-6).all()


@torch.no_grad()
def test_it_multiplies_by_its_weights():
    whole, x = layer(), inputs(2, 3, 32)
    small = int8(whole)
    torch.testing.assert_close(small(x), x @ (small.levels * small.scale[:, None]).T)
    error, spread = (y.square().mean((0, 1)).sqrt()[1:] for y in (small(x) - whole(x), whole(x)))  # of each output
    assert (error < 0.03 * spread).all()
    assert (error > 0).all()


@pytest.mark.parametrize("shape", [(32,), (1, 32), (4, 2, 32), (9, 32), (2, 0, 32), (2, 24), (2, 33)])
def test_few_rows_in_bfloat16_are_multiplied_as_many(shape, monkeypatch):
    """The kernel for few rows gives the plain product, up to a rounding before the scale and one after it."""
    small, x = int8(layer(into=shape[-1], dtype=torch.bfloat16)), inputs(*shape, dtype=torch.bfloat16)
    exact = x.double() @ (small.levels.double() * small.scale.double()[:, None]).T
    fast = small(x)
    monkeypatch.setattr(linear, "FEW_ROWS", -1)
    plain = small(x)
    for out in (fast, plain):
        assert (out.shape, out.dtype) == ((*shape[:-1], 48), torch.bfloat16)
        torch.testing.assert_close(out.double(), exact, rtol=2**-7, atol=1e-3)


def test_the_kernel_is_used_where_it_is_right_and_fast(monkeypatch):
    used: list[int] = []
    monkeypatch.setattr(linear, "few_rows", lambda x, levels, scale: used.append(len(x)) or few_rows(x, levels, scale))
    for into in (24, 32, 48, 64):
        for rows in (1, 8, 9):
            int8(layer(into=into, dtype=torch.bfloat16))(inputs(rows, into, dtype=torch.bfloat16))
            int8(layer(into=into))(inputs(rows, into))
    assert used == [1, 8, 1, 8]  # in 32 and 64


def test_the_kernel_reads_nothing_beyond_its_rows():
    """What surrounds inputs and weights in memory is no number."""
    into, out = linear.STRIDE, 7
    around = torch.full((3, 64, into), torch.nan, dtype=torch.bfloat16)
    x, scale = around[1, 20:23], torch.full((3 * 64,), torch.nan, dtype=torch.bfloat16)[64 : 64 + out]
    x.copy_(inputs(3, into))
    scale.copy_(inputs(out).abs())
    levels = torch.full((64, into), 127, dtype=torch.int8)[20 : 20 + out]
    levels.copy_((20 * inputs(out, into)).round())
    exact = x.double() @ (levels.double() * scale.double()[:, None]).T
    torch.testing.assert_close(few_rows(x, levels, scale).double(), exact, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_takes_any_rows(dtype):
    small, x = int8(layer(dtype=dtype)), inputs(3, 5, 32, dtype=dtype).transpose(0, 1)
    plain = x @ small.levels.to(dtype).T * small.scale
    torch.testing.assert_close(few_rows(x, small.levels, small.scale), plain, rtol=2**-6, atol=2e-2)


def test_it_can_be_moved_and_stored():
    small, x = int8(layer()), inputs(3, 32)
    half = int8(layer()).to(torch.bfloat16)
    assert (half.levels.dtype, half.scale.dtype) == (torch.int8, torch.bfloat16)
    other = Int8Linear(torch.zeros(48, 32, dtype=torch.int8), torch.zeros(48))
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(x), small(x))
    assert small.to("meta")(x.to("meta")).shape == (3, 48)
    assert list(small.parameters()) == []


def test_it_is_one_graph():
    for dtype in (torch.float32, torch.bfloat16):
        small, x = int8(layer(dtype=dtype)), inputs(2, 2, 32, dtype=dtype)
        torch.testing.assert_close(torch.compile(small, fullgraph=True, backend="eager")(x), small(x))


def test_what_cannot_be_kept_is_told():
    with pytest.raises(ValueError, match="has a bias"):
        int8(nn.Linear(2, 2))
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"between 2 and 8, got {bits}"):
            int8(layer(), bits)
