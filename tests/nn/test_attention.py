"""Attention and the block around it, against plain formulas and against themselves."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.nn.attention import Attention
from imgtok.nn.block import Block
from imgtok.nn.mask import causal
from imgtok.nn.mlp import MLP, SwiGLU, swiglu_hidden
from imgtok.nn.norm import RMSNorm, layer_norm
from imgtok.nn.position import Rope, axial_rope, rotate
from imgtok.tokens import GridLayout

ROPE = axial_rope(GridLayout(2, 3).positions(), head_dim=4)


class GrowingCache:
    """The plainest cache: everything so far, in a longer and longer tensor."""

    def __init__(self) -> None:
        self.k = self.v = torch.zeros(2, 0, 0, 4)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        first = not self.k.shape[2]
        self.k, self.v = (k, v) if first else (torch.cat([self.k, k], 2), torch.cat([self.v, v], 2))
        return self.k, self.v


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice) / math.sqrt(parameter.shape[-1]))
    return module.eval()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_follows_its_formula(kv_heads):
    attention, x, mask = randomise(Attention(16, 4, kv_heads)), noise(2, 6, 16), causal(6)
    q, k, v = (x @ attention.qkv.weight.T).split([16, 4 * kv_heads, 4 * kv_heads], dim=-1)
    out = []
    for head in range(4):
        group = head * kv_heads // 4
        qh = rotate(q[:, :, None, 4 * head : 4 * head + 4], ROPE)[:, :, 0]
        kh = rotate(k[:, :, None, 4 * group : 4 * group + 4], ROPE)[:, :, 0]
        scores = (qh @ kh.transpose(1, 2) / 2).masked_fill(~mask, -torch.inf)
        out.append(scores.softmax(-1) @ v[:, :, 4 * group : 4 * group + 4])
    torch.testing.assert_close(attention(x, ROPE, mask), torch.cat(out, dim=-1) @ attention.proj.weight.T)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_causal_flag_is_the_causal_mask(kv_heads):
    attention, x = randomise(Attention(16, 4, kv_heads)), noise(2, 6, 16)
    torch.testing.assert_close(attention(x, ROPE, causal=True), attention(x, ROPE, causal(6)))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cached_steps_equal_one_pass(kv_heads):
    block, x = randomise(Block(16, 4, 24, num_kv_heads=kv_heads)), noise(2, 6, 16)
    cache, steps = GrowingCache(), []
    for i in range(6):
        place = Rope(ROPE.cos[i : i + 1], ROPE.sin[i : i + 1])
        steps.append(block(x[:, i : i + 1], place, cache=cache))
    torch.testing.assert_close(torch.cat(steps, dim=1), block(x, ROPE, causal(6)))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("rope", [ROPE, None], ids=["rope", "no-rope"])
@torch.no_grad()
def test_a_learned_scale_compares_directions_and_stops_at_100(rope, kv_heads):
    attention, x, mask = randomise(Attention(16, 4, kv_heads, bias=True, scale="learned")), noise(2, 6, 16), causal(6)
    attention.log_scale.copy_(torch.tensor([1.0, 0.0, -1.0, 7.0]))
    q, k, v = F.linear(x, attention.qkv.weight, attention.qkv.bias).split([16, 4 * kv_heads, 4 * kv_heads], dim=-1)
    out = []
    for head, scale in enumerate([math.e, 1.0, 1 / math.e, 100.0]):
        group = head * kv_heads // 4
        qh, kh = q[..., 4 * head : 4 * head + 4], k[..., 4 * group : 4 * group + 4]
        qh, kh = qh / qh.norm(dim=-1, keepdim=True), kh / kh.norm(dim=-1, keepdim=True)
        if rope is not None:
            qh, kh = (rotate(part[:, :, None], rope)[:, :, 0] for part in (qh, kh))
        scores = (scale * qh @ kh.transpose(1, 2)).masked_fill(~mask, -torch.inf)
        out.append(scores.softmax(-1) @ v[:, :, 4 * group : 4 * group + 4])
    expected = F.linear(torch.cat(out, dim=-1), attention.proj.weight, attention.proj.bias)
    torch.testing.assert_close(attention(x, rope, mask), expected, atol=5e-5, rtol=1e-4)


def test_a_learned_scale_begins_at_4():
    torch.testing.assert_close(Attention(16, 4, scale="learned").log_scale.exp(), torch.full((4,), 4.0))


@pytest.mark.parametrize("scale", ["learned", 0.5])
@torch.no_grad()
def test_lengths_of_queries_and_keys_matter_unless_the_scale_is_learned(scale):
    attention, x = randomise(Attention(16, 4, bias=True, scale=scale)), noise(2, 6, 16)
    before = attention(x)
    longer = torch.linspace(0.1, 10, 8).repeat_interleave(4)  # of 4 heads' queries, then of their keys
    attention.qkv.weight[:32] *= longer[:, None]
    attention.qkv.bias[:32] *= longer
    if scale == "learned":
        torch.testing.assert_close(attention(x), before)
    else:
        assert not torch.allclose(attention(x), before, atol=1e-2)


@pytest.mark.parametrize("scale", [0.3, 2.0, None])
@torch.no_grad()
def test_a_given_scale_multiplies_the_products(scale):
    attention, x = randomise(Attention(16, 4, scale=scale)), noise(2, 6, 16)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in (x @ attention.qkv.weight.T).chunk(3, dim=-1))
    weights = (q @ k.transpose(2, 3) * (0.5 if scale is None else scale)).softmax(-1)
    expected = (weights @ v).transpose(1, 2).flatten(2) @ attention.proj.weight.T
    torch.testing.assert_close(attention(x), expected)


@torch.no_grad()
def test_without_a_rope_the_order_does_not_matter():
    attention, x = randomise(Attention(16, 4)), noise(2, 6, 16)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])
    assert not torch.allclose(attention(x[:, order], ROPE), attention(x, ROPE)[:, order], atol=1e-3)


@pytest.mark.parametrize("scale", ["learned", None])
@torch.no_grad()
def test_half_precision_keeps_its_type_and_is_close(scale):
    attention, x = randomise(Attention(16, 4, bias=True, scale=scale)), noise(2, 6, 16)
    expected = attention(x)
    half = attention.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(16, 3, None), (16, 4, 3), (16, 2, 4)])
def test_sizes_that_do_not_divide_are_refused(width, heads, kv_heads):
    with pytest.raises(ValueError, match=f"width {width}, num_heads {heads}, num_kv_heads {kv_heads}"):
        Attention(width, heads, kv_heads)


def test_a_block_adds_to_its_input():
    block, x = randomise(Block(16, 4, 24)), noise(2, 6, 16)
    torch.nn.init.zeros_(block.attention.proj.weight)
    torch.nn.init.zeros_(block.mlp.down.weight)
    assert torch.equal(block(x, ROPE), x)


def test_dropout_is_for_training_only():
    block, x = randomise(Block(16, 4, 24, dropout=0.5)), noise(2, 6, 16)
    assert torch.equal(block(x, ROPE), block(x, ROPE))
    block.train()
    assert not torch.equal(block(x, ROPE), block(x, ROPE))


def test_swiglu_follows_its_formula():
    mlp, x = randomise(SwiGLU(6, 10)), noise(3, 6)
    gate, up = mlp.gate_up.weight[:10], mlp.gate_up.weight[10:]
    hidden = (x @ gate.T) * torch.sigmoid(x @ gate.T) * (x @ up.T)
    torch.testing.assert_close(mlp(x), hidden @ mlp.down.weight.T)


@torch.no_grad()
def test_mlp_follows_its_formula():
    mlp, x = randomise(MLP(6, 10)), noise(3, 6)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


@pytest.mark.parametrize(
    ("width", "hidden"), [(768, 2048), (1024, 2816), (1280, 3584), (1536, 4096), (3200, 8704), (4096, 11008)]
)
def test_hidden_widths_are_llamas(width, hidden):
    assert swiglu_hidden(width) == hidden


def test_rms_norm_computes_in_float32_and_scales_afterwards():
    norm, x = randomise(RMSNorm(8, eps=0.1)), noise(4, 8)
    plain = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x), plain * norm.weight)
    half = x.bfloat16() * 100
    wide = half.float() / (half.float().square().mean(-1, keepdim=True) + 0.1).sqrt()
    assert torch.equal(norm.bfloat16()(half), wide.bfloat16() * norm.weight)


def test_layer_norm_computes_in_float32_and_casts_back():
    x = noise(4, 8) + 3
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(layer_norm(x, eps=0.1), plain)
    half = x.bfloat16() * 100
    assert torch.equal(layer_norm(half), layer_norm(half.float()).bfloat16())


@torch.no_grad()
def test_normed_queries_and_keys_are_normed_in_each_head():
    attention, x, bias = randomise(Attention(16, 4, scale=0.7, qk_norm=True)), noise(2, 6, 16), noise(1, 1, 1, 6)
    q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    q, k = (
        (part - part.mean(-1, True)) / (part.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() for part in (q, k)
    )
    weights = (0.7 * q @ k.transpose(-1, -2) + bias).softmax(-1)  # a mask of numbers is added
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, mask=bias), expected)
