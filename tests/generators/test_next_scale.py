"""Stage by stage equals teacher forcing, nothing leaks from later stages, and published parameters fit."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from imgtok import config as configs
from imgtok.convert import State
from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.next_scale import NextScaleConfig, NextScaleGenerator
from imgtok.generators.presets.var import PRESETS, convert, generator_config
from imgtok.hub import build_empty, build_from_state, published_state
from imgtok.tokens import ScaleLayout

CONFIG = NextScaleConfig(
    layout=ScaleLayout(((1, 1), (2, 2), (3, 3))),
    codebook_size=13,
    codebook_dim=5,
    condition=LabelConditionConfig(labels=(Label(size=4), Label(name="style", size=2))),
    width=16,
    depth=2,
    num_heads=4,
)
LABELS = torch.tensor([[0, 1], [3, 0], [4, 2]])  # the last is null
KINDS = {
    "square": CONFIG,
    "wide": replace(CONFIG, layout=ScaleLayout(((1, 1), (1, 2), (2, 4)))),
    "two-first": replace(CONFIG, layout=ScaleLayout(((1, 2), (2, 2), (2, 3)))),
    "equal-stages": replace(CONFIG, layout=ScaleLayout(((2, 2), (2, 2), (2, 2)))),
    "one-stage": replace(CONFIG, layout=ScaleLayout(((2, 3),))),
    "shared": replace(CONFIG, shared_modulation=True),
    "given-scale": replace(CONFIG, attention_scale=0.25, mlp_ratio=1.5),
    "plain-scale": replace(CONFIG, attention_scale=None, shared_modulation=True),
}
kinds = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_generator(config: NextScaleConfig) -> NextScaleGenerator:
    """In evaluation mode, with weights strong enough for laws that differ."""
    generator = config.build().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(generator.parameters()):
            scale = 0.5 if parameter.ndim == 1 else 1.5 / math.sqrt(parameter.shape[-1])
            parameter.copy_(scale * noise(*parameter.shape, seed=seed))
    return generator


def seen_of(config: NextScaleConfig, rows: int = 3) -> Tensor:
    """What all stages but the first see."""
    return noise(rows, config.layout.num_tokens - config.layout.group_sizes[0], config.codebook_dim, seed=99)


def stage_by_stage(generator: NextScaleGenerator, seen: Tensor, labels: Tensor) -> Tensor:
    told, cache = generator.tell(labels), generator.new_cache(len(labels))
    parts = [None, *seen.split(generator.config.layout.group_sizes[1:], dim=1)][: generator.num_stages]
    return torch.cat([generator.score(told, stage, part, cache) for stage, part in enumerate(parts)], dim=1)


# -- the two ways to ask ----------------------------------------------------------------------------------------------


@kinds
@torch.no_grad()
def test_the_generator_follows_its_formula(config):
    """But for the blocks, which have a test of their own."""
    generator, seen, sizes = random_generator(config), seen_of(config), config.layout.group_sizes
    c = sum(table(column) for table, column in zip(generator.condition.embeddings, LABELS.T, strict=True))
    vector, inputs, head = c * torch.sigmoid(c), generator.inputs, generator.head
    first = c[:, None] + inputs.start
    x = torch.cat([first, seen @ inputs.latents.weight.T + inputs.latents.bias], dim=1) + inputs.positions
    stage_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    x = x + inputs.stages.weight[stage_of]
    for block in generator.blocks:
        modulation = block.modulate(vector if generator.shared is None else generator.shared(vector))
        x = block(x, modulation, stage_of[:, None] >= stage_of)
    scale, shift = (vector @ head.modulation.weight.T + head.modulation.bias).chunk(2, dim=-1)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    x = x * (1 + scale[:, None]) + shift[:, None]
    expected = x @ head.logits.weight.T + head.logits.bias
    torch.testing.assert_close(generator(seen, LABELS), expected, atol=2e-5, rtol=1e-4)


@kinds
@torch.no_grad()
def test_stages_with_a_cache_equal_one_pass(config):
    generator, seen = random_generator(config), seen_of(config)
    whole = generator(seen, LABELS)
    assert whole.shape == (3, config.layout.num_tokens, 13)
    torch.testing.assert_close(stage_by_stage(generator, seen, LABELS), whole, atol=2e-5, rtol=1e-4)
    assert whole.std() > 0.3


@kinds
@torch.no_grad()
def test_rows_doubled_for_guidance_are_those_of_either_condition(config):
    generator, seen = random_generator(config), seen_of(config)
    both = generator.condition.with_null(LABELS)
    doubled = stage_by_stage(generator, seen.repeat(2, 1, 1), both)
    given, null = generator(seen, LABELS), generator(seen, generator.condition.null(3))
    torch.testing.assert_close(doubled, torch.cat([given, null]), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_used_cache_gives_the_same_as_a_new_one():
    generator, seen = random_generator(CONFIG), seen_of(CONFIG)
    cache, told = generator.new_cache(3), generator.tell(LABELS)
    parts = [None, *seen.split((4, 9), dim=1)]
    first = [generator.score(told, stage, part, cache) for stage, part in enumerate(parts)]
    other = [None, *(-seen).split((4, 9), dim=1)]
    for stage, part in enumerate(other):
        generator.score(told, stage, part, cache)
    again = [generator.score(told, stage, part, cache) for stage, part in enumerate(parts)]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


@kinds
@torch.no_grad()
def test_a_row_does_not_see_the_others(config):
    generator, seen = random_generator(config), seen_of(config)
    whole = generator(seen, LABELS)
    for row in range(3):
        rows = slice(row, row + 1)
        torch.testing.assert_close(generator(seen[rows], LABELS[rows]), whole[rows], atol=2e-5, rtol=1e-4)


def test_a_cache_has_room_for_all_tokens_and_no_more():
    cache = CONFIG.build().new_cache(6)
    shapes = [memory.shape for memory in (*cache.keys, *cache.values)]
    assert shapes == [(6, 4, 14, 4)] * 4  # rows, heads, tokens, head width
    assert cache.length == 14


@torch.no_grad()
def test_half_precision_stays_close():
    generator, seen = random_generator(CONFIG), seen_of(CONFIG)
    whole = generator(seen, LABELS)
    generator.bfloat16()
    assert generator.new_cache(1).keys[0].dtype == torch.bfloat16
    for half in (generator(seen, LABELS), stage_by_stage(generator, seen, LABELS)):
        assert half.dtype == torch.bfloat16
        assert (half.float() - whole).abs().mean() < 0.05 * whole.std()


# -- who sees whom ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one-stage"])
@torch.no_grad()
def test_a_stage_sees_all_of_itself_and_of_those_before_and_nothing_later(kind):
    config = KINDS[kind]
    generator, seen = random_generator(config), seen_of(config)
    sizes, before = config.layout.group_sizes, generator(seen, LABELS)
    stage_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for place in range(seen.shape[1]):
        changed = seen.clone()
        changed[:, place] += 1.0
        after = generator(changed, LABELS)
        reached = stage_of >= stage_of[sizes[0] + place]
        assert torch.equal(after[:, ~reached], before[:, ~reached])
        assert (after != before).any(-1)[:, reached].all()


@kinds
@torch.no_grad()
def test_the_condition_reaches_every_law(config):
    generator, seen = random_generator(config), seen_of(config)
    for label in ([1, 1], [0, 0]):  # another class, another style
        difference = generator(seen[:1], LABELS[:1]) - generator(seen[:1], torch.tensor([label]))
        assert difference.abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_null_is_a_class_of_its_own():
    generator, seen = random_generator(CONFIG), seen_of(CONFIG)[:1].expand(5, -1, -1)
    labels = torch.tensor([[label, 0] for label in range(5)])
    before = generator(seen, labels)
    assert all(torch.cdist(row.flatten()[None], before.flatten(1))[0].sort().values[1] > 0.1 for row in before)
    generator.condition.embeddings[0].weight[4] += 1.0
    after = generator(seen, labels)
    assert torch.equal(after[:4], before[:4])
    assert (after[4] != before[4]).any(-1).all()


@torch.no_grad()
def test_places_and_stages_are_told_apart():
    generator, seen = random_generator(CONFIG), torch.zeros(1, 13, 5)
    whole = generator(seen, LABELS[:1])[0]
    assert (torch.cdist(whole, whole) + torch.eye(14)).min() > 1e-2
    nudged = random_generator(CONFIG)
    nudged.inputs.stages.weight[1] += 1.0
    assert torch.equal(nudged(seen, LABELS[:1])[0, :1], whole[:1])
    assert (nudged(seen, LABELS[:1])[0, 1:] != whole[1:]).any(-1).all()


@pytest.mark.parametrize("kind", ["square", "shared"])
@torch.no_grad()
def test_the_condition_is_read_once_for_all_stages(kind):
    generator, seen, calls = random_generator(KINDS[kind]), seen_of(KINDS[kind]), Counter[str]()
    names = {"head.modulation", "condition"}
    names |= {"shared"} if kind == "shared" else {"blocks.0.modulation", "blocks.1.modulation"}
    for name in names:
        generator.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    told, cache = generator.tell(LABELS), generator.new_cache(3)
    assert calls == dict.fromkeys(names, 1)
    for stage, part in enumerate([None, *seen.split((4, 9), dim=1)]):
        generator.score(told, stage, part, cache)
    assert calls == dict.fromkeys(names, 1)
    generator(seen, LABELS)
    assert calls == dict.fromkeys(names, 2)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one-stage"])
def test_training_reaches_every_parameter(kind):
    generator = random_generator(KINDS[kind]).train()
    generator(seen_of(KINDS[kind]), LABELS).square().sum().backward()
    unreached = [
        name
        for name, parameter in generator.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert unreached == []


@pytest.mark.parametrize("kind", ["square", "shared", "plain-scale"])
@torch.no_grad()
def test_a_new_generator_draws_nearly_uniformly(kind):
    torch.manual_seed(0)
    laws = KINDS[kind].build().eval()(seen_of(CONFIG), LABELS).log_softmax(-1)
    torch.testing.assert_close(laws, torch.full_like(laws, -math.log(13)), atol=0.1, rtol=0)
    assert laws.std() > 0


@torch.no_grad()
def test_branches_begin_nearly_shut():
    torch.manual_seed(0)
    generator = replace(CONFIG, width=64, gate_init=1e-3).build().eval()
    torch.manual_seed(0)
    ajar = replace(CONFIG, width=64, gate_init=0.5).build().eval()
    for shut, open_ in zip(generator.tell(LABELS).blocks, ajar.tell(LABELS).blocks, strict=True):
        torch.testing.assert_close(shut[:, :, :2], open_[:, :, :2] * 2e-3)
        assert torch.equal(shut[:, :, 2:], open_[:, :, 2:])
    x = noise(3, 14, 64)
    moved = generator.blocks[0](x, generator.tell(LABELS).blocks[0]) - x
    assert 0 < moved.abs().max() < 1e-3


@torch.no_grad()
def test_a_new_generator_has_vars_weights():
    """Standard deviations within 20 %: 4 of their errors for the fewest numbers (192). Truncation at 2 is far out."""
    torch.manual_seed(0)
    config = replace(CONFIG, width=64, depth=8, codebook_size=512)
    own, shared = config.build(), replace(config, shared_modulation=True).build()
    std = math.sqrt(1 / 3 / 64)
    spread = {
        own.inputs.positions: std,
        own.inputs.stages.weight: std,
        own.inputs.latents.weight: std,
        own.blocks[0].attention.qkv.weight: std,
        own.blocks[0].attention.proj.weight: std / 4,
        own.blocks[0].mlp.fc1.weight: std,
        own.blocks[0].mlp.fc2.weight: std / 4,
        own.blocks[7].modulation.weight[:128]: std * 1e-3,
        own.blocks[7].modulation.weight[128:]: std * 0.5,
        shared.shared.weight[:128]: std * 1e-3,
        shared.shared.weight[128:]: std * 0.5,
        shared.blocks[0].modulation: 1 / 8,
        own.head.modulation.weight: std * 0.5,
        own.head.logits.weight: std * 0.02,
    }
    for weight, expected in spread.items():
        assert float(weight.std()) == pytest.approx(expected, rel=0.2)
    for module in (*own.modules(), *shared.modules()):
        assert not isinstance(module, nn.Linear) or not module.bias.any()


def test_drop_path_rises_to_the_last_block_and_is_for_training_only():
    config = replace(CONFIG, depth=5, drop_path=0.4)
    generator, seen = random_generator(config), seen_of(config)
    assert [block.drop_path for block in generator.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    expected = generator(seen, LABELS)
    assert torch.equal(generator(seen, LABELS), expected)
    torch.manual_seed(0)
    assert not torch.allclose(generator.train()(seen, LABELS), expected, atol=1e-3)


def test_training_goes_on_after_sampling():
    generator, seen = random_generator(CONFIG), seen_of(CONFIG)
    with torch.inference_mode():
        expected = stage_by_stage(generator, seen, LABELS)
    logits = generator(seen, LABELS)
    logits.sum().backward()
    torch.testing.assert_close(logits.detach(), expected.clone(), atol=2e-5, rtol=1e-4)


# -- configurations and published parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*KINDS.values(), *(preset.config for preset in PRESETS.values())])
def test_configurations_survive_json(config, tmp_path):
    configs.save(config, tmp_path / "config.json")
    assert configs.load(NextScaleConfig, tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("var-d16-256", 310_283_520),
        ("var-d20-256", 600_917_136),
        ("var-d24-256", 1_033_399_360),
        ("var-d30-256", 2_010_020_356),
        ("var-d36-512", 2_353_893_904),
    ],
)
def test_presets_have_as_many_parameters_as_published(name, published):
    config = PRESETS[name].config
    count = sum(parameter.numel() for parameter in build_empty(config).parameters())
    assert count == published + config.depth * config.width  # a bias of zeros for the keys


TINY = {
    "depth": 2,
    "embed_dim": 16,
    "num_heads": 4,
    "patch_nums": (1, 2, 3),
    "vocab_size": 13,
    "z_channels": 5,
    "num_classes": 7,
}


def published_parameters(shared: bool) -> State:
    """Random, under VAR's names and in its shapes."""
    c, n = 16, 14
    shapes: dict[str, tuple[int, ...]] = {
        "pos_start": (1, 1, c),
        "pos_1LC": (1, n, c),
        "lvl_1L": (1, n),
        "attn_bias_for_masking": (1, 1, n, n),
        "word_embed.weight": (c, 5),
        "word_embed.bias": (c,),
        "class_emb.weight": (8, c),
        "lvl_embed.weight": (3, c),
        "head_nm.ada_lin.1.weight": (2 * c, c),
        "head_nm.ada_lin.1.bias": (2 * c,),
        "head.weight": (13, c),
        "head.bias": (13,),
    }
    if shared:
        shapes |= {"shared_ada_lin.1.weight": (6 * c, c), "shared_ada_lin.1.bias": (6 * c,)}
    for i in range(2):
        block = {
            "attn.scale_mul_1H11": (1, 4, 1, 1),
            "attn.q_bias": (c,),
            "attn.v_bias": (c,),
            "attn.zero_k_bias": (c,),
            "attn.mat_qkv.weight": (3 * c, c),
            "attn.proj.weight": (c, c),
            "attn.proj.bias": (c,),
            "ffn.fc1.weight": (4 * c, c),
            "ffn.fc1.bias": (4 * c,),
            "ffn.fc2.weight": (c, 4 * c),
            "ffn.fc2.bias": (c,),
        }
        block |= {"ada_gss": (1, 1, 6, c)} if shared else {"ada_lin.1.weight": (6 * c, c), "ada_lin.1.bias": (6 * c,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return {name: noise(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_published_parameters_load(shared):
    state = published_parameters(shared)
    generator = build_from_state(generator_config({**TINY, "shared_aln": shared}), convert(dict(state)), "tiny")
    ours = generator.state_dict()
    q, k, v = ours["blocks.1.attention.qkv.bias"].chunk(3)
    assert torch.equal(q, state["blocks.1.attn.q_bias"])
    assert torch.equal(v, state["blocks.1.attn.v_bias"])
    assert not k.any()
    assert torch.equal(ours["blocks.1.attention.log_scale"], state["blocks.1.attn.scale_mul_1H11"].flatten())
    assert torch.equal(ours["inputs.positions"], state["pos_1LC"][0])
    assert torch.equal(ours["inputs.start"], state["pos_start"][0])
    if shared:
        assert torch.equal(ours["blocks.1.modulation"], state["blocks.1.ada_gss"][0, 0])
    else:
        assert torch.equal(ours["blocks.1.modulation.weight"], state["blocks.1.ada_lin.1.weight"])


def test_misfits_of_published_parameters_are_listed_together():
    state = published_parameters(shared=False)
    for gone in ("blocks.0.attn.proj.weight", "head_nm.ada_lin.1.bias", "pos_1LC"):
        del state[gone]
    state["blocks.2.ffn.fc1.bias"] = torch.zeros(64)
    state["head.weight"] = torch.zeros(12, 16)
    with pytest.raises(ValueError) as caught:
        build_from_state(generator_config(TINY), convert(state), "tiny")
    missing, unexpected, misshapen = str(caught.value).split("; ")[-3:]
    assert missing == "missing: blocks.0.attention.proj.weight, head.modulation.bias, inputs.positions"
    assert unexpected == "unexpected: blocks.2.mlp.fc1.bias"
    assert misshapen == "misshapen: head.logits.weight (12, 16) instead of (13, 16)"


def test_a_file_with_half_a_bias_is_refused(tmp_path):
    state = published_parameters(shared=False)
    del state["blocks.1.attn.v_bias"]
    torch.save(state, tmp_path / "var.pth")
    with pytest.raises(
        ValueError, match=r"no published file of tiny: it lacks the parameter 'blocks\.1\.attn\.v_bias'"
    ):
        published_state("tiny", PRESETS["var-d16-256"], tmp_path / "var.pth")
