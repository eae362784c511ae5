"""Smooth functions of two operands, element by element: their rules from slopes and curvatures written in sympy.

These are expressions in the operands a = self, b = other and in the result y.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sympy
import torch
from sympy import Expr

from hbpcompiler.rule import ZERO, Case, Diagonal, Factor, Noise, Op, Residual, Rule, Tensor, called
from hbpcompiler.rule.symbolic import evaluate

from .aligned import columns_per_element, unbroadcast, varying
from .binary import Look, binary
from .units import square_unit

a, b, y = (sympy.Symbol(name, real=True) for name in "aby")


@dataclass(frozen=True)
class InSteps:
    """A product that is made factor by factor, as a power in it may leave the range of numbers."""

    factors: Sequence[Expr]


@dataclass(frozen=True)
class Curvatures:
    """Second derivatives, d2y/da2, d2y/dab and d2y/db2."""

    aa: Expr | InSteps
    ab: Expr | InSteps
    bb: Expr | InSteps


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

    def value(self, op: Op, written: Expr | InSteps) -> Any:
        values = Values(lambda name: getattr(op, name), self.names)
        if not isinstance(written, InSteps):
            return evaluate(written, values)
        product = evaluate(written.factors[0], values)
        for factor in written.factors[1:]:
            product = product * evaluate(factor, values)
        return product

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

    def bends(self, op: Op, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Each element's symmetric matrix [[p, q], [q, r]], with the operands in units u and 1 / u, which bring p
        and r to one size: its eigenvalues, the larger one first, the first eigenvector, and u.

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
        spread = called("spread", torch.hypot(half, q))
        cosine, sine = eigenvector(half, q, spread)
        return *eigenvalues(p, q, r, mean, spread), cosine, sine, unit

    def factor(self, op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        first, second, cosine, sine, unit = self.bends(op, gradient)
        upper, upper_signs = columns_per_element(op, first)
        lower, lower_signs = columns_per_element(op, second)
        cosine, sine, unit = cosine.unsqueeze(1), sine.unsqueeze(1), unit.unsqueeze(1)
        one, other = self.names
        columns = {
            one: unbroadcast(op, one, torch.cat([upper * cosine, lower * -sine], 1) * unit),
            other: unbroadcast(op, other, torch.cat([upper * sine, lower * cosine], 1) / unit),
        }
        return columns, torch.cat([upper_signs, lower_signs], 1)

    def drawn(self, op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Random sums of these columns."""
        first, second, cosine, sine, unit = self.bends(op, gradient)
        sums = []
        for eigenvalue in (first, second):
            signs = noise(*op.shape("output"))
            parts = (eigenvalue.clamp(min=0), (-eigenvalue).clamp(min=0))
            sums.append(torch.cat([signs * part.sqrt().unsqueeze(1) for part in parts], 1))
        cosine, sine, unit = cosine.unsqueeze(1), sine.unsqueeze(1), unit.unsqueeze(1)
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


def eigenvalues(p: Tensor, q: Tensor, r: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """mean + spread and mean - spread; what nothing is left of there is the determinant by the other one."""
    outer = called("outer", mean + spread.copysign(mean))
    divisor = torch.where(outer == 0, 1.0, outer)
    inner = called("inner", p * (r / divisor) - q * (q / divisor))
    positive = mean >= 0
    return torch.where(positive, outer, inner), torch.where(positive, inner, outer)


def eigenvector(half: Tensor, q: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of half the angle of (half, q), each to its own digits however small it is."""
    length = torch.where(spread == 0, 1.0, spread)
    long = called("long", ((1 + torch.where(spread == 0, 1.0, half.abs() / length)) / 2).sqrt())
    short = called("short", q.abs() / length / (2 * long))
    return torch.where(half >= 0, long, short), torch.where(half >= 0, short, long).copysign(q)


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
