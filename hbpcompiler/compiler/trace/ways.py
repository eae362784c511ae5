"""Branches around what a mask picks: `if mask.any():`, `if rows.numel() == 0: continue`.

They save work, and make no difference: of rows that are not there nothing is computed either way. A trace goes the way
on which there are rows, and notes it; that it is the other way, too, is tried later, on rows of the batch (see
`prove.ways`). A branch with an `else`, or one that is left by `return`, chooses between two computations and stays
refused.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch import SymBool, SymInt

from hbpcompiler.compiler.trace.many_rows import truth_of_many
from hbpcompiler.compiler.trace.refusals import line_of
from hbpcompiler.compiler.trace.replaced import replaced
from hbpcompiler.compiler.trace.source import is_library
from hbpcompiler.compiler.trace.statements import Place, branch_at, place_of

OURS = str(Path(__file__).parents[2])
LEAVES = (ast.Return, ast.Break, ast.Raise, ast.Yield, ast.YieldFrom)


Callers = tuple[tuple[str, int], ...]
"""File and line of each frame of the user's that calls another, the innermost first."""


@dataclass(frozen=True)
class Way:
    """A branch that a trace has passed as if rows were there."""

    file: str
    statement: ast.If
    line: str
    """file:line: code."""
    callers: Callers = ()
    """From where it was come to: a helper's branch may save work at one place and choose at another."""

    @property
    def skips(self) -> bool:
        """Whether the branch leaves out what follows it."""
        return _skips(self.statement)


Ways = list[Way]


def way_with_rows(frame: FrameType) -> tuple[Way, bool] | None:
    """The branch whose test this frame evaluates, and what the test's atom is where there are rows: what has the branch
    carried out, or not left out by `continue`. None for all that is no such branch."""
    found = branch_at(frame)
    if found is None:
        return None
    place, statement = found
    if statement.orelse or (not _skips(statement) and any(map(_leaves, statement.body))):
        return None
    atom = _of_atom(statement.test, place, not _skips(statement))
    return None if atom is None else (Way(place.file, statement, line_of(frame), callers_of(frame)), atom)


def callers_of(frame: FrameType) -> Callers:
    """Up to where this library calls the user's code."""
    found: list[tuple[str, int]] = []
    current = frame.f_back
    while current is not None and not current.f_code.co_filename.startswith(OURS):
        if not is_library(current.f_code.co_filename):
            found.append((current.f_code.co_filename, current.f_lineno))
        current = current.f_back
    return tuple(found)


def _skips(statement: ast.If) -> bool:
    return all(isinstance(inside, ast.Continue | ast.Pass) for inside in statement.body)


def _leaves(statement: ast.stmt) -> bool:
    """Whether it may end the function, or a loop around it."""
    return any(isinstance(node, (*LEAVES, ast.Continue)) for node in ast.walk(statement))


def _of_atom(test: ast.expr, place: Place, wanted: bool) -> bool | None:
    """What the part of a test at this place must be for the test to be `wanted`; None where that is not clear, for
    Python says of a jump only that it is somewhere in the test."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _of_atom(test.operand, place, not wanted)
    if isinstance(test, ast.BoolOp):
        own = [part for part in test.values if place.lies_in(part)]
        found = {_of_atom(part, place, wanted) for part in own or test.values}
        return found.pop() if len(found) == 1 else None
    return wanted


@contextmanager
def lengths_of_many(ways: Ways) -> Iterator[None]:
    """Meanwhile conditions on how many rows a mask picks are those of many rows, at branches of this kind."""

    def told(own: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def truth(condition: Any) -> bool:
            frame = sys._getframe(2)  # `replaced` is between
            many = truth_of_many(condition.node.expr)
            found = None if many is None or is_library(frame.f_code.co_filename) else way_with_rows(frame)
            if found is None or found[1] != many:
                return own(condition)
            ways.append(found[0])
            return many

        return truth

    bools: Callable[[Any], bool] = SymBool.__bool__
    numbers: Callable[[Any], bool] = SymInt.__bool__
    with replaced(SymBool, "__bool__", told(bools)), replaced(SymInt, "__bool__", told(numbers)):
        yield


# -- which way a run of the model goes --------------------------------------------------------------------------------

Gone = dict[Way, set[bool]]
"""By branch: whether runs went the way that there is with rows (True), the other (False), or both."""


@contextmanager
def seen(ways: Sequence[Way]) -> Iterator[Gone]:
    """Meanwhile it is noted which way this thread's code goes at these branches, instruction by instruction, because a
    branch may stand in one line, and ask a length, which is a plain number."""
    gone: Gone = {way: set() for way in ways}
    tested: dict[tuple[FrameType, Way], bool] = {}

    def step(frame: FrameType, event: str, _: Any) -> Any:
        place = place_of(frame) if event == "opcode" else None
        for way in gone:
            if place is None or way.file != place.file:
                continue
            if place.is_the_test_of(way.statement):
                tested[frame, way] = True
            elif tested.pop((frame, way), False):
                inside = any(place.lies_in(statement) for statement in way.statement.body)
                if callers_of(frame) != way.callers:
                    continue
                gone[way].add(_is_behind(place, way.statement) if way.skips else inside)
        return step

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        return step

    files, before = {way.file for way in ways}, sys.gettrace()
    sys.settrace(enter)
    try:
        yield gone
    finally:
        sys.settrace(before)


def _is_behind(place: Place, statement: ast.If) -> bool:
    return (place.line, place.column) >= (statement.end_lineno or 0, statement.end_col_offset or 0)
