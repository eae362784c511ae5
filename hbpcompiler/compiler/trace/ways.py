"""Branches around what a mask picks: `if mask.any():`, `if rows.numel() == 0: continue`.

They save work, and make no difference: of rows that are not there nothing is computed either way. A trace goes the way
on which there are rows, and notes it; that it is the other way, too, is tried later, on rows of the batch (see
`prove.ways`). A branch with an `else`, or one that is left by `return`, chooses between two computations and stays
refused.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import SymBool, SymInt

from hbpcompiler.compiler.trace.many_rows import truth_of_many
from hbpcompiler.compiler.trace.refusals import line_of
from hbpcompiler.compiler.trace.replaced import replaced
from hbpcompiler.compiler.trace.source import is_library
from hbpcompiler.compiler.trace.statements import Place, branch_at

LEAVES = (ast.Return, ast.Break, ast.Raise, ast.Yield, ast.YieldFrom)


@dataclass(frozen=True)
class Way:
    """A branch that a trace has passed as if rows were there."""

    place: Place
    line: str
    """file:line: code."""
    is_told: bool
    """Whether a run of the model shows which way it goes there: it asks a tensor, not a length."""


Ways = list[Way]


def truth_with_rows(frame: FrameType) -> tuple[Place, bool] | None:
    """Where the test is that this frame evaluates, and what its atom is where there are rows: what has the branch
    carried out, or not left out by `continue`. None for all that is no such branch."""
    found = branch_at(frame)
    if found is None:
        return None
    place, statement = found
    skips = all(isinstance(inside, ast.Continue | ast.Pass) for inside in statement.body)
    if statement.orelse or (not skips and any(map(_leaves, statement.body))):
        return None
    return place, _of_atom(statement.test, place, not skips)


def _leaves(statement: ast.stmt) -> bool:
    """Whether it may end the function, or a loop around it."""
    return any(isinstance(node, (*LEAVES, ast.Continue)) for node in ast.walk(statement))


def _of_atom(test: ast.expr, place: Place, wanted: bool) -> bool:
    """What the part of a test at this place must be for the test to be `wanted`."""
    for node in ast.walk(test):
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and place.lies_in(node.operand):
            wanted = not wanted
    return wanted


@contextmanager
def lengths_of_many(ways: Ways) -> Iterator[None]:
    """Meanwhile conditions on how many rows a mask picks are those of many rows, at branches of this kind."""

    def told(own: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def truth(condition: Any) -> bool:
            frame = sys._getframe(2)  # `replaced` is between
            many = truth_of_many(condition.node.expr)
            found = None if many is None or is_library(frame.f_code.co_filename) else truth_with_rows(frame)
            if found is None or found[1] != many:
                return own(condition)
            ways.append(Way(found[0], line_of(frame), False))
            return found[1]

        return truth

    bools: Callable[[Any], bool] = SymBool.__bool__
    numbers: Callable[[Any], bool] = SymInt.__bool__
    with replaced(SymBool, "__bool__", told(bools)), replaced(SymInt, "__bool__", told(numbers)):
        yield
