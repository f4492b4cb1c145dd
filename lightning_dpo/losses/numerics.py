"""Exponentials that stay finite and logarithms that stay exact over the whole range of their type."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

ALMOST_CERTAIN = -1e-6
"""Largest log-probability, in nats, that log1mexp distinguishes from certainty."""


def bounded_exp(x: Tensor) -> Tensor:
    """e^x, continued by its tangent from 8 nats below the end of the type's range (80.7 in float32, 701 in float64).

    Value and slope stay finite, the slope keeps its sign, and no inf can meet a zero.

    >>> bounded_exp(torch.tensor([0.0, 500.0])).isfinite().all().item()
    True
    """
    within = x.clamp(max=math.log(torch.finfo(x.dtype).max) - 8)
    return within.exp() * (1 + (x - within))


def sigmoid(x: Tensor) -> Tensor:
    """σ(x) with an exact slope on both sides: that of torch.sigmoid, y(1 - y), is 0 where y rounds to 1."""
    return logsigmoid(x).exp()


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0. It tends to -inf at 0, so it is constant above -1e-6.

    >>> round(log1mexp(torch.tensor(-1e-4)).item(), 4)  # the plain form has three correct digits in float32
    -9.2104
    """
    x = x.clamp(max=ALMOST_CERTAIN)
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))
