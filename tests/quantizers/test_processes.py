"""Two processes that each see half a batch end with one codebook: that of a single process with the whole batch.

The processes run this file as a script, since a module of tests cannot be imported by another process.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.usage import code_counts
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig, StagesConfig

STEPS = 4
CONFIGS = {
    "cosine": VectorConfig(codebook_size=8, codebook_dim=3, learning="ema", ema_decay=0.6, reseed_below=0.0),
    "euclidean": VectorConfig(
        codebook_size=8, codebook_dim=3, l2_norm=False, learning="ema", ema_decay=0.6, reseed_below=0.0
    ),
    "reseeded": VectorConfig(codebook_size=16, codebook_dim=3, learning="ema", ema_decay=0.3, reseed_below=0.5),
}
CONFIGS |= {
    "scales": ResidualConfig(stage=CONFIGS["euclidean"], view=ScalesConfig(scales=(1, 2, 3), blends=2)),
    "stages": ResidualConfig(stage=CONFIGS["euclidean"], view=StagesConfig(count=3), shared=False),
    "reseeded-scales": ResidualConfig(
        stage=replace(CONFIGS["reseeded"], l2_norm=False), view=ScalesConfig(scales=(1, 2, 3), blends=2)
    ),
}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train(config: VectorConfig | ResidualConfig, share: slice) -> dict[str, Tensor]:
    """Some steps of upkeep on a share of each batch of four pictures of 3 x 3 latents; all that it leaves behind."""
    quantizer = config.build()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.copy_(noise(99, *parameter.shape))
    upkeep, reseeded = quantizer.upkeep(), torch.tensor(0)
    for step in range(STEPS):
        latents = noise(step, 4, 3, 3, 3)[share] + 1
        indices = quantizer(latents).indices
        logged = upkeep.update(quantizer, latents, indices, torch.Generator().manual_seed(step))
        reseeded += logged["reseeded"]
    use = code_counts(indices, config.codebook_size)
    return {**quantizer.state_dict(), **upkeep.state_dict(), **logged, "use": use, "reseeded": reseeded}


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    share = slice(2 * rank, 2 * rank + 2)
    torch.save({name: train(config, share) for name, config in CONFIGS.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of the two processes ends with, by configuration."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("processes")
    started = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_both_processes_end_with_the_same_codebook(both, name):
    first, second = (outcome[name] for outcome in both)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", ["cosine", "euclidean", "scales", "stages"])
def test_two_processes_equal_one_on_the_whole_batch(both, name):
    whole, half = train(CONFIGS[name], slice(None)), train(CONFIGS[name], slice(0, 2))
    for key, value in whole.items():
        torch.testing.assert_close(both[0][name][key], value, msg=lambda text, key=key: f"{key}: {text}")
    assert not torch.equal(whole["use"], half["use"])  # half of each batch would not do


def test_the_processes_did_re_seed(both):
    for name in ("reseeded", "reseeded-scales"):
        assert int(both[0][name]["reseeded"]) > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(int(sys.argv[1]), Path(sys.argv[2]))
