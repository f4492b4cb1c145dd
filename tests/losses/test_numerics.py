"""The exponentials and logarithms of the losses against 60 digits."""

import math

import mpmath
import pytest
import torch

from lightning_dpo.losses.numerics import ALMOST_CERTAIN, bounded_exp, log1mexp

TYPES = {torch.float64: 4e-16, torch.float32: 3e-7}
"""Relative tolerance: a few roundings."""


def with_slope(function, x: float, dtype: torch.dtype) -> tuple[float, float, float]:
    """The argument rounded to the type, the value and the slope."""
    at = torch.tensor(x, dtype=dtype, requires_grad=True)
    value = function(at)
    (slope,) = torch.autograd.grad(value, at)
    return at.item(), value.item(), slope.item()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("x", [-2e-6, -1e-5, -1e-3, -0.1, -0.5, -0.69, -0.7, -1.0, -3.0, -10.0, -15.0])
def test_both_forms_of_log1mexp_are_exact(x, dtype):
    at, value, slope = with_slope(log1mexp, x, dtype)
    with mpmath.workdps(60):
        expected = mpmath.log(1 - mpmath.exp(at))
        expected_slope = -mpmath.exp(at) / (1 - mpmath.exp(at))
    assert value == pytest.approx(float(expected), rel=TYPES[dtype])
    assert slope == pytest.approx(float(expected_slope), rel=3 * TYPES[dtype])


def test_log1mexp_is_constant_where_a_probability_is_almost_one():
    assert ALMOST_CERTAIN == -1e-6
    ends = [with_slope(log1mexp, x, torch.float64) for x in (-1e-6, -1e-7, -1e-300, 0.0)]
    assert len({value for _, value, _ in ends}) == 1 and ends[0][1] == pytest.approx(math.log(1e-6), rel=1e-6)
    assert [slope for _, _, slope in ends[1:]] == [0.0] * 3


@pytest.mark.parametrize("dtype", TYPES)
def test_bounded_exp_continues_along_its_tangent(dtype):
    turn = math.log(torch.finfo(dtype).max) - 8
    assert turn == pytest.approx(80.7 if dtype == torch.float32 else 701.8, abs=0.05)
    at, value, slope = with_slope(bounded_exp, turn - 1, dtype)
    assert value == slope == pytest.approx(math.exp(at), rel=20 * TYPES[dtype] * turn)
    peak = math.exp(turn)
    for beyond in (1, 5, 200, 900):
        at, value, slope = with_slope(bounded_exp, turn + beyond, dtype)
        assert slope == pytest.approx(peak, rel=1e-4), "the slope stays that at the turn"
        assert value == pytest.approx(peak * (1 + beyond), rel=1e-4)
