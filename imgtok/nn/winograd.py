"""3x3 convolutions by fewer products (Winograd's minimal filtering, arXiv:1509.09308), for drawing on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 4  # places of a tile that are computed together, from 6 x 6 places of the input
FEWEST_CHANNELS = 128  # with fewer, going there and back takes what the products save
FEWEST_PLACES = 1024  # smaller maps take little time, and their many channels much memory
STRIP = 128  # tiles at a time: they stay in the processor's caches

# F(4, 3) of the paper, section 4.3, from the points 0, 1, -1, 2, -2 and infinity.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
FILTER = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))  # 24 times
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


class WinogradConv(nn.Module):
    """What `conv` gives, b c h w -> b c' h w; large float32 maps in tiles of 4x4 places, with 36 products for 144.

    Rounding errors are about ten times as large, 1e-4 of the standard deviation. Where gradients are kept, and for
    maps that are small or cannot be cut into tiles, it is `conv` itself. Its weights must not change any more.
    With as many channels as before, what comes out lies where x lay: fresh memory costs a fifth of the time.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.filters: Tensor | None = None  # 36 c c', made when first needed: four times the memory of the weights

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        large = height * width >= FEWEST_PLACES and height % SIDE == 0 and width % SIDE == 0
        if not large or torch.is_grad_enabled() or x.dtype != torch.float32:
            return self.conv(x)
        if self.filters is None:
            self.filters = transformed(self.conv.weight)
        bias = self.conv.bias
        assert bias is not None
        maps = x.permute(0, 2, 3, 1).contiguous()
        out = maps if len(bias) == maps.shape[-1] else maps.new_empty(*maps.shape[:-1], len(bias))
        for each, onto in zip(maps, out, strict=True):
            convolve(each, self.filters, bias, onto)
        return out.permute(0, 3, 1, 2)


def suits(conv: nn.Conv2d) -> bool:
    """Whether `WinogradConv` is for convolutions like this."""
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    wide = min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
    return plain and wide and conv.groups == 1 and conv.padding_mode == "zeros" and conv.bias is not None


def transformed(weight: Tensor) -> Tensor:
    """c' c 3 3 -> 36 c c', a matrix for each product of a tile."""
    along = weight.new_tensor(FILTER, dtype=torch.float64) / 24
    filters = torch.einsum("ay, bx, oiyx -> abio", along, along, weight.double())
    return filters.flatten(0, 1).to(weight.dtype).contiguous()


def on_tiles(along: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    """What a matrix does to the rows and to the columns of a tile, as one matrix."""
    matrix = like.new_tensor(along)
    return torch.kron(matrix, matrix)


def convolve(x: Tensor, filters: Tensor, bias: Tensor, out: Tensor) -> None:
    """A map h w c -> h w c', strip by strip, into `out`, which may be x; sides are divisible by 4."""
    height, width, channels = x.shape
    across, outs = width // SIDE, len(bias)
    to_products, to_places = on_tiles(INPUT, x), on_tiles(OUTPUT, x)
    rows = SIDE * max(STRIP // across, 1)
    strip = x.new_zeros(rows + 2, width + 2, channels)  # with a border of zeros, or of neighbours
    steps = strip.stride()
    biases = bias.repeat(rows // SIDE * across)
    for start in range(0, height, rows):
        end = min(start + rows, height)
        strip[0] = strip[rows]  # the last row of the strip before, which may have been written over
        last = min(end + 1, height)
        strip[1 : last - start + 1, 1:-1] = x[start:last]
        if end == height:
            strip[end - start + 1] = 0
        shape = (SIDE + 2, SIDE + 2, (end - start) // SIDE, across, channels)
        tiles = strip.as_strided(shape, (*steps[:2], SIDE * steps[0], SIDE * steps[1], 1))
        factors = (to_products @ tiles.reshape(len(filters), -1)).view(len(filters), -1, channels)
        products = torch.bmm(factors, filters)
        places = torch.addmm(biases[: products[0].numel()], to_places, products.flatten(1))
        places = places.view(SIDE, SIDE, -1, across, outs).permute(2, 0, 3, 1, 4)
        out[start:end].view(places.shape).copy_(places)
