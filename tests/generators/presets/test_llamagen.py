"""The published Transformer, written down plainly with its own names, and ours loaded through the converter."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok import generators
from imgtok.generators.condition import TextFeatures
from imgtok.generators.generator import Generator
from imgtok.generators.presets import PRESETS
from imgtok.generators.presets.llamagen import converter, generator_config
from imgtok.hub import build_from_state
from imgtok.sample.engine import sample_tokens
from imgtok.sample.guidance import Guidance
from imgtok.sample.law import Law
from imgtok.sample.noise import image_keys


class Norm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.heads, self.kv = config["n_head"], config["n_kv_head"] or config["n_head"]
        self.size = config["dim"] // self.heads
        self.wqkv = nn.Linear(config["dim"], (self.heads + 2 * self.kv) * self.size, bias=False)
        self.wo = nn.Linear(config["dim"], config["dim"], bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        sizes = [self.heads * self.size, self.kv * self.size, self.kv * self.size]
        q, k, v = (part.reshape(b, n, -1, self.size).transpose(1, 2) for part in self.wqkv(x).split(sizes, dim=-1))
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = (part.repeat_interleave(self.heads // self.kv, dim=1) for part in (k, v))
        scores = (q @ k.transpose(2, 3) / math.sqrt(self.size)).masked_fill(~mask[:, None], -torch.inf)
        return self.wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours (2i, 2i + 1) form a pair."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self, dim: int, multiple_of: int) -> None:
        super().__init__()
        hidden = int(2 * 4 * dim / 3)
        hidden += -hidden % multiple_of
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.feed_forward = FeedForward(config["dim"], config["multiple_of"])
        self.attention_norm = Norm(config["dim"], config["norm_eps"])
        self.ffn_norm = Norm(config["dim"], config["norm_eps"])

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), *rest)
        return x + self.feed_forward(self.ffn_norm(x))


class PublishedGPT(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        dim, self.config = config["dim"], config
        self.cls_embedding = nn.Module()
        if config["model_type"] == "c2i":
            self.cls_embedding.embedding_table = nn.Embedding(config["num_classes"] + 1, dim)
        else:
            self.cls_embedding.cap_proj = nn.ModuleDict(
                {
                    "fc1": nn.Linear(config["caption_dim"], dim, bias=False),
                    "fc2": nn.Linear(dim, dim, bias=False),
                }
            )
            self.cls_embedding.register_buffer("uncond_embedding", torch.zeros(120, config["caption_dim"]))
        self.tok_embeddings = nn.Embedding(config["vocab_size"], dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["n_layer"]))
        self.norm = Norm(dim, config["norm_eps"])
        self.output = nn.Linear(dim, config["vocab_size"], bias=False)

    def rotary(self) -> tuple[Tensor, Tensor]:
        side, half = math.isqrt(self.config["block_size"]), self.config["dim"] // self.config["n_head"] // 2
        rows = [[0.0] * half] * self.config["cls_token_num"]
        cos, sin = list(rows), list(rows)  # zero in both
        frequencies = [self.config["rope_base"] ** (-2 * j / half) for j in range(half // 2)]
        for row in range(side):
            for column in range(side):
                angles = [row * f for f in frequencies] + [column * f for f in frequencies]
                cos.append([math.cos(angle) for angle in angles])
                sin.append([math.sin(angle) for angle in angles])
        return torch.tensor(cos), torch.tensor(sin)

    def prefix(self, condition: list[Tensor]) -> Tensor:
        if self.config["model_type"] == "c2i":
            return self.cls_embedding.embedding_table(condition[0])[:, None]
        project = self.cls_embedding.cap_proj
        return project["fc2"](F.gelu(project["fc1"](condition[0]), approximate="tanh"))

    def forward(self, condition: list[Tensor], tokens: Tensor) -> Tensor:
        """Logits from the last condition slot on: one more than there are tokens."""
        x = torch.cat([self.prefix(condition), self.tok_embeddings(tokens)], dim=1)
        slots, n = self.config["cls_token_num"], x.shape[1]
        mask = torch.ones(len(x), n, n, dtype=torch.bool).tril()
        if len(condition) > 1:
            mask[:, :, :slots] &= condition[1].bool()[:, None]
            mask |= torch.eye(n, dtype=torch.bool)
        cos, sin = (table[:n] for table in self.rotary())
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.output(self.norm(x))[:, slots - 1 :]

    def null(self, condition: list[Tensor]) -> list[Tensor]:
        if self.config["model_type"] == "c2i":
            return [torch.full_like(condition[0], self.config["num_classes"])]
        return [self.cls_embedding.uncond_embedding.expand_as(condition[0]), condition[1]]

    def greedy(self, condition: list[Tensor], num_tokens: int, scale: float, steps: int) -> Tensor:
        tokens = torch.zeros(len(condition[0]), 0, dtype=torch.int64)
        for i in range(num_tokens):
            logits = self(condition, tokens)[:, -1]
            if scale > 1 and i < steps:
                without = self(self.null(condition), tokens)[:, -1]
                logits = without + scale * (logits - without)
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        return tokens


VARIANTS = {
    "c2i": {},
    "c2i-grouped-heads": {"n_kv_head": 2, "rope_base": 1000},
    "c2i-one-key-head": {"n_kv_head": 1, "norm_eps": 1e-2, "multiple_of": 8},
    "c2i-wide-heads": {"n_head": 1, "block_size": 25, "rope_base": 10},
    "t2i": {"model_type": "t2i", "cls_token_num": 120, "caption_dim": 12},
    "t2i-grouped-heads": {
        "model_type": "t2i",
        "cls_token_num": 120,
        "caption_dim": 7,
        "n_kv_head": 2,
        "rope_base": 1000,
    },
    "t2i-short-prefix": {"model_type": "t2i", "cls_token_num": 6, "caption_dim": 12},
}
GREEDY = [
    (variant, scale, steps)
    for variant in VARIANTS
    for scale, steps in [(1.0, None), (3.0, None), (3.0, 4)]
    if scale == 1 or variant != "t2i-short-prefix"  # the original cannot guide: its null features have 120 rows
]


def random_weights(model: PublishedGPT) -> None:
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            noise = torch.randn(value.shape, generator=dice)
            value.copy_(1 + 0.3 * noise if value.ndim == 1 else 1.5 * noise / math.sqrt(value.shape[-1]))


def pair(variant: str) -> tuple[PublishedGPT, Generator, list[Tensor]]:
    """The published model, ours, and conditions for three rows."""
    config = {
        "model_type": "c2i",
        "dim": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_kv_head": None,
        "multiple_of": 16,
        "rope_base": 10000,
        "norm_eps": 1e-5,
        "vocab_size": 40,
        "block_size": 9,
        "cls_token_num": 1,
        "num_classes": 5,
        "caption_dim": 2048,
    } | VARIANTS[variant]
    theirs = PublishedGPT(config).eval()
    random_weights(theirs)
    ours = generator_config(config)
    generator = build_from_state(ours, converter(ours)(theirs.state_dict()), variant).eval()
    if config["model_type"] == "c2i":
        return theirs, generator, [torch.tensor([0, 4, 5])]
    slots = config["cls_token_num"]
    visible = torch.arange(slots) >= torch.tensor([[0], [slots - 2], [slots // 2]])
    features = torch.randn(3, slots, config["caption_dim"], generator=torch.Generator().manual_seed(1))
    return theirs, generator, [features * visible[:, :, None], visible.long()]


def given(condition: list[Tensor]) -> Tensor | TextFeatures:
    return condition[0] if len(condition) == 1 else TextFeatures(*condition)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ours_is_the_published_model(variant):
    theirs, generator, condition = pair(variant)
    tokens = torch.randint(40, (3, generator.num_tokens), generator=torch.Generator().manual_seed(2))
    expected = theirs(condition, tokens[:, :-1])
    torch.testing.assert_close(generator(tokens, given(condition)), expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 0.3


@pytest.mark.parametrize(("variant", "scale", "steps"), GREEDY)
@torch.no_grad()
def test_greedy_tokens_are_the_published_ones(variant, scale, steps):
    theirs, generator, condition = pair(variant)
    n = generator.num_tokens
    ours = sample_tokens(
        generator,
        given(condition),
        image_keys(0, range(3)),
        law=Law(temperature=0),
        guidance=Guidance(scale=scale, steps=steps),
    ).tokens
    assert torch.equal(ours, theirs.greedy(condition, n, scale, n if steps is None else steps))
    assert ours.unique().numel() > 3


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
def test_a_published_file_loads_whatever_wraps_it(monkeypatch, tmp_path, wrapper):
    theirs, generator, _ = pair("c2i-grouped-heads")
    row = replace(PRESETS["llamagen-gpt-b-256"], config=generator.config, convert=converter(generator.config))
    monkeypatch.setitem(PRESETS, "tiny", row)
    state = theirs.state_dict() | {"freqs_cis": torch.zeros(10, 4, 2)}  # which older files carry
    torch.save(state if wrapper is None else {wrapper: state}, tmp_path / "gpt.pt")
    loaded = generators.load("tiny", weights=tmp_path / "gpt.pt")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in generator.state_dict().items())


def test_misfits_of_a_published_file_are_listed_together(monkeypatch, tmp_path):
    theirs, generator, _ = pair("c2i")
    row = replace(PRESETS["llamagen-gpt-b-256"], config=generator.config, convert=converter(generator.config))
    monkeypatch.setitem(PRESETS, "tiny", row)
    state = theirs.state_dict()
    del state["layers.0.feed_forward.w3.weight"]
    state["layers.1.attention.wqkv.weight"] = torch.zeros(3)
    state["layers.2.attention.wo.weight"] = torch.zeros(32, 32)
    torch.save(state, tmp_path / "gpt.pt")
    with pytest.raises(ValueError) as caught:
        generators.load("tiny", weights=tmp_path / "gpt.pt")
    missing, unexpected, misshapen = str(caught.value).split("; ")[-3:]
    assert missing == "missing: blocks.0.mlp.gate_up.weight"
    assert unexpected == "unexpected: blocks.0.feed_forward.w1.weight, blocks.2.attention.proj.weight"
    assert misshapen == "misshapen: blocks.1.attention.qkv.weight (3,) instead of (96, 32)"


def test_a_grid_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="block_size 12 is not the square"):
        generator_config({"block_size": 12})
