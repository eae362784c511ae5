"""Functions of two operands, element by element: atan2, hypot, powers of tensors, logaddexp, remainders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import sympy
import torch
from sympy import Expr, Piecewise

from hbpcompiler.rule import Case, Rule, Tensor
from hbpcompiler.rule.symbolic import TORCH, sigmoid

from .shared.binary import operands
from .shared.smooth_pairs import Curvatures, a, b, two_operands, y

# -- smooth ----------------------------------------------------------------------------------------------------------

def flat_at(where: Expr, number: int, expression: Expr) -> Expr:
    """The expression, and 0 where that has a zero times infinity: torch has 0 there."""
    return Piecewise((0, sympy.Eq(where, number)), (expression, True))


_square = a**2 + b**2
ATAN2 = two_operands(
    "aten.atan2",
    lambda op: torch.atan2(op.self, op.other),
    (flat_at(_square, 0, b / _square), flat_at(_square, 0, -a / _square)),
    Curvatures(*(flat_at(_square, 0, curvature / _square**2) for curvature in (-2 * a * b, a**2 - b**2, 2 * a * b))),
    operands(),
)
HYPOT = two_operands(
    "aten.hypot",
    lambda op: torch.hypot(op.self, op.other),
    (a / y, b / y),
    Curvatures(b**2 / y**3, -a * b / y**3, a**2 / y**3),
    operands(),
)


def log_of_sum(name: str, base: Expr) -> Rule:
    """log(base^a + base^b) to this base: the slopes are shares, which sum to one."""
    scale = sympy.log(base)
    curve = scale * sigmoid(scale * (a - b)) * sigmoid(scale * (b - a))
    return two_operands(
        f"aten.{name}",
        lambda op: getattr(torch, name)(op.self, op.other),
        (sigmoid(scale * (a - b)), sigmoid(scale * (b - a))),
        Curvatures(curve, -curve, curve),
        operands(),
    )


LOGS_OF_SUMS = [log_of_sum("logaddexp", sympy.E), log_of_sum("logaddexp2", sympy.Integer(2))]


def power_cases() -> list[Case]:
    """Positive bases, and any where only the base carries derivatives."""

    def base(shape: Sequence[int]) -> Tensor:
        return 0.3 + torch.rand(tuple(shape), dtype=torch.float64)

    def exponent(shape: Sequence[int]) -> Tensor:
        return torch.arange(math.prod(shape)).reshape(tuple(shape)).remainder(3) + 1

    def renamed(case: Case) -> Case:
        new = {"self": "self", "other": "exponent"}
        return replace(case, shapes={new[name]: shape for name, shape in case.shapes.items()},
                       batched=[new[name] for name in case.batched],
                       constant=[new[name] for name in case.constant], make={"self": base})

    whole = Case({"self": (2, 3), "exponent": (3,)}, {}, ("self",), make={"exponent": exponent},
                 constant=("exponent",))
    return [*[renamed(case) for case in operands()], whole]


_in_exponent = flat_at(a, 0, y * sympy.log(a))  # 0 ** b is flat, as torch has it
POWER = two_operands(
    "aten.pow.Tensor_Tensor",
    lambda op: op.self**op.exponent,
    (flat_at(b, 0, b * a ** (b - 1)), _in_exponent),
    Curvatures(
        flat_at(b, 0, flat_at(b, 1, b * (b - 1) * a ** (b - 2))),
        a ** (b - 1) + flat_at(a, 0, b * a ** (b - 1) * sympy.log(a)),
        flat_at(a, 0, y * sympy.log(a) ** 2),
    ),
    power_cases(),
    ("self", "exponent"),
)

# -- piecewise linear ------------------------------------------------------------------------------------------------


class trunc(sympy.Function):  # type: ignore[misc]  # sympy is untyped
    """Rounding towards zero."""


TORCH[trunc] = torch.trunc

NUMBERS = [Case({"self": (2, 3)}, {"other": number}) for number in (0.7, -1.3)]
REMAINDERS = [
    two_operands(
        "aten.remainder",
        lambda op: torch.remainder(op.self, op.other),
        (1, -sympy.floor(a / b)),
        None,
        [*operands(), *NUMBERS],
    ),
    two_operands(
        "aten.fmod",
        lambda op: torch.fmod(op.self, op.other),
        (1, -trunc(a / b)),
        None,
        [*operands(), *NUMBERS],
    ),
]
COPYSIGN = two_operands(
    "aten.copysign",
    lambda op: torch.copysign(op.self, op.other),
    (flat_at(a, 0, y / a), 0),  # 1 or -1, and NaN where torch has it
    None,
    [*operands(), *NUMBERS],
)
FMAX = two_operands(
    "aten.fmax",
    lambda op: torch.fmax(op.self, op.other),
    (Piecewise((1, a >= b), (0, True)), Piecewise((0, a >= b), (1, True))),
    None,
    operands(),
)
FMIN = two_operands(
    "aten.fmin",
    lambda op: torch.fmin(op.self, op.other),
    (Piecewise((1, a <= b), (0, True)), Piecewise((0, a <= b), (1, True))),
    None,
    operands(),
)
