"""The Inception network of FID: TensorFlow's graph of December 2015, with the weights that pytorch-fid converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models.inception import (
    BasicConv2d,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from imgtok.metrics.features import Features
from imgtok.metrics.frozen import load_strictly

CLASSES = 1008
SPATIAL_CHANNELS = 7


def load_inception(path: Path) -> InceptionFeatures:
    """From pytorch-fid's file. ValueError if it holds something else."""
    with torch.device("meta"):  # no random initial weights: they would be thrown away
        network = Inception3(CLASSES, aux_logits=False, init_weights=False, inception_blocks=blocks())
        network.Mixed_7c = PooledE(2048, pool=max_inside)
    load_strictly(network, torch.load(path, map_location="cpu", weights_only=True), path)
    return InceptionFeatures(network)


class InceptionFeatures(nn.Module):
    """Pictures b 3 299 299 in [-1, 1] to what the ADM evaluator reads: pool_3, logits, and mixed_6/conv for sFID."""

    def __init__(self, network: Inception3) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Features:
        net = self.network
        x = images * (127.5 / 128) - 0.5 / 128  # the graph's (level - 128) / 128
        for layer in (net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, net.maxpool1):
            x = layer(x)
        for layer in (net.Conv2d_3b_1x1, net.Conv2d_4a_3x3, net.maxpool2):
            x = layer(x)
        for layer in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c):
            x = layer(x)
        spatial = net.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS]
        for layer in (net.Mixed_6d, net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c):
            x = layer(x)
        pooled = x.mean((2, 3))
        logits = F.linear(pooled, net.fc.weight)  # without the bias, as the graph's softmax is read
        return Features(pooled, logits, rearrange(spatial, "b c h w -> b (h w c)"))


def mean_inside(x: Tensor) -> Tensor:
    """3 x 3 means of what lies inside the map: TensorFlow does not count the padding, torchvision does."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_inside(x: Tensor) -> Tensor:
    """3 x 3 maxima: the last block of this graph has them in place of means."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class Pooled:
    """A block of torchvision's whose last branch pools in another way."""

    pool: Callable[[Tensor], Tensor] = staticmethod(mean_inside)
    branch_pool: Callable[[Tensor], Tensor]

    def _forward(self, x: Tensor) -> list[Tensor]:
        *branches, _ = super()._forward(x)  # type: ignore[misc]  # of the block beside this in the bases
        return [*branches, self.branch_pool(self.pool(x))]


class PooledA(Pooled, InceptionA):
    pass


class PooledC(Pooled, InceptionC):
    pass


class PooledE(Pooled, InceptionE):
    def __init__(self, in_channels: int, pool: Callable[[Tensor], Tensor] = mean_inside) -> None:
        super().__init__(in_channels)
        self.pool = pool


def blocks() -> list[Callable[..., nn.Module]]:
    return [BasicConv2d, PooledA, InceptionB, PooledC, InceptionD, PooledE, InceptionAux]
