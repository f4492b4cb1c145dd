"""Exponentials that stay finite, and logarithms that stay exact, over the whole range of their type."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

ALMOST_CERTAIN = -1e-6
"""Largest log-probability that log1mexp tells from certainty, nats."""


def bounded_exp(x: Tensor) -> Tensor:
    """e^x, continued by its tangent from 8 nats below the end of the type's range (80.7 in float32, 701 in float64).

    Value and slope stay finite, the slope keeps its sign, and no inf can meet a zero.

    >>> bounded_exp(torch.tensor([0.0, 500.0])).isfinite().all().item()
    True
    """
    within = x.clamp(max=math.log(torch.finfo(x.dtype).max) - 8)
    return within.exp() * (1 + (x - within))


def sigmoid(x: Tensor) -> Tensor:
    """σ(x), with a slope that is exact on both sides: torch.sigmoid's own, y(1 - y), is 0 where y rounds to 1."""
    return logsigmoid(x).exp()


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0. Above -1e-6, where the value runs to -inf, it is constant.

    >>> round(log1mexp(torch.tensor(-1e-4)).item(), 4)  # the plain form keeps three of these digits in float32
    -9.2104
    """
    x = x.clamp(max=ALMOST_CERTAIN)
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))
