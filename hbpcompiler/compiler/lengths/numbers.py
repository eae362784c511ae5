"""Numbers of a program as expressions in a length T: read off at a few lengths, checked at all of them.

Whole numbers are polynomials: a T + b, or of degree two or three where a further length checks them. Other numbers are
those that means and roots make: c (T + b)^p, p one of -2, -1, -1/2, 1/2, 1, 2. What is none of these, as a rounded
half, has no expression.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

ROUNDING = 1e-13
"""Relative; numbers of Python are made of a few operations."""
POWERS = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
HIGHEST = 3
"""Degree of a polynomial."""
SHIFTS = (0, -1, 1, -2, 2, -3, 3, -4, 4)
"""b, as far as it is looked for beside a power."""

Apply = Callable[[Callable[..., Any], Any, Any], Any]
"""An operator, and what it is used on."""


@dataclass(frozen=True)
class Polynomial:
    """(c_0 + c_1 T + c_2 T^2 + c_3 T^3) / divisor, a whole number for every T."""

    coefficients: tuple[int, ...]
    divisor: int = 1

    def at(self, length: int) -> int:
        total: int = sum(c * length**power for power, c in enumerate(self.coefficients))
        return total // self.divisor

    def written(self, length: Any, apply: Apply) -> Any:
        """By falling powers, in whole numbers alone, as TorchScript has no power of these."""
        constant, *factors = self.coefficients
        total: Any = None
        for power, factor in reversed([*enumerate(factors, 1)]):
            if factor:
                term = length
                for _ in range(power - 1):
                    term = apply(operator.mul, term, length)
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
    for degree in range(1, min(HIGHEST, len(lengths) - 1) + 1):
        found = _through(lengths[: degree + 1], numbers[: degree + 1])
        if found is None or not _holds(found, lengths, numbers):
            continue
        if len(lengths) == degree + 1:
            raise NeedsMoreError
        return found
    return None


def _through(lengths: Sequence[int], numbers: Sequence[int]) -> Polynomial | None:
    """The polynomial through all of these points, by Newton's divided differences; None where it is no whole number
    somewhere."""
    differences = [Fraction(number) for number in numbers]
    for order in range(1, len(lengths)):
        for place in range(len(lengths) - 1, order - 1, -1):
            gap = lengths[place] - lengths[place - order]
            differences[place] = (differences[place] - differences[place - 1]) / gap
    coefficients = [Fraction(0)] * len(lengths)
    for length, difference in zip(reversed(lengths), reversed(differences), strict=True):
        shifted = [Fraction(0), *coefficients[:-1]]  # times T
        coefficients = [up - length * own for up, own in zip(shifted, coefficients, strict=True)]
        coefficients[0] += difference
    divisor = math.lcm(*(each.denominator for each in coefficients))
    whole = tuple(int(each * divisor) for each in coefficients)
    even = sum(whole) % 2 == 0 and whole[0] % 2 == 0  # at T = 0 and 1, and so everywhere
    return Polynomial(whole, divisor) if divisor == 1 or (divisor == 2 and even) else None


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
