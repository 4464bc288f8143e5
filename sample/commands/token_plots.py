"""The statistics of tokens as plots."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from imgtok.atomic import replacing
from imgtok.metrics.language import Growth

PLOT = "tokens.png"


def save_plot(path: Path, ngrams: list[Tensor], growth: Growth, codebook_size: int) -> None:
    """Rank and frequency of n-grams, growth of the vocabulary, and new types a picture, side by side in one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    frequency, vocabulary, innovation = figure.subplots(1, 3)
    for n, counts in enumerate(ngrams, 1):
        places = torch.logspace(0, torch.tensor(float(len(counts))).log10().item(), 300).round().long().unique() - 1
        frequency.loglog(places + 1, counts[places] / counts.sum(), label=f"{n}-grams")
    frequency.set(title="Zipf: frequency against rank", xlabel="rank", ylabel="share of all")
    frequency.legend()
    vocabulary.loglog(growth.tokens, growth.types)
    vocabulary.axhline(codebook_size, linestyle=":", color="grey")
    vocabulary.set(title="Heaps: different tokens seen", xlabel="tokens read", ylabel="types (dotted: codebook)")
    innovation.plot(torch.arange(1, len(growth.types) + 1), growth.types.diff(prepend=growth.types.new_zeros(1)))
    innovation.set_yscale("symlog")
    innovation.set(title="Innovation: new types a picture", xlabel="picture", ylabel="new types")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
