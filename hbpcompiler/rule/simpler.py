"""Simpler forms of expressions: factored where that is shorter, and without numbers that overflow on the way."""

from __future__ import annotations

from typing import Any

import sympy
from sympy import Expr, Piecewise

from hbpcompiler.rule.symbolic import log1p, sigmoid, softplus

LONGEST = 100
"""Of longer expressions than this, in sympy operations, sympy may seek factors for minutes, and finds few."""
HIGHEST = 12
"""To factor, sympy takes exp(0.49 x) for the 49th power of exp(x / 100): of higher powers than this it is not asked."""


def tidy(expression: Expr) -> Expr:
    """The shorter one of an expression and its factors."""
    if isinstance(expression, Piecewise):
        return Piecewise(*[(tidy(value), condition) for value, condition in expression.args])
    return min((expression, factored(expression)), key=sympy.count_ops)


def factored(expression: Expr) -> Expr:
    """As it is where seeking factors would take long."""
    long = sympy.count_ops(expression) > LONGEST or _degree(expression) > HIGHEST
    return expression if long else sympy.factor(expression)


def _degree(expression: Expr) -> int:
    """The largest number above or below a fraction in any exponent."""
    exponents = [power.exp for power in expression.atoms(sympy.Pow, sympy.exp)]
    numbers = set().union(*[exponent.atoms(sympy.Rational) for exponent in exponents])
    return max([max(abs(number.p), number.q) for number in numbers], default=0)


def without_overflow(expression: Expr) -> Expr:
    """Logarithms of 1 + exp(u), sigmoid(u), 1 - sigmoid(u) and cosh(u) in softplus, and what is divided by 1 + exp(u)
    in sigmoid: exp(u) in their derivatives is infinite where these are not, and of sigmoid's the sign is known."""
    return expression.replace(log1p, lambda inner: _logarithm(1 + inner, log1p(inner))).replace(
        sympy.log, lambda inner: _logarithm(inner, sympy.log(inner))).replace(
        sympy.Pow, lambda base, exponent: _divided(base, exponent))


def _divided(base: Expr, exponent: Expr) -> Expr:
    less = base - 1
    if exponent.is_number and exponent.is_negative and isinstance(less, sympy.exp):
        return sigmoid(-less.args[0]) ** -exponent
    return base**exponent


def _logarithm(inner: Expr, otherwise: Expr) -> Expr:
    less = inner - 1
    if isinstance(less, sympy.exp):
        return softplus(less.args[0])
    if isinstance(inner, sigmoid):
        return -softplus(-inner.args[0])
    if isinstance(-less, sigmoid):
        return -softplus((-less).args[0])
    if isinstance(inner, sympy.cosh):
        whole: Any = inner.args[0]
        return whole + softplus(-2 * whole) - sympy.log(2)
    return otherwise
