"""Smooth functions of two operands, element by element: atan2, hypot, powers of tensors, logaddexp, remainders.

Written in sympy: slopes and curvatures in the operands a = self, b = other and in the result y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sympy
import torch
from sympy import Expr, Piecewise

from hbpcompiler.rule import ZERO, Case, Diagonal, Factor, Noise, Op, Residual, Rule, Tensor, called
from hbpcompiler.rule.symbolic import TORCH, evaluate, sigmoid

from .shared.aligned import columns_per_element, unbroadcast, varying
from .shared.binary import Look, binary, operands
from .shared.units import square_unit

a, b, y = (sympy.Symbol(name, real=True) for name in "aby")


@dataclass(frozen=True)
class Curvatures:
    """Second derivatives, d2y/da2, d2y/dab and d2y/db2."""

    aa: Expr
    ab: Expr
    bb: Expr


def count(op: Op) -> int:
    return 2 * math.prod(op.shape("output"))


class Values(dict[Any, Any]):
    """What stands for the symbols, read when an expression has them."""

    def __init__(self, look: Look, names: tuple[str, str]) -> None:
        super().__init__()
        self.look, self.names = look, {a: names[0], b: names[1], y: "output"}

    def __contains__(self, symbol: object) -> bool:
        return symbol in self.names

    def __missing__(self, symbol: Any) -> Any:
        self[symbol] = self.look(self.names[symbol])
        return self[symbol]


@dataclass(frozen=True)
class TwoOperands:
    """What the rule of an operation on operands of these names says, from its slopes and curvatures."""

    slopes: tuple[Any, Any]
    curvatures: Curvatures | None
    names: tuple[str, str]

    def value(self, op: Op, expression: Expr) -> Any:
        return evaluate(expression, Values(lambda name: getattr(op, name), self.names))

    def pull(self, op: Op, name: str, cotangents: Tensor, look: Look) -> Tensor:
        slope = sympy.sympify(self.slopes[self.names.index(name)])
        if slope == 0:
            return torch.zeros_like(cotangents)
        return cotangents if slope == 1 else cotangents * evaluate(slope, Values(look, self.names))

    # -- where one operand varies ---------------------------------------------------------------------------------

    def diagonal(self, name: str, op: Op, gradient: Tensor) -> Tensor:
        """The curvature in this operand."""
        assert self.curvatures is not None
        curvature = gradient * self.value(op, self.curvatures.aa if name == self.names[0] else self.curvatures.bb)
        return unbroadcast(op, name, curvature.unsqueeze(1)).squeeze(1)

    # -- where both do --------------------------------------------------------------------------------------------

    def bends(self, op: Op, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each element's symmetric matrix [[p, q], [q, r]], with the operands in units u and 1 / u, which bring p
        and r to one size: its eigenvalues, the larger one first, the angle of the first eigenvector, which is half of
        that of (p - r, 2 q), and u.

        Of a base near 0 and its exponent p may be 1e23 times r: without units r is rounded away. Where q is the
        largest, u stays as near the operands' own sizes as p and r allow: that one of them happens to be 0 says nothing
        about units. Where columns count one by one, they are the eigenvectors themselves.
        """
        assert self.curvatures is not None
        entries = (self.curvatures.aa, self.curvatures.ab, self.curvatures.bb)
        p, q, r = (gradient * self.value(op, entry) for entry in entries)
        if op.one_by_one:
            squared = torch.ones_like(q)
        else:
            nearest = square_unit(op, *self.names, quotient=True).maximum((p / q).abs()).minimum((q / r).abs())
            squared = torch.where(q.abs() > p.abs().sqrt() * r.abs().sqrt(), nearest, (p / r).abs().sqrt())
        unit = called("unit", torch.where((squared > 0) & squared.isfinite(), squared, 1.0).sqrt())
        p, r = p / unit.square(), r * unit.square()
        mean, half = called("mean", (p + r) / 2), called("half", (p - r) / 2)
        spread, angle = called("spread", torch.hypot(half, q)), called("angle", torch.atan2(q, half) / 2)
        return mean + spread, mean - spread, angle, unit

    def factor(self, op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        first, second, angle, unit = self.bends(op, gradient)
        upper, upper_signs = columns_per_element(op, first)
        lower, lower_signs = columns_per_element(op, second)
        cosine, sine, unit = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1), unit.unsqueeze(1)
        one, other = self.names
        columns = {
            one: unbroadcast(op, one, torch.cat([upper * cosine, lower * -sine], 1) * unit),
            other: unbroadcast(op, other, torch.cat([upper * sine, lower * cosine], 1) / unit),
        }
        return columns, torch.cat([upper_signs, lower_signs], 1)

    def drawn(self, op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Random sums of these columns."""
        first, second, angle, unit = self.bends(op, gradient)
        sums = []
        for eigenvalue in (first, second):
            signs = noise(*op.shape("output"))
            parts = (eigenvalue.clamp(min=0), (-eigenvalue).clamp(min=0))
            sums.append(torch.cat([signs * part.sqrt().unsqueeze(1) for part in parts], 1))
        cosine, sine, unit = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1), unit.unsqueeze(1)
        one, other = self.names
        return {one: unbroadcast(op, one, (sums[0] * cosine - sums[1] * sine) * unit),
                other: unbroadcast(op, other, (sums[0] * sine + sums[1] * cosine) / unit)}

    def residual(self, op: Op) -> Residual:
        if self.curvatures is None:
            return ZERO
        own = {name: partial(self.diagonal, name) for name in varying(op, self.names)}
        if len(own) == 2:
            return Factor(count, self.factor, drawn=self.drawn, own=own)
        (diagonal,) = own.values()
        return Diagonal(diagonal)


def two_operands(
    operation: str | Sequence[str],
    forward: Callable[[Op], Any],
    slopes: tuple[Any, Any],
    curvatures: Curvatures | None,
    cases: Sequence[Case],
    names: tuple[str, str] = ("self", "other"),
) -> Rule:
    """The rule of an operation on operands of these names; without curvatures it is piecewise linear."""
    of = TwoOperands(slopes, curvatures, names)
    return binary(operation, forward, of.pull, of.residual, cases, names=names)


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
    operands(""),
)
HYPOT = two_operands(
    "aten.hypot",
    lambda op: torch.hypot(op.self, op.other),
    (a / y, b / y),
    Curvatures(b**2 / y**3, -a * b / y**3, a**2 / y**3),
    operands(""),
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
        operands(""),
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

    whole = Case({"self": (2, 3), "exponent": (3,)}, {}, ("self",), "Tensor_Tensor", make={"exponent": exponent},
                 constant=("exponent",))
    return [*[renamed(case) for case in operands("Tensor_Tensor")], whole]


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

NUMBERS = [Case({"self": (2, 3)}, {"other": number}, overload="Scalar") for number in (0.7, -1.3)]
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
    operands(""),
)
FMIN = two_operands(
    "aten.fmin",
    lambda op: torch.fmin(op.self, op.other),
    (Piecewise((1, a <= b), (0, True)), Piecewise((0, a <= b), (1, True))),
    None,
    operands(""),
)
