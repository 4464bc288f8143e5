"""In which order the tokens of an image are predicted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from imgtok.tokens import GridLayout


@dataclass(frozen=True, kw_only=True)
class RasterOrder:
    """One token at a time, row by row from the top left: the order in which a grid is flattened."""

    def positions(self, layout: GridLayout) -> Tensor:
        """Row and column of the n-th predicted token: n 2."""
        return layout.positions()
