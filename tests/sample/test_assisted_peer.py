"""transformers' assisted generation, of models small enough for a second."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imgtok.generators.condition import Label, LabelConditionConfig
from imgtok.generators.generator import GeneratorConfig
from imgtok.sample.law import Law
from imgtok.sample.peers import AssistedPeer
from imgtok.tokens import GridLayout

pytest.importorskip("transformers", reason="there is nothing to compare with")

CPU = torch.device("cpu")
CONFIG = GeneratorConfig(
    layout=GridLayout(height=4, width=4),
    codebook_size=32,
    condition=LabelConditionConfig(labels=(Label(size=3),)),
    width=16,
    depth=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_hidden=24,
)
DRAFT = replace(CONFIG, width=8, depth=1, num_heads=2, num_kv_heads=None)


def peer_of(draft: GeneratorConfig, dtype: torch.dtype = torch.float32) -> AssistedPeer:
    """Its models are sure of what they say, each of something else."""
    peer = AssistedPeer(CONFIG, draft, dtype, CPU)
    generator = torch.Generator().manual_seed(0)
    for model in (peer.model, peer.draft):
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return peer


def most_likely(peer: AssistedPeer, num_tokens: int) -> Tensor:
    """Token after token, without a cache."""
    text = peer.prompt
    for _ in range(num_tokens):
        text = torch.cat([text, peer.model(text).logits[:, -1:].argmax(-1)], dim=1)
    return text[:, 1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 5, 16])
def test_as_many_tokens_as_asked_for_are_drawn(num_tokens, dtype):
    peer = peer_of(DRAFT, dtype)
    for _ in range(5):
        tokens = peer.draw(num_tokens, Law())
        assert (tokens.shape, tokens.dtype) == ((1, num_tokens), torch.int64)
        assert 0 <= tokens.min() and tokens.max() < 32
        assert 1 <= peer.calls <= num_tokens


def test_an_equal_draft_is_accepted():
    peer = peer_of(CONFIG)
    peer.draft.load_state_dict(peer.model.state_dict())
    peer.draw(16, Law())
    assert peer.calls == 3  # of five drafts and the one after them
    other = peer_of(DRAFT)
    other.draw(16, Law())
    assert other.calls > 5


def test_the_law_is_obeyed():
    peer = peer_of(DRAFT)
    assert torch.equal(peer.draw(16, Law(temperature=0)), most_likely(peer, 16))


def test_tokens_are_distributed_as_the_larger_model_says():
    peer, law = peer_of(DRAFT), Law(temperature=3)
    expected = law(peer.model(peer.prompt).logits[0, -1]).exp()
    first = torch.cat([peer.draw(2, law)[0, :1] for _ in range(400)])
    seen = torch.bincount(first, minlength=32) / 400
    assert (seen - expected).abs().sum() / 2 < 0.15


def test_images_differ_and_the_global_generator_stays_as_it_was():
    peer, before = peer_of(DRAFT), torch.get_rng_state()
    assert not torch.equal(peer.draw(16, Law(temperature=100)), peer.draw(16, Law(temperature=100)))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_codebook_is_refused():
    with pytest.raises(ValueError, match="codebook_size 64 does not match the model's 32"):
        AssistedPeer(CONFIG, replace(DRAFT, codebook_size=64), torch.float32, CPU)
