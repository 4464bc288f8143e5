"""Auto-tuning: it chooses by what it measured and saw, and changes no image."""

import logging

import pytest
import torch

from imgtok.sample import tuner as module
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate_tokens
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.plain import Plain
from imgtok.sample.tuner import WINDOWS, Tuner


class Batch:
    """What a `Drawn` tells a tuner."""

    def __init__(self, accepted: list[int]) -> None:
        self.accepted = torch.tensor(accepted)


@pytest.fixture
def tuner(pair, tmp_path, monkeypatch):
    """Free windows: all calls take a second."""
    monkeypatch.setattr(module, "call_seconds", lambda *asked: 1.0)
    return Tuner(pair[0], Guidance(), 2, tmp_path)


def test_it_learns_how_long_a_window_pays(tuner):
    assert tuner.strategy() == Jacobi(window=max(WINDOWS))
    tuner.learn(Batch([0, 50, 30, 20]))  # at most two drafts were right: the smallest window is as good as all
    assert tuner.tokens_per_call(32) == tuner.tokens_per_call(4) == pytest.approx(1.7)
    tuner.times = {window: 1 + 0.1 * window for window in WINDOWS}
    assert tuner.strategy() == Jacobi(window=4)
    tuner.times = {window: 1 + window for window in WINDOWS}
    assert tuner.strategy() == Plain()


def test_times_are_measured_once_and_kept(pair, tmp_path, monkeypatch):
    measured: list[int] = []

    def seconds(generator, guidance, rows, window, compile):
        measured.append(window)
        return 0.5 + window

    monkeypatch.setattr(module, "call_seconds", seconds)
    first = Tuner(pair[0], Guidance(), 2, tmp_path)
    assert measured == list(WINDOWS)
    assert Tuner(pair[0], Guidance(), 2, tmp_path).times == first.times == {w: 0.5 + w for w in WINDOWS}
    assert measured == list(WINDOWS)
    Tuner(pair[0], Guidance(scale=2.0), 2, tmp_path)  # twice the rows
    Tuner(pair[0], Guidance(), 3, tmp_path)
    assert len(measured) == 3 * len(WINDOWS)
    for path in tmp_path.iterdir():
        path.write_text("[broken", encoding="utf-8")
    Tuner(pair[0], Guidance(), 2, tmp_path)
    assert len(measured) == 4 * len(WINDOWS)


def test_a_real_measurement_is_positive(pair, tmp_path):
    times = Tuner(pair[0], Guidance(scale=2.0), 2, tmp_path).times
    assert list(times) == list(WINDOWS)
    assert min(times.values()) > 0


def test_it_changes_no_image_and_tells_what_it_chose(pair, tuner, caplog):
    caplog.set_level(logging.INFO)
    drawn = torch.cat(list(generate_tokens(*pair, SamplerConfig(batch_size=2, strategy=tuner))))
    assert torch.equal(drawn, torch.cat(list(generate_tokens(*pair, SamplerConfig(batch_size=2)))))
    assert "strategy auto: window 32" in caplog.text
    assert sum(tuner.committed) > 0
