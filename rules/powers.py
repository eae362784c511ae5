"""Powers: of a tensor to a number, and of a number to a tensor."""

from collections.abc import Sequence
from dataclasses import replace

import sympy
import torch

from hbpcompiler.elementwise import attribute, elementwise, x
from hbpcompiler.rule import Case, Diagonal, Op, Rule, Structure, Tensor


def _positive(shape: Sequence[int]) -> Tensor:
    return 0.5 + torch.rand(tuple(shape), dtype=torch.float64)


def _number_cases() -> list[Case]:
    def case(exponent: float) -> Case:
        drawn = {"self": _positive} if exponent < 0 or exponent != int(exponent) else {}
        return Case({"self": (4, 3)}, {"exponent": exponent}, make=drawn)

    return [case(exponent) for exponent in (2, 3, 4, 1, 0, 0.5, -0.5, -1, 1.5, -2, 2.7)]


def refuse(op: Op) -> str | None:
    if op.has("exponent"):
        return "the exponent is a tensor; write x ** e as torch.exp(e * torch.log(x)), for positive x"
    return None


TO_NUMBER = replace(
    elementwise("aten.pow", x ** attribute("exponent"), forward=lambda op: op.self**op.exponent, cases=_number_cases(),
                formula="a x^(a - 1),  a the exponent", curvature="a (a - 1) x^(a - 2)"),
    refuse=refuse,
)


def of_number_derivative(op: Op) -> Tensor:
    return op.output * float(sympy.log(op.self))


def of_number_diagonal(op: Op, gradient: Tensor) -> Tensor:
    return gradient * op.output * float(sympy.log(op.self) ** 2)


OF_NUMBER = Rule(
    operations=["aten.pow.Scalar"],
    forward=lambda op: torch.pow(op.self, op.exponent),
    residual=Diagonal(of_number_diagonal),
    formula="d S,  d = y log(base);  residual: R = g y log(base)^2",
    structure=Structure.ELEMENTWISE,
    derivative=of_number_derivative,
    refuse=lambda op: None if op.self > 0 else f"{op.self} ** x has no derivative for a base that is not positive",
    cases=[Case({"exponent": (4, 3)}, {"self": base}, ("exponent",)) for base in (2, 0.3)],
)
