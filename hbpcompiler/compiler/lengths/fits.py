"""What stands for the numbers of a walk: found at a few lengths, and checked at each further one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hbpcompiler.compiler.lengths.numbers import Expression, agrees, expression
from hbpcompiler.compiler.lengths.walk import LengthsDifferError


@dataclass
class Fits:
    """Finds expressions; `found` has one for each number in the walk's order, None for what is the same everywhere."""

    lengths: Sequence[int]
    found: list[Expression | None] = field(default_factory=list)

    def __call__(self, numbers: Sequence[Any]) -> Any:
        self.found.append(None)
        if _are_equal(numbers):
            return numbers[0]
        fitted = expression(self.lengths, numbers)
        if fitted is None:
            raise LengthsDifferError(f"a number follows no simple formula in the length: it is {_shown(numbers)} at "
                                     f"{_shown(self.lengths)}; what is rounded, as by a stride, has none")
        self.found[-1] = fitted
        return fitted


@dataclass
class Check:
    """The same numbers at another length, each beside the first program's: whether they are what was found."""

    length: int
    found: Sequence[Expression | None]
    position: int = 0

    def __call__(self, numbers: Sequence[Any]) -> Any:
        if self.position == len(self.found):
            raise LengthsDifferError("there is a number more")
        fitted, self.position = self.found[self.position], self.position + 1
        first, here = numbers
        expected = first if fitted is None else fitted.at(self.length)
        if not (_are_equal([expected, here]) or (fitted is not None and agrees(expected, here))):
            raise LengthsDifferError(f"a number is {here} at a length of {self.length}, where its formula gives "
                                     f"{expected}")
        return first


def _are_equal(numbers: Sequence[Any]) -> bool:
    first = numbers[0]
    return all(type(number) is type(first) and (number == first or (number != number and first != first))
               for number in numbers)


def _shown(numbers: Sequence[Any]) -> str:
    return ", ".join(f"{number:.6g}" if isinstance(number, float) else str(number) for number in numbers)
