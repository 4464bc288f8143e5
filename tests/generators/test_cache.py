"""The key-value cache: fixed memory, written at given places."""

import torch

from imgtok.generators.cache import KVCache


def new_cache(dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(layers=2, rows=4, heads=2, length=5, head_dim=3, width=6, dtype=dtype, device="cpu")


def stacked(cache: KVCache) -> torch.Tensor:
    """A copy of all it holds: keys, then values, of each layer."""
    return torch.stack([*cache.keys, *cache.values])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_row_is_written_at_its_own_places():
    cache, positions = new_cache(), torch.tensor([[0, 1], [3, 2], [2, 4], [1, 0]])
    k, v = noise(4, 2, 2, 3), noise(4, 2, 2, 3, seed=1)
    keys, values = cache.layers(positions, length=5)[1].append(k, v)
    for row in range(4):
        for i in range(2):
            assert torch.equal(keys[row, :, positions[row, i]], k[row, :, i])
            assert torch.equal(values[row, :, positions[row, i]], v[row, :, i])
    assert int((keys != 0).any(-1).any(1).sum()) == 8  # two places of each row, no more
    assert not cache.keys[0].any() and not cache.values[0].any()  # the other layer


def test_what_is_read_is_the_memory_itself():
    cache = new_cache()
    layers = cache.layers(torch.zeros(4, 1, dtype=torch.int64), length=3)
    for layer, *memory in zip(layers, cache.keys, cache.values, strict=True):
        for tensor, own in zip(layer.append(noise(4, 2, 1, 3), noise(4, 2, 1, 3)), memory, strict=True):
            assert tensor.shape == (4, 2, 3, 3)
            assert tensor.data_ptr() == own.data_ptr()


def test_dropped_rows_are_left_alone_until_reset():
    cache = new_cache()
    cache.keep(2)
    cache.visible[0, 0] = False
    keys, _ = cache.layers(torch.ones(2, 1, dtype=torch.int64), length=5)[0].append(
        noise(2, 2, 1, 3), noise(2, 2, 1, 3)
    )
    assert keys.shape[0] == 2
    assert not stacked(cache)[:, 2:].any()
    cache.reset()
    assert cache.rows == 4
    assert cache.visible.all()


def test_another_precision_is_stored_in_the_caches_own():
    k = noise(4, 2, 1, 3).bfloat16()
    layer = new_cache().layers(torch.zeros(4, 1, dtype=torch.int64), length=1)[0]
    keys, _ = layer.append(k, k)
    assert keys.dtype == torch.float32
    assert torch.equal(keys, k.float())


def test_columns_are_moved_in_all_layers_at_once_even_where_they_overlap():
    cache = new_cache()
    for memory in (*cache.keys, *cache.values):
        memory.copy_(noise(*memory.shape))
    before = stacked(cache)
    cache.keep(2)
    cache.move(torch.tensor([[1, 2], [4, 0]]), torch.tensor([[0, 1], [0, 4]]))
    expected = before.clone()
    expected[:, 0, :, 0], expected[:, 0, :, 1] = before[:, 0, :, 1], before[:, 0, :, 2]
    expected[:, 1, :, 0], expected[:, 1, :, 4] = before[:, 1, :, 4], before[:, 1, :, 0]
    assert torch.equal(stacked(cache), expected)
