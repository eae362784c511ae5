"""Numbers as people know them: 2 / 3 for 0.6666666666666666, (2 * math.pi) ** -0.5 for 0.3989422804014327.

Only what is that very number again, to the last bit, and shorter than its digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache

SMALLEST_SHARE = 1e-9
"""Of one; smaller numbers are no share of a mean."""
LARGEST_ROOT = 2**20
"""Of larger numbers no root is told."""
PARTS = 100
"""Fractions of more are no fractions that anybody wrote."""
LONG = 12
"""Signs; shorter numbers are as they were written."""
OF_PI: Mapping[float, str] = {
    math.pi: "math.pi",
    2 * math.pi: "2 * math.pi",
    (2 * math.pi) ** 0.5: "(2 * math.pi) ** 0.5",
    (2 * math.pi) ** -0.5: "(2 * math.pi) ** -0.5",
    (2 / math.pi) ** 0.5: "(2 / math.pi) ** 0.5",
    math.pi**0.5: "math.pi ** 0.5",
    2 / math.pi**0.5: "2 / math.pi ** 0.5",
}


@lru_cache(maxsize=512)
def recognised(number: float) -> str:
    """A positive number as an expression that binds like a product; "" for one that is best told by its digits."""
    return OF_PI.get(number) or _share(number) or (
        _fraction(number) or _root(number) if len(repr(number)) >= LONG else "")


def _share(number: float) -> str:
    """1 / 128 for 0.0078125, the share of one in so many; "" where the number itself is as short, or no such share."""
    if not SMALLEST_SHARE < number < 1 or 1 / round(1 / number) != number:
        return ""
    text = f"1 / {round(1 / number)}"
    return text if len(text) < len(repr(number)) else ""


def _fraction(number: float) -> str:
    """2 / 3."""
    found = Fraction(number).limit_denominator(PARTS)
    same = 0 < found.numerator <= PARTS and found.denominator > 1 and float(found) == number
    return f"{found.numerator} / {found.denominator}" if same else ""


def _root(number: float) -> str:
    """8 ** -0.5 for 0.3535533905932738, the root of a size; (2 / 9) ** 0.5; "" for what is no such root."""
    if not LARGEST_ROOT**-0.5 <= number <= LARGEST_ROOT**0.5:
        return ""
    inside = round(1 / number**2 if number < 1 else number**2)
    if 1 < inside <= LARGEST_ROOT and math.isqrt(inside) ** 2 != inside:
        root = inside**0.5
        texts = {f"{inside} ** 0.5": root, f"{inside} ** -0.5": inside**-0.5, f"1 / {inside} ** 0.5": 1 / root}
        for text, same in texts.items():
            if same == number and len(text) < len(repr(number)):
                return text
    square = Fraction(number * number).limit_denominator(PARTS)
    parts = (square.numerator, square.denominator)
    simple = 1 < max(parts) <= PARTS and min(parts) > 0 and float(square) ** 0.5 == number
    return f"({parts[0]} / {parts[1]}) ** 0.5" if simple else ""
