"""Schedules, randomness, averaged weights, checkpoints."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from imgtok.train import checkpoint
from imgtok.train.config import LoopConfig, OptimizerConfig, TokenizerLossConfig
from imgtok.train.ema import Ema
from imgtok.train.randomness import derived_generator, derived_seed
from imgtok.train.schedules import ema_decay, learning_rate_share


def test_cosine_rises_and_falls_to_its_final_share():
    config = OptimizerConfig(schedule="cosine", warmup_steps=10, final_share=0.1)
    shares = [learning_rate_share(config, step, 110) for step in range(111)]
    assert shares[0] == pytest.approx(0.1) and shares[9] == 1.0
    assert shares[60] == pytest.approx(0.55)
    assert shares[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(shares[10:]))


def test_derived_seeds_differ_by_every_part():
    seeds = {derived_seed(*parts) for parts in [(0,), (1,), (0, 1), (0, 1, 2), (0, 12), (0, "a"), (0, "a", 1)]}
    assert len(seeds) == 7
    first, again = (torch.rand(3, generator=derived_generator(5, "x", 2)) for _ in range(2))
    assert torch.equal(first, again)


def test_averaged_weights_are_the_running_mean():
    model = nn.Linear(2, 2)
    average, expected = Ema(model), model.weight.detach().clone()
    for _ in range(3):
        nn.init.normal_(model.weight)
        average.update(model, 0.9)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    torch.testing.assert_close(average.model.weight, expected)
    assert ema_decay(0.999, 0) == pytest.approx(0.1) and ema_decay(0.999, 10**6) == 0.999


def test_checkpoints_are_whole_and_few(tmp_path):
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, step, {"step": step, "x": torch.arange(3)}, keep=2)
    assert [path.name for path in checkpoint.every(tmp_path)] == ["step-00000002.pt", "step-00000003.pt"]
    (tmp_path / ".step-00000009.pt.abc.partial").write_bytes(b"half")
    assert checkpoint.read(checkpoint.latest(tmp_path))["step"] == 3


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    checkpoint.write(tmp_path, 1, {"step": 1}, keep=1)
    with pytest.raises(Exception, match="pickle"):
        checkpoint.write(tmp_path, 2, {"step": lambda: 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = checkpoint.write(tmp_path, 1, {"step": 1, "x": torch.zeros(1000)}, keep=1)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"step-00000001\.pt cannot be read"):
        checkpoint.read(path)


def test_contradictory_settings_are_refused():
    with pytest.raises(ValueError, match="contradict"):
        TokenizerLossConfig(perceptual=1.0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        LoopConfig(steps=0, batch_size=1)
    with pytest.raises(ValueError, match="choose a multiple of 4"):
        from imgtok.train.data import Share

        Share(0, 2).of(LoopConfig(steps=1, batch_size=6, accumulate=2), 0)
