"""Which window pays here: measured times, and what images have taken so far."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from imgtok.atomic import write_text
from imgtok.config import to_dict
from imgtok.generators.generator import Generator
from imgtok.sample.compiled import compiling
from imgtok.sample.engine import Drawn
from imgtok.sample.guidance import Guidance, last_guided
from imgtok.sample.jacobi import Jacobi
from imgtok.sample.measure import cpu_model, synchronize
from imgtok.sample.plain import Plain
from imgtok.sample.strategy import Strategy

logger = logging.getLogger(__name__)

WINDOWS = (0, 4, 8, 16, 32)
FIRST_GUESS = (0.6, 0.5, 0.3, 0.2, 0.1)  # chance that the first, second, … draft is right if those before are
TRIALS = 5


class Tuner:
    """Chooses plain sampling or a Jacobi window before each batch: most tokens per second by what is known.

    All its choices are pathwise: they change the time, never the images.
    """

    def __init__(
        self, generator: Generator, guidance: Guidance, rows: int, cache: Path | None = None, compile: bool = False
    ) -> None:
        """`cache`: the folder where measured times are kept; None: the user's cache folder."""
        self.times = call_times(generator, guidance, rows, cache or cache_folder(), compile)
        self.committed = [0] * (max(WINDOWS) + 2)
        self.window = -1

    def strategy(self) -> Strategy:
        """For the next batch."""
        best = max(self.times, key=lambda window: self.tokens_per_call(window) / self.times[window])
        if best != self.window:
            self.window = best
            told = ", ".join(
                f"{window}: {self.tokens_per_call(window):.2f} in {self.times[window] * 1e3:.1f} ms"
                for window in self.times
            )
            logger.info("strategy auto: window %d (tokens a call of each window: %s)", best, told)
        return Jacobi(window=best) if best else Plain()

    def learn(self, drawn: Drawn) -> None:
        """From a batch that was drawn with its strategy. Shorter windows are judged by what they would have kept."""
        if self.window:
            for count, calls in enumerate(drawn.accepted.tolist()):
                self.committed[min(count, len(self.committed) - 1)] += calls

    def tokens_per_call(self, window: int) -> float:
        calls = sum(self.committed)
        if calls:
            return sum(min(count, window + 1) * times for count, times in enumerate(self.committed)) / calls
        tokens = chance = 1.0
        for draft in range(window):
            chance *= FIRST_GUESS[min(draft, len(FIRST_GUESS) - 1)]
            tokens += chance
        return tokens


def call_times(
    generator: Generator, guidance: Guidance, rows: int, folder: Path, compile: bool = False
) -> dict[int, float]:
    """Seconds of a network call for each window, measured once for this model, batch, precision and device."""
    path = folder / f"call-times-{key_of(generator, guidance, rows, compile)}.json"
    if path.is_file():
        try:
            return {int(window): float(seconds) for window, seconds in json.loads(path.read_text()).items()}
        except (ValueError, AttributeError):
            logger.warning("%s is damaged; measuring again", path)
    times = {window: call_seconds(generator, guidance, rows, window, compile) for window in WINDOWS}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(times) + "\n")
    return times


@torch.no_grad()
def call_seconds(generator: Generator, guidance: Guidance, rows: int, window: int, compile: bool = False) -> float:
    """Of one call that scores `window` drafts behind the last token, half way through an image: the best of a few."""
    doubled = rows * (2 if last_guided(guidance.scales(generator.num_tokens)) else 1)
    cache = generator.new_cache(doubled, window + 2)
    tokens = torch.zeros(doubled, window + 1, dtype=torch.int64, device=generator.device)
    start = torch.full((doubled,), generator.num_tokens // 2, device=generator.device)
    score, seconds = type(generator).score, list[float]()
    with compiling(score, generator, "length") if compile else nullcontext(score) as call:
        for _ in range(TRIALS):
            synchronize(generator.device)
            begin = time.perf_counter()
            call(generator, tokens, start, cache, cache.length - 1)
            synchronize(generator.device)
            seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def key_of(generator: Generator, guidance: Guidance, rows: int, compile: bool) -> str:
    doubled = last_guided(guidance.scales(generator.num_tokens)) > 0
    device = torch.cuda.get_device_name(generator.device) if generator.device.type == "cuda" else cpu_model()
    facts: Sequence[Any] = (
        to_dict(generator.config),
        type(generator.head.logits).__name__,
        str(generator.dtype),
        device,
        torch.get_num_threads(),
        torch.__version__,
        rows,
        doubled,
        compile,
    )
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def cache_folder() -> Path:
    """The user's, by the rules of the system."""
    home = os.environ.get("IMGTOK_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "imgtok" if home else Path.home() / ".cache" / "imgtok"
