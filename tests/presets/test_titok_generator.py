"""The published generators written down with their own parameter names, and ours loaded through the converter."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imgtok.generators.presets import PRESETS
from imgtok.generators.presets.titok import converter, generator_config
from imgtok.hub import build_from_state

CODES, CLASSES, LENGTH, WIDTH, HEADS = 20, 5, 7, 16, 4
SIZES = {
    "hidden_size": WIDTH,
    "num_heads": HEADS,
    "intermediate_size": 48,
    "image_seq_len": LENGTH,
    "codebook_size": CODES,
    "num_classes": CLASSES,
}
TOKENS = torch.randint(CODES + 1, (3, LENGTH), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, 5])  # 5: dropped


def filled(model: nn.Module) -> nn.Module:
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice) / math.sqrt(parameter.shape[-1]))
    return model.eval()


def ids() -> Tensor:
    """The class in front, as a row of the one table."""
    return torch.cat([LABELS[:, None] + CODES + 1, TOKENS], dim=1)


@torch.no_grad()
def test_the_vit_is_a_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=CODES + CLASSES + 2,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=48,
        hidden_act="gelu",
        max_position_embeddings=LENGTH + 1,
        layer_norm_eps=1e-12,
    )
    bert, head = filled(transformers.BertModel(config, add_pooling_layer=False)), filled(nn.Linear(WIDTH, CODES))
    state = {f"model.{name}": tensor for name, tensor in bert.state_dict().items()}
    state |= {f"model.lm_head.{name}": tensor for name, tensor in head.state_dict().items()}
    state["model.embeddings.position_ids"] = torch.arange(LENGTH + 1)[None]  # in old files
    ours_config = generator_config({**SIZES, "kind": "ViT", "num_layers": 3, "norm_eps": 1e-12})
    ours = build_from_state(ours_config, converter(ours_config)(state), "BERT").eval()
    expected = head(bert(ids()).last_hidden_state)[:, 1:]
    torch.testing.assert_close(ours(TOKENS, LABELS), expected, atol=1e-5, rtol=1e-5)


class Layer(nn.Module):
    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-5), nn.LayerNorm(WIDTH, 1e-5)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH, bias=False), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 48), "fc2": nn.Linear(48, WIDTH)})
        if skip:
            self.skip_linear = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.attn["qkv"](self.norm1(x)).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class UViT(nn.Module):
    def __init__(self, half: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, LENGTH + 1, WIDTH))
        self.embeddings = nn.Embedding(CODES + CLASSES + 2, WIDTH)
        self.in_blocks = nn.ModuleList(Layer(False) for _ in range(half))
        self.mid_block = Layer(False)
        self.out_blocks = nn.ModuleList(Layer(True) for _ in range(half))
        self.norm, self.lm_head = nn.LayerNorm(WIDTH, 1e-5), nn.Linear(WIDTH, CODES)

    def forward(self, ids: Tensor) -> Tensor:
        x, skips = self.embeddings(ids) + self.pos_embed, []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.lm_head(self.norm(x))


@pytest.mark.parametrize("half", [1, 2, 11])
@torch.no_grad()
def test_the_u_vit_converts(half):
    theirs = filled(UViT(half))
    config = generator_config({**SIZES, "kind": "UViT", "num_layers": 2 * half, "norm_eps": 1e-5})
    ours = build_from_state(config, converter(config)(theirs.state_dict()), "U-ViT").eval()
    torch.testing.assert_close(ours(TOKENS, LABELS), theirs(ids())[:, 1:], atol=1e-4, rtol=1e-4)


def test_converting_leaves_the_given_state_alone():
    theirs = filled(UViT(2))
    config = generator_config({**SIZES, "kind": "UViT", "num_layers": 4, "norm_eps": 1e-5})
    state = dict(theirs.state_dict())
    before = list(state)
    converter(config)(state)
    assert list(state) == before


def test_a_row_of_the_wrong_kind_is_refused():
    config = PRESETS["titok-maskgit-l32-256"].config
    with pytest.raises(KeyError):  # which the hub turns into a sentence
        converter(config)(dict(filled(UViT(2)).state_dict()))
