"""Blocks against their formulas, and branches left out in training."""

import math

import pytest
import torch
from torch import Tensor

from imgtok.nn.block import AdaLNBlock, ViTBlock
from imgtok.nn.mask import group_causal

WIDTH = 16
GATE_A, GATE_M = 0, 1  # places in the six vectors


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_block(**settings: object) -> AdaLNBlock:
    """In evaluation mode, biases included."""
    block = AdaLNBlock(WIDTH, 4, 24, **settings).eval()
    with torch.no_grad():
        for seed, parameter in enumerate(block.parameters()):
            parameter.copy_(noise(*parameter.shape, seed=seed) / math.sqrt(parameter.shape[-1]))
    return block


def told(batch: int, *, gates: float = 1.0) -> Tensor:
    """Six vectors for each row: b 1 6 c."""
    modulation = 0.5 * noise(batch, 1, 6, WIDTH, seed=7)
    modulation[:, :, :2] = gates
    return modulation


def normed(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()


both_ways = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])


@both_ways
@pytest.mark.parametrize("attention_scale", ["learned", 0.125, None])
@torch.no_grad()
def test_the_block_follows_its_formula(attention_scale, shared):
    block = random_block(shared=shared, attention_scale=attention_scale, norm_eps=0.1)
    x, mask = noise(2, 6, WIDTH), group_causal((1, 2, 3))
    condition = noise(2, 6 * WIDTH if shared else WIDTH, seed=5)
    if shared:
        vectors = condition.reshape(2, 6, WIDTH) + block.modulation
    else:
        vectors = (condition @ block.modulation.weight.T + block.modulation.bias).reshape(2, 6, WIDTH)
    gate_a, gate_m, scale_a, scale_m, shift_a, shift_m = (vectors[:, i : i + 1] for i in range(6))
    middle = x + gate_a * block.attention(normed(x, 0.1) * (1 + scale_a) + shift_a, mask=mask)
    expected = middle + gate_m * block.mlp(normed(middle, 0.1) * (1 + scale_m) + shift_m)
    modulation = block.modulate(condition)
    assert modulation.shape == (2, 1, 6, WIDTH)
    torch.testing.assert_close(block(x, modulation, mask), expected)


def test_gates_of_zero_leave_the_input_as_it_is():
    block, x = random_block(), noise(2, 6, WIDTH)
    assert torch.equal(block(x, told(2, gates=0.0)), x)


@pytest.mark.parametrize("attention_scale", ["learned", None])
@torch.no_grad()
def test_cached_groups_equal_one_pass(attention_scale):
    class GrowingCache:
        k = v = torch.zeros(2, 4, 0, 4)

        def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            self.k, self.v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
            return self.k, self.v

    block, x, sizes = random_block(attention_scale=attention_scale), noise(2, 6, WIDTH), (1, 2, 3)
    cache = GrowingCache()
    parts = [block(part, told(2), cache=cache) for part in x.split(sizes, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), block(x, told(2), group_causal(sizes)))


