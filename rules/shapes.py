"""Operations that move elements about and change none: new shapes, new orders of axes, flips, broadcasts.

The sample axis stays first in all of them, and of any length: sizes are read from the shapes of one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor

SAMPLE_AXIS = "it {what} the sample axis, the first, and per-sample quantities need it where it is; {instead}"


def refusal(what: str, instead: str = "move only the axes after it") -> str:
    return SAMPLE_AXIS.format(what=what, instead=instead)


def rank(op: Op) -> int:
    """Number of the input's axes, the sample axis included: attributes count it."""
    return len(op.shape("self")) + 1


def selection(
    operations: Sequence[str],
    forward: Callable[[Op], Any],
    jac_t: Callable[[Op, Tensor], Tensor],
    refuse: Callable[[Op], str | None],
    cases: Sequence[Case],
) -> Rule:
    """A rule for an operation on `self` whose every output copies one input."""
    return Rule(
        operations=operations,
        forward=forward,
        jac_t={"self": jac_t},
        residual=ZERO,
        structure=Structure.SELECTION,
        refuse=refuse,
        cases=cases,
    )


# -- new shapes, the same order ---------------------------------------------------------------------------------------


def reshape(op: Op) -> Tensor:
    return op.self.reshape(-1, *op.shape("output"))


def reshape_back(op: Op, columns: Tensor) -> Tensor:
    return columns.reshape(columns.shape[0], -1, *op.shape("self"))


def refuse_reshape(op: Op) -> str | None:
    """The traced sizes are numbers, -1 or expressions in the batch size, and the last must be first and alone."""
    size = op.size if hasattr(op, "size") else op.shape_argument
    moved = size and (isinstance(size[0], int) and size[0] != -1 or not all(isinstance(s, int) for s in size[1:]))
    if moved or prod(op.shape("self")) != prod(op.shape("output")):
        return refusal("merges, splits or moves", "keep its length apart, as in x.reshape(x.shape[0], ...)")
    return None
