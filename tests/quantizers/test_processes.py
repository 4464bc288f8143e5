"""Two processes that each see half a batch end with one codebook: that of a single process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from imgtok.quantizers.usage import code_counts
from imgtok.quantizers.vector import VectorConfig

STEPS = 4


def batches(step: int) -> torch.Tensor:
    """The whole batch of a step: four pictures of nine latents."""
    return torch.randn(4, 9, 3, generator=torch.Generator().manual_seed(step)) + 1


def train(config: VectorConfig, share: slice) -> dict[str, torch.Tensor]:
    """Some steps of upkeep on a share of each batch; returns all that it leaves behind."""
    quantizer = config.build()
    with torch.no_grad():
        quantizer.embedding.weight.copy_(
            torch.randn(config.codebook_size, 3, generator=torch.Generator().manual_seed(99))
        )
    upkeep, logged = quantizer.upkeep(), {}
    for step in range(STEPS):
        latents = batches(step)[share]
        indices = quantizer(latents).indices
        logged = upkeep.update(quantizer, latents, indices, torch.Generator().manual_seed(step))
    counts = code_counts(quantizer(latents).indices, config.codebook_size)
    return {**quantizer.state_dict(), **upkeep.state_dict(), **logged, "use": counts}


def worker(rank: int, folder: str, config: VectorConfig) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        torch.save(train(config, slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_two_processes(folder: Path, config: VectorConfig) -> list[dict[str, torch.Tensor]]:
    mp.spawn(worker, args=(str(folder), config), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("l2_norm", [True, False])
def test_two_processes_equal_one_on_the_whole_batch(tmp_path, l2_norm):
    config = VectorConfig(
        codebook_size=8, codebook_dim=3, l2_norm=l2_norm, learning="ema", ema_decay=0.6, reseed_below=0.0
    )
    first, second = on_two_processes(tmp_path, config)
    whole = train(config, slice(None))
    assert first.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.equal(whole["use"], train(config, slice(0, 2))["use"])  # half a batch would not do


def test_two_processes_re_seed_the_same_codes_with_the_same_latents(tmp_path):
    config = VectorConfig(codebook_size=16, codebook_dim=3, learning="ema", ema_decay=0.3, reseed_below=0.5)
    first, second = on_two_processes(tmp_path, config)
    assert int(first["reseeded"]) > 0
    for name in first:
        assert torch.equal(first[name], second[name]), name