# -- drop path --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", [GATE_A, GATE_M], ids=["attention", "mlp"])
@torch.no_grad()
def test_in_training_a_row_goes_without_a_branch_or_has_more_of_it(branch):
    """The share of rows within 5 standard deviations of its mean."""
    rows, p = 4000, 0.3
    block, x = random_block(drop_path=p), noise(1, 2, WIDTH)
    modulation = told(1, gates=0.0)
    modulation[:, :, branch] = 1.0
    whole = block(x, modulation) - x
    torch.manual_seed(0)
    drawn = block.train()(x.expand(rows, -1, -1), modulation.expand(rows, -1, -1, -1)) - x
    kept = drawn.abs().amax((1, 2)) > 0
    torch.testing.assert_close(drawn[kept], (whole / (1 - p)).expand(int(kept.sum()), -1, -1), atol=1e-5, rtol=1e-4)
    assert abs(float(kept.float().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / rows)
    tolerance = 5 * math.sqrt(p / (1 - p) / rows) * float(whole.abs().max())
    torch.testing.assert_close(drawn.mean(0, keepdim=True), whole, atol=tolerance, rtol=0)


@torch.no_grad()
def test_the_two_branches_are_dropped_independently():
    rows, p = 4000, 0.5
    block, x = random_block(drop_path=p).train(), noise(1, 2, WIDTH)
    torch.manual_seed(0)
    drawn = block(x.expand(rows, -1, -1), told(1).expand(rows, -1, -1, -1)) - x
    neither = (drawn == 0).all(-1).all(-1).float().mean()
    assert abs(float(neither) - p**2) < 5 * math.sqrt(p**2 * (1 - p**2) / rows)


@torch.no_grad()
def test_drop_path_is_for_training_only():
    block, plain, x = random_block(drop_path=0.5), random_block(), noise(8, 6, WIDTH)
    expected = plain(x, told(8))
    assert torch.equal(block(x, told(8)), expected)
    assert torch.equal(plain.train()(x, told(8)), expected)
    torch.manual_seed(0)
    assert not torch.allclose(block.train()(x, told(8)), expected, atol=1e-3)


# -- the vision transformer's block -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_scale", [None, 0.3])
@torch.no_grad()
def test_the_vision_block_follows_its_formula(layer_scale):
    block, x = ViTBlock(WIDTH, 4, 24, norm_eps=0.1, layer_scale=layer_scale).eval(), noise(2, 6, WIDTH)
    for seed, parameter in enumerate(block.parameters()):
        parameter.copy_(noise(*parameter.shape, seed=seed) / math.sqrt(parameter.shape[-1]))
    scales = [1.0, 1.0] if layer_scale is None else [block.attention_scale, block.mlp_scale]
    h = normed(x, 0.1) * block.attention_norm.weight + block.attention_norm.bias
    middle = x + scales[0] * block.attention(h)
    h = normed(middle, 0.1) * block.mlp_norm.weight + block.mlp_norm.bias
    h = h @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    torch.testing.assert_close(block(x), middle + scales[1] * (h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias))


@torch.no_grad()
def test_a_vision_block_with_norms_after_its_branches_is_that_of_bert():
    block = ViTBlock(WIDTH, 4, 24, norm="after", norm_eps=0.1).eval()
    for seed, parameter in enumerate(block.parameters()):
        parameter.copy_(noise(*parameter.shape, seed=seed) / math.sqrt(parameter.shape[-1]))
    reference = torch.nn.TransformerEncoderLayer(
        WIDTH, 4, 24, activation="gelu", layer_norm_eps=0.1, batch_first=True, norm_first=False
    ).eval()
    ours = [*block.attention.parameters(), *block.mlp.parameters()]
    ours += [*block.attention_norm.parameters(), *block.mlp_norm.parameters()]  # the order of the reference
    for theirs, own in zip(reference.parameters(), ours, strict=True):
        theirs.copy_(own)
    x = noise(2, 6, WIDTH)
    torch.testing.assert_close(block(x), reference(x))


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
@torch.no_grad()
def test_a_vision_block_drops_in_training_alone(kind):
    plain, block = ViTBlock(WIDTH, 4, 24), ViTBlock(WIDTH, 4, 24, **{kind: 0.5})
    block.load_state_dict(plain.state_dict())
    x = noise(1, 6, WIDTH).expand(4000, -1, -1)
    torch.testing.assert_close(block.eval()(x), plain(x))
    torch.manual_seed(0)
    drawn = block.branch(block.train().attention(block.attention_norm(x)), None)
    expected = plain.attention(plain.attention_norm(x))
    spread = drawn.std(0)
    assert float(spread.mean()) > 0.1 * float(expected.std())
    assert ((drawn.mean(0) - expected[0]).abs() < 6 * spread / math.sqrt(len(x)) + 1e-6).all()


def test_scales_begin_as_told_and_only_where_told():
    block = ViTBlock(WIDTH, 4, 24, layer_scale=0.25)
    assert block.attention_scale.tolist() == block.mlp_scale.tolist() == [0.25] * WIDTH
    assert len(list(block.parameters())) == len(list(ViTBlock(WIDTH, 4, 24).parameters())) + 2


@torch.no_grad()
def test_a_vision_block_leaves_branches_out_in_training_alone():
    rows, p = 2000, 0.5
    block, x = ViTBlock(WIDTH, 4, 24, drop_path=p), noise(1, 2, WIDTH).expand(2000, -1, -1)
    torch.manual_seed(0)
    untouched = (block.train()(x) == x).all(-1).all(-1).float().mean()
    assert abs(float(untouched) - p**2) < 5 * math.sqrt(p**2 * (1 - p**2) / rows)
    assert not (block.eval()(x) == x).all(-1).any()
