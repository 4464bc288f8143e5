"""Linear layers laid out for the processor give what linear layers give, whatever is done within them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.nn import packed
from imgtok.nn.packed import BlockedLinear, PackedLinear, SmallLinear, can_pack, packed_weight


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [BlockedLinear, SmallLinear])
@torch.no_grad()
def test_products_and_what_is_done_within_them(kind: type[PackedLinear], bias: bool) -> None:
    weight, x = noise(6, 5), noise(2, 3, 5, seed=1)
    if not can_pack(weight):
        pytest.skip("torch was built without oneDNN")
    b = noise(6, seed=2) if bias else None
    layer, plain, other = kind(weight, b), F.linear(x, weight, b), noise(2, 3, 6, seed=3)
    kept = other.clone()
    torch.testing.assert_close(layer(x), plain)
    torch.testing.assert_close(layer.silu(x), F.silu(plain))
    torch.testing.assert_close(layer.gelu(x), F.gelu(plain, approximate="tanh"))
    torch.testing.assert_close(layer.plus(x, other), plain + other)
    torch.testing.assert_close(layer.times(x, other), plain * other)
    torch.testing.assert_close(layer(x.transpose(0, 1)), plain.transpose(0, 1))
    assert torch.equal(other, kept) and not list(layer.parameters())


def test_few_float32_weights_are_transposed_and_many_put_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = noise(6, 5)
    if not can_pack(weight):
        pytest.skip("torch was built without oneDNN")
    assert type(packed_weight(weight)) is SmallLinear
    monkeypatch.setattr(packed, "SMALL", 29)
    assert type(packed_weight(weight)) is BlockedLinear
