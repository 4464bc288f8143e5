"""From noise to a code along a flow: what Distilled Decoding teaches its student (arXiv:2412.17153).

The points x_t = (1 - t) noise + t code, of Gaussian noise and of codes drawn from a law, move with a velocity that the
law and the codes give in closed form. Following it from t = 0 to 1 takes each noise to one code, and normal noise to
codes of exactly that law: a draw whose only randomness is a vector. No strategy here draws that way; a student that is
trained to jump from the noise to the codes needs these pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

REST = 1e-5  # of the noise that is left where the flow ends: there, dividing by 1 - t still works


def mean_code(x: Tensor, t: float, probs: Tensor, codes: Tensor) -> Tensor:
    """Of the codes that a point may be on its way to: x b d at t in [0, 1), probs b v, codes v d -> b d.

    Code j has the weight p_j exp(-|x - t code_j|^2 / (2 (1 - t)^2)).
    """
    # not as |a|^2 - 2 a b + |b|^2, which loses all digits where 1 - t is small
    distance = torch.cdist(x, t * codes, compute_mode="donot_use_mm_for_euclid_dist")
    return (probs.log() - (distance / (1 - t)).square() / 2).softmax(-1) @ codes


def velocity(x: Tensor, t: float, probs: Tensor, codes: Tensor) -> Tensor:
    """dx / dt of points on their way from noise to codes: shapes as `mean_code`."""
    return (mean_code(x, t, probs, codes) - x) / (1 - t)


def flow_to_code(noise: Tensor, probs: Tensor, codes: Tensor, steps: int = 100) -> Tensor:
    """The code that each noise flows to: noise b d, standard normal, probs b v, codes v d -> indices b.

    By the classical Runge-Kutta method, in steps of equal factors of 1 - t: with s = -log(1 - t) the flow is
    dx / ds = mean_code - x, which has no pole. Only noise next to the border between two codes can go wrong.
    """
    x, h = noise, -math.log(REST) / steps

    def slope(x: Tensor, s: float) -> Tensor:
        return mean_code(x, -math.expm1(-s), probs, codes) - x

    for s in (i * h for i in range(steps)):
        first = slope(x, s)
        second = slope(x + h / 2 * first, s + h / 2)
        third = slope(x + h / 2 * second, s + h / 2)
        x = x + h / 6 * (first + 2 * (second + third) + slope(x + h * third, s + h))
    return torch.cdist(x, codes, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
