"""Numbers of a program as expressions in a length T: read off at a few lengths, checked at all of them.

Whole numbers are polynomials: a T + b, or of degree two where a fourth length checks them. Other numbers are those that
means and roots make: c (T + b)^p, p one of -2, -1, -1/2, 1/2, 1, 2. What is none of these, as a rounded half, has no
expression.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ROUNDING = 1e-13
"""Relative; numbers of Python are made of a few operations."""
POWERS = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
SHIFTS = (0, -1, 1, -2, 2, -3, 3, -4, 4)
"""b, as far as it is looked for beside a power."""

Apply = Callable[[Callable[..., Any], Any, Any], Any]
"""An operator, and what it is used on."""


@dataclass(frozen=True)
class Polynomial:
    """(c_0 + c_1 T + c_2 T^2) / divisor, a whole number for every T."""

    coefficients: tuple[int, ...]
    divisor: int = 1

    def at(self, length: int) -> int:
        return sum(c * length**power for power, c in enumerate(self.coefficients)) // self.divisor

    def written(self, length: Any, apply: Apply) -> Any:
        """By falling powers, in whole numbers alone, as TorchScript has no power of these."""
        constant, slope, bend = (*self.coefficients, 0, 0)[:3]
        total: Any = None
        for power, factor in ((2, bend), (1, slope)):
            if factor:
                term = apply(operator.mul, length, length) if power == 2 else length
                part = _times(term, abs(factor), apply)
                if total is None:
                    total = part if factor > 0 else apply(operator.mul, part, -1)
                else:
                    total = apply(operator.add if factor > 0 else operator.sub, total, part)
        if constant:
            total = apply(operator.add if constant > 0 else operator.sub, total, abs(constant))
        return total if self.divisor == 1 else apply(operator.floordiv, total, self.divisor)


@dataclass(frozen=True)
class Power:
    """c (T + shift)^power."""

    factor: float
    shift: int
    power: float

    def at(self, length: int) -> float:
        return float(self.factor * (length + self.shift) ** self.power)

    def written(self, length: Any, apply: Apply) -> Any:
        base = length
        if self.shift:
            base = apply(operator.add if self.shift > 0 else operator.sub, length, abs(self.shift))
        if abs(self.power) == 2:
            base = apply(operator.mul, base, base)
        elif abs(self.power) != 1:
            base = apply(operator.pow, base, 0.5)
        if self.power < 0:
            return apply(operator.truediv, self.factor, base)
        return base if self.factor == 1 and abs(self.power) == 0.5 else apply(operator.mul, base, self.factor)


Expression = Polynomial | Power


def _times(term: Any, factor: int, apply: Apply) -> Any:
    return term if factor == 1 else apply(operator.mul, term, factor)


class NeedsMoreError(Exception):
    """These lengths are too few to tell."""


def expression(lengths: Sequence[int], numbers: Sequence[Any]) -> Expression | None:
    """That of numbers which differ between these lengths; None if there is none. Raises NeedsMoreError where one more
    length would tell."""
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return _polynomial(lengths, numbers)
    if all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        return _power(lengths, numbers)
    return None


def _polynomial(lengths: Sequence[int], numbers: Sequence[int]) -> Polynomial | None:
    slope, rest = divmod(numbers[1] - numbers[0], lengths[1] - lengths[0])
    affine = Polynomial((numbers[0] - slope * lengths[0], slope))
    if not rest and _holds(affine, lengths, numbers):
        return affine
    a, b, c = lengths[:3]
    below = (a - b) * (a - c) * (b - c)
    second = numbers[0] * (b - c) - numbers[1] * (a - c) + numbers[2] * (a - b)
    for divisor in (1, 2):
        bend, left = divmod(divisor * second, below)
        above = divisor * (numbers[0] - numbers[1]) - bend * (a * a - b * b)
        slope, also = divmod(above, a - b)
        if left or also or (divisor == 2 and (bend + slope) % 2):
            continue
        found = Polynomial((divisor * numbers[0] - bend * a * a - slope * a, slope, bend), divisor)
        if (divisor == 1 or found.coefficients[0] % 2 == 0) and _holds(found, lengths, numbers):
            if len(lengths) == 3:
                raise NeedsMoreError
            return found
    return None


def _power(lengths: Sequence[int], numbers: Sequence[float]) -> Power | None:
    for power in POWERS:
        for shift in SHIFTS:
            if min(lengths) + shift <= 0:
                continue
            factor = _short(numbers[0] / (lengths[0] + shift) ** power)
            found = Power(factor, shift, power)
            if _holds(found, lengths, numbers):
                return found
    return None


def _short(factor: float) -> float:
    """A whole number, or the reciprocal of one, where it is that to rounding."""
    for found in (float(round(factor)), 1 / round(1 / factor) if factor and round(1 / factor) else 0.0):
        if found and abs(found - factor) <= ROUNDING * abs(factor):
            return found
    return factor


def _holds(found: Expression, lengths: Sequence[int], numbers: Sequence[Any]) -> bool:
    return all(agrees(found.at(length), number) for length, number in zip(lengths, numbers, strict=True))


def agrees(predicted: Any, number: Any) -> bool:
    """Whether a number is what an expression gives: exactly, or to rounding where it is no whole one."""
    if isinstance(number, int):
        return bool(predicted == number)
    return bool(abs(predicted - number) <= ROUNDING * max(abs(number), abs(predicted)))


def text(found: Expression) -> str:
    """As it stands in a shape's comment: "T", "4*T", "T - 1"."""
    def apply(function: Callable[..., Any], left: Any, right: Any) -> _Text:
        sign, binds = SIGNS[function]
        left, right = (item if isinstance(item, _Text) else _Text(repr(item), 9) for item in (left, right))
        if function is operator.mul and right.binds == 9 and left.binds < 9 and not right.text.startswith("-"):
            left, right = right, left
        shown = [f"({item.text})" if item.binds < binds + (item is right) else item.text for item in (left, right)]
        return _Text(sign.join(shown), binds)

    return str(found.written(_Text("T", 8), apply).text)


SIGNS = {operator.add: (" + ", 1), operator.sub: (" - ", 1), operator.mul: ("*", 2), operator.floordiv: ("//", 2),
         operator.truediv: ("/", 2), operator.pow: ("**", 3)}


@dataclass(frozen=True)
class _Text:
    text: str
    binds: int
