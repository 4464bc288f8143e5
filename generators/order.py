"""In which order the tokens of an image are predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imgtok.tokens import GridLayout, SequenceLayout


@dataclass(frozen=True, kw_only=True)
class RasterOrder:
    """One token at a time in the order in which they are stored: a grid row by row from the top left."""

    def positions(self, layout: GridLayout | SequenceLayout) -> Tensor:
        """Of the n-th predicted token: row and column, n 2, or its place in a sequence, n 1."""
        if isinstance(layout, GridLayout):
            return layout.positions()
        return torch.arange(layout.num_tokens)[:, None].float()
