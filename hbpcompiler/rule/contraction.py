"""A parameter's cotangent as an einsum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hbpcompiler.rule.op import Op


@dataclass(frozen=True)
class Sliding:
    """An operand made of windows that slide along one axis, row by row.

    The feature (c, a, b) of the operand at position (y, q) is `rows(op)[n, (c, b), y + step * a, q]`, for the places
    a < `window` and y < `height`; c < `outer` counts the features in front of a.
    """

    rows: Callable[[Op], Tensor]
    """[N, features apart from a, height + step * (window - 1), positions in a row]."""
    window: int
    step: int
    height: int
    outer: int


@dataclass(frozen=True)
class Contraction:
    """A parameter's cotangent as an einsum, which is all that an operation says about a parameter.

    `equation` has the columns first, then (unless the parameter is added, as a bias is) the operand that the parameter
    meets: "nkpo,npi->nkoi". There is at most one summed letter, p, of length 1 or more; without shared positions it is
    absent. The result, [N, K, *letters], reshapes to the parameter's shape.
    """

    equation: str
    columns: Callable[[Op, Tensor], Tensor] = lambda op, columns: columns
    """columns at the output, [N, K, *out] -> the first operand; its entries are entries of the columns or sums of them
    (coefficients 0 and 1, so that squares go the same way)."""
    operand: Callable[[Op], Tensor] | None = None
    """the second operand; it may read saved tensors, which the compiler then slices over samples."""
    summed: Callable[[Op, Tensor], Tensor] | None = None
    """optional: cotangent [N, *out] -> the parameter's cotangent summed over samples, where torch has a kernel that
    beats the einsum (see benchmarks/)."""
    of_sample: Callable[[Op, Tensor], Tensor] | None = None
    """optional: columns [1, K, *out] of a single sample -> [K, *parameter], by such a kernel."""
    flat: bool = False
    """Whether `columns` is the output with its axes behind the first, the channels, flattened to p: "nkop"."""

    sliding: Sliding | None = None
    """optional: how the operand's patches arise from rows."""

    @property
    def letters(self) -> tuple[str, str, str]:
        """The letters of columns, operand ("" if none) and result."""
        left, result = self.equation.split("->")
        first, _, second = left.partition(",")
        return first, second, result
