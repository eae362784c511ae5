"""One axis of a sample along which to normalise, the classes; all others are positions."""

from collections.abc import Callable

from hbpcompiler.rule import ZERO, Factor, Op, Residual, Shape, Tensor

from .reduced import axes
from .simplex import positionwise


def axis(op: Op) -> int:
    """The axis of a sample along which to normalise."""
    return axes(op, op.dim)[0]


def positions(op: Op) -> Shape:
    """All other axes of a sample."""
    shape = op.shape("self")
    return shape[: axis(op)] + shape[axis(op) + 1 :]


def classes(op: Op) -> int:
    return op.shape("self")[axis(op)]


def classes_last(op: Op, value: Tensor) -> Tensor:
    """[N, *z] -> [N, *positions, C]."""
    return value if axis(op) == len(op.shape("self")) - 1 else value.movedim(axis(op) + 1, -1)


def as_columns(op: Op, columns: Tensor) -> Tensor:
    """Columns of each position, [N, *positions, k, C] -> columns of the sample, [N, k*P, *z]."""
    whole = positionwise(columns, positions(op))
    return whole.movedim(2, axis(op) + 2) if axis(op) else whole


def curved(factor: Factor) -> Callable[[Op], Residual]:
    """One class alone leaves nothing to distribute."""
    return lambda op: factor if classes(op) > 1 else ZERO

