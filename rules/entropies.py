"""x log(y) and x log(1 + y): 0 at x = 0, with the logarithm as their slope there, as torch has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from sympy import Expr, Piecewise

from hbpcompiler.rule import Case, Rule, Tensor
from hbpcompiler.rule.decomposition import Decomposition

from .shared.binary import operands
from .shared.smooth_pairs import Curvatures, InSteps, a, b, two_operands


def cases() -> list[Case]:
    """Positive second operands, and zeros among the first."""

    def zeros_among(shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), dtype=torch.float64).relu()

    def positive(shape: Sequence[int]) -> Tensor:
        return 0.3 + torch.rand(tuple(shape), dtype=torch.float64)

    return [replace(case, make={"self": zeros_among, "other": positive}) for case in operands()]


def times_logarithm(operation: str, function: Callable[[Any, Any], Any], beyond: int, inner: Expr) -> Rule:
    """a times the logarithm of `inner`, which is b and so many; there is no slope where a is 0 and no logarithm is."""
    nothing = sympy.And(sympy.Eq(a, 0), b <= -beyond)
    return two_operands(
        operation,
        lambda op: function(op.self, op.other),
        (Piecewise((0, nothing), (sympy.log(inner), True)), a / inner),
        Curvatures(sympy.Integer(0), 1 / inner, InSteps((-a / inner, 1 / inner))),
        cases(),
    )


XLOGY = times_logarithm("aten.xlogy.Tensor", torch.xlogy, 0, b)
XLOG1PY = times_logarithm("aten.special_xlog1py.default", torch.special.xlog1py, 1, b + 1)


def of_a_number(number: float, x: Tensor) -> Tensor:
    return torch.xlogy(torch.full_like(x, number), x)


def by_a_number(x: Tensor, number: float) -> Tensor:
    if number > 0:
        return x * math.log(number)
    return torch.xlogy(x, torch.full_like(x, number))


def one_more_than_a_number(x: Tensor, number: float) -> Tensor:
    if number > -1:
        return x * math.log1p(number)
    return torch.special.xlog1py(x, torch.full_like(x, number))


def one_more_by_a_number(number: float, x: Tensor) -> Tensor:
    return torch.special.xlog1py(torch.full_like(x, number), x)


OF_A_NUMBER = Decomposition(["aten.xlogy.Scalar_Self"], of_a_number)
BY_A_NUMBER = Decomposition(["aten.xlogy.Scalar_Other"], by_a_number)
BY_ONE_MORE = Decomposition(["aten.special_xlog1py.other_scalar"], one_more_than_a_number)
ONE_MORE_OF_A_NUMBER = Decomposition(["aten.special_xlog1py.self_scalar"], one_more_by_a_number)
