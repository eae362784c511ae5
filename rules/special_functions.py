"""Special functions of one operand: inverse hyperbolic ones, the normal distribution, Bessel functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import factorial
from typing import Any

import sympy
import torch

from hbpcompiler.elementwise import Piecewise, dy, elementwise, normal_cdf, normal_pdf, x, y
from hbpcompiler.rule import Case, Rule, Tensor
from hbpcompiler.rule.symbolic import TORCH

# -- functions that sympy does not have, or evaluates otherwise ------------------------------------------------------


def alone(rule: Rule) -> Rule:
    """The rule without its expression: its neighbours are not joined to a function that sympy cannot derive."""
    return replace(rule, expression=None)


def function(name: str, compute: Callable[..., Any]) -> Any:
    """A sympy function that is this torch function in the end; its derivatives are written where it is used."""
    found = sympy.Function(name, real=True)
    TORCH[found] = compute
    return found


i0, i1 = function("i0", torch.i0), function("i1", torch.ops.aten.special_i1)
i0e, i1e = function("i0e", torch.ops.aten.special_i0e), function("i1e", torch.ops.aten.special_i1e)


def drawn(low: float, high: float) -> list[Case]:
    def make(shape: Sequence[int]) -> Tensor:
        return low + (high - low) * torch.rand(tuple(shape), dtype=torch.float64)

    return [Case({"self": (4, 3)}, make={"self": make})]


# -- elementary ------------------------------------------------------------------------------------------------------

ASINH = elementwise("aten.asinh", sympy.asinh(x), first=1 / sympy.sqrt(x**2 + 1), second=-x * dy**3,
                    forward=lambda op: op.self.asinh())
ACOSH = elementwise("aten.acosh", sympy.acosh(x), first=1 / sympy.sqrt(x**2 - 1), second=-x * dy**3,
                    forward=lambda op: op.self.acosh(), cases=drawn(1.2, 3))
ATANH = elementwise("aten.atanh", sympy.atanh(x), first=1 / (1 - x**2), second=2 * x * dy**2,
                    forward=lambda op: op.self.atanh(), cases=drawn(-0.9, 0.9))
EXP2 = alone(
    elementwise("aten.exp2", 2**x, first=sympy.log(2) * y, second=sympy.log(2) * dy, forward=lambda op: op.self.exp2())
)

# -- the normal distribution -----------------------------------------------------------------------------------------

_root_pi = sympy.sqrt(sympy.pi)
ERFINV = elementwise("aten.erfinv", sympy.erfinv(x), first=_root_pi / 2 * sympy.exp(y**2), second=2 * y * dy**2,
                     forward=lambda op: op.self.erfinv(), cases=drawn(-0.9, 0.9))
NDTR = elementwise("aten.special_ndtr", normal_cdf(x), first=normal_pdf(x), second=-x * dy,
                   forward=lambda op: torch.ops.aten.special_ndtr(op.self))

# -- modified Bessel functions: I0' = I1, I1' = I0 - I1 / x, which is 1/2 at 0 ----------------------------------------


def over_x(value: sympy.Expr, limit: sympy.Expr) -> sympy.Expr:
    return Piecewise((limit, sympy.Eq(x, 0)), (value / x, True))


_half = sympy.Rational(1, 2)
_TERMS = 7
"""Of a power series, whose rest is a rounding up to 1/2."""
_near_zero = sum(
    sympy.Rational((2 * k + 1) * 2 * k, 2 ** (2 * k + 1) * factorial(k) * factorial(k + 1)) * x ** (2 * k - 1)
    for k in range(1, _TERMS + 1)
)
"""I1'' as its series: further out, 1/2 and its half do not cancel any more."""
I0 = alone(
    elementwise("aten.i0", i0(x), first=i1(x), second=y - over_x(i1(x), _half), forward=lambda op: torch.i0(op.self))
)
I1 = alone(
    elementwise(
        "aten.special_i1",
        i1(x),
        first=i0(x) - over_x(y, _half),
        second=Piecewise((sympy.horner(_near_zero), sympy.Abs(x) < _half), (y - (dy - y / x) / x, True)),
        forward=lambda op: torch.ops.aten.special_i1(op.self),
    )
)
# exp(-|x|) I0(x): what is lost beside I0's own derivatives is that of the exponential.
I0E = alone(
    elementwise(
        "aten.special_i0e",
        i0e(x),
        first=i1e(x) - sympy.sign(x) * y,
        second=(1 + sympy.sign(x) ** 2) * y - over_x(i1e(x), _half) - 2 * sympy.sign(x) * i1e(x),  # torch's, at 0 too
        forward=lambda op: torch.ops.aten.special_i0e(op.self),
    )
)

# -- sin(pi x) / (pi x): as a quotient, whose factors pass zero, its curvature would lose its digits ------------------

_SINC_TERMS = 12
_sinc = sum((-1) ** k * sympy.pi ** (2 * k) * x ** (2 * k) / sympy.factorial(2 * k + 1) for k in range(_SINC_TERMS))
"""As its series: further out than 1/2, cos(pi x) and sinc(x) do not cancel any more."""


def nearby(series: sympy.Expr, otherwise: sympy.Expr) -> sympy.Expr:
    return Piecewise((sympy.horner(series), sympy.Abs(x) < _half), (otherwise, True))


SINC = alone(elementwise(
    "aten.sinc",
    sympy.sinc(sympy.pi * x),
    first=nearby(sympy.diff(_sinc, x), (sympy.cos(sympy.pi * x) - y) / x),
    second=nearby(sympy.diff(_sinc, x, 2), -(sympy.pi**2) * y - 2 * dy / x),
    forward=lambda op: torch.sinc(op.self),
))
