"""A packed generator has the laws of the generator it is made of."""

import pytest
import torch

from imgtok.generators.pack import packed
from imgtok.nn.packed import PackedLinear, can_pack

from .test_generator import CONFIG, TOKENS, condition_of, random_generator


def test_outside_of_what_it_is_for_the_generator_itself_comes_back():
    for generator in (random_generator(CONFIG).double(), random_generator(CONFIG).to("meta")):
        assert packed(generator) is generator


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.bfloat16, 0.15)])
def test_a_packed_generator_has_the_same_laws(dtype, atol):
    generator = random_generator(CONFIG).to(dtype)
    if not can_pack(generator.inputs.embedding.weight):
        pytest.skip(f"this processor does not multiply matrices of {dtype}")
    copy = packed(generator)
    assert sum(isinstance(part, PackedLinear) for part in copy.modules()) == 2 * 5 + 1
    assert copy.inputs.embedding.weight is generator.inputs.embedding.weight
    assert (copy.dtype, copy.device, copy.num_tokens) == (dtype, torch.device("cpu"), 8)
    expected, laws = (model(TOKENS, condition_of(CONFIG)).float() for model in (generator, copy))
    torch.testing.assert_close(laws, expected, atol=atol, rtol=atol / 3)
    cache = copy.new_cache(3, 1)
    copy.prefill(condition_of(CONFIG), cache)
    steps = copy.score(torch.nn.functional.pad(TOKENS, (1, 0)), torch.full((3,), -1), cache, cache.length).float()
    torch.testing.assert_close(steps[:, :8], expected, atol=2 * atol, rtol=atol)
