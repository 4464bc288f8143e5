"""What an edit keeps: which places of the token maps are drawn anew, and what the others are to show."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imgtok.tokenizer import Tokenizer
from imgtok.tokens import GridLayout, ScaleLayout, SequenceLayout

COARSE_SHARE = 0.5


class Kept(NamedTuple):
    """Pictures of which parts stay, as the loops that draw need them."""

    tokens: Tensor
    """b n, the pictures' own; -1 where tokens are to be drawn."""
    latents: Tensor
    """b h w d, before quantisation: what the kept places of later stages code, whatever was drawn before them."""

    def rows(self, part: slice) -> Kept:
        return Kept(self.tokens[part], self.latents[part])


@torch.no_grad()
def keep(tokenizer: Tokenizer, layout: GridLayout | ScaleLayout, images: Tensor, mask: Tensor, batch_size: int) -> Kept:
    """Of images b 3 h w in [-1, 1], what lies outside of mask b h w (bool). What lies inside has no influence.

    ValueError if the tokens lie in a sequence, where none of them belongs to a part of the picture.
    """
    if isinstance(tokenizer.config.layout, SequenceLayout):
        raise ValueError(
            "this tokenizer's tokens lie in a sequence, so none of them belongs to a part of the picture; "
            "edit with a pair whose tokens lie on a grid"
        )
    filled = filled_in(images, ~mask[:, None])
    latents = torch.cat([tokenizer.latents(part).float() for part in filled.split(batch_size)])
    tokens = layout.flatten(tokenizer.quantizer.nearest(latents))
    return Kept(tokens.masked_fill(free_places(mask, layout), -1), latents)


def free_places(mask: Tensor, layout: GridLayout | ScaleLayout) -> Tensor:
    """Where tokens are drawn for pixels mask b h w (bool) to change: b n.

    On maps as fine as the latents: wherever a masked pixel lies in the cell, as all of them are to change. On coarser
    ones: where more than half of the cell is masked. Such a cell holds kept pixels too, which finer maps can correct
    only in part; and a masked part can be corrected in full, for its fine tokens are drawn.
    """
    shares = ((F.interpolate(mask[:, None].float(), size, mode="area")[:, 0], size) for size in layout.sizes)
    return torch.cat(
        [(share > (0 if size == layout.latent_shape else COARSE_SHARE)).flatten(1) for share, size in shares], dim=1
    )


def filled_in(images: Tensor, known: Tensor) -> Tensor:
    """images b c h w with what is not `known` (b 1 h w, bool) continued smoothly from what is; black if nothing is.

    Pull and push: unknown pixels come from a picture of half the size, the means of the known ones, likewise filled.
    """
    height, width = images.shape[-2:]
    if height == width == 1:
        return images.masked_fill(~known, 0.0)
    half = (height + 1) // 2, (width + 1) // 2
    share = F.interpolate(known.float(), half, mode="area")
    means = F.interpolate(images.masked_fill(~known, 0.0), half, mode="area") / share.clamp_min(1e-6)
    smooth = F.interpolate(filled_in(means, share > 0), (height, width), mode="bilinear")
    return torch.where(known, images, smooth)
