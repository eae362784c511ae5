"""What the user's source says at the place that a frame executes: whether a value is only checked there.

`assert (x > 0).all()` and `if x.min() < 0: raise ...` read values of tensors, but what is computed does not depend on
them: all that a value decides is whether an exception is raised.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType

from hbpcompiler.compiler.trace.source.called import complains, is_harmless, lets_through, says
from hbpcompiler.compiler.trace.source.source import LIBRARY


@dataclass(frozen=True)
class Place:
    """An expression's position in a file."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int

    def lies_in(self, node: ast.stmt | ast.expr) -> bool:
        starts = (node.lineno, node.col_offset) <= (self.line, self.column)
        return starts and (self.end_line, self.end_column) <= (node.end_lineno or 0, node.end_col_offset or 0)

    def is_the_test_of(self, statement: ast.If | ast.Assert) -> bool:
        """Whether it is part of the test, or the whole statement: that is where Python says that a jump is."""
        own = (statement.lineno, statement.col_offset, statement.end_lineno, statement.end_col_offset)
        return self.lies_in(statement.test) or own == (self.line, self.column, self.end_line, self.end_column)


def place_of(frame: FrameType) -> Place | None:
    """Where the expression is that this frame is evaluating; None for code without source."""
    positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if None in positions:
        return None
    line, end_line, column, end_column = positions
    return Place(frame.f_code.co_filename, line or 0, column or 0, end_line or 0, end_column or 0)


def only_checks(frame: FrameType, outermost: str) -> bool:
    """Whether all that becomes of this frame's expression is that it may raise an exception which nothing catches.

    A function that returns the value hands it to its caller's expression. Callers are followed up to the file
    `outermost`.
    """
    current: FrameType | None = frame
    while current is not None and current.f_code.co_filename != outermost:
        found = _statement(current)
        if found is None:
            return False
        place, statement, caught = found
        if not isinstance(statement, ast.Return):
            return not caught and _is_check(statement, place, current) and not _caught_above(current.f_back, outermost)
        if statement.value is not None and not _only_read(statement.value, place, current):
            return False
        current = current.f_back
    return False


def _statement(frame: FrameType) -> tuple[Place, ast.stmt, bool] | None:
    """The innermost statement that the frame is at, and whether a `try` or a `with` may swallow what it raises."""
    place = place_of(frame)
    if place is None:
        return None
    lines = tuple(linecache.getlines(place.file, frame.f_globals))
    body: Sequence[ast.stmt] = _parsed(lines)
    innermost: ast.stmt | None = None
    caught = False
    while (inside := next((statement for statement in body if place.lies_in(statement)), None)) is not None:
        innermost = inside
        if isinstance(inside, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            caught = False
        caught = caught or _may_swallow(inside, place, frame)
        body = list(_blocks(inside))
    return None if innermost is None else (place, innermost, caught)


def _may_swallow(statement: ast.stmt, place: Place, frame: FrameType) -> bool:
    """Whether an exception from this place, inside a statement, may end at it."""
    if isinstance(statement, ast.With | ast.AsyncWith):
        return not all(lets_through(item.context_expr, frame) for item in statement.items)
    if not isinstance(statement, ast.Try | ast.TryStar):
        return False
    handled = bool(statement.handlers) and any(map(place.lies_in, statement.body))
    leaves = any(isinstance(node, ast.Return | ast.Break | ast.Continue)
                 for last in statement.finalbody for node in ast.walk(last))
    return handled or leaves


@lru_cache(maxsize=64)
def _parsed(lines: tuple[str, ...]) -> list[ast.stmt]:
    try:
        return ast.parse("".join(lines)).body
    except SyntaxError:  # not the source that runs: a cell with magic commands, say
        return []


def _blocks(statement: ast.stmt) -> Iterator[ast.stmt]:
    """The statements directly inside another."""
    for name in ("body", "orelse", "finalbody"):
        yield from getattr(statement, name, ())
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield from part.body


def _caught_above(frame: FrameType | None, outermost: str) -> bool:
    """Whether a caller catches exceptions; torch's own `try`, and ours, raise them again."""
    while frame is not None and frame.f_code.co_filename != outermost:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            found = _statement(frame)
            if found is not None and found[2]:
                return True
        frame = frame.f_back
    return False


def _is_check(statement: ast.stmt, place: Place, frame: FrameType) -> bool:
    if isinstance(statement, ast.Expr):
        call = statement.value
        return isinstance(call, ast.Call) and says(call, frame) and _only_read(call, place, frame)
    if not isinstance(statement, ast.Assert | ast.If) or not place.is_the_test_of(statement):
        return False
    if not _only_read(statement.test, place, frame):
        return False
    if isinstance(statement, ast.Assert):
        return True
    body, other = statement.body, statement.orelse
    if all(complains(each, frame) for each in body):
        return not other or isinstance(body[-1], ast.Raise)
    return bool(other) and all(complains(each, frame) for each in other) and isinstance(other[-1], ast.Raise)


def _only_read(expression: ast.expr, place: Place, frame: FrameType) -> bool:
    """Whether nobody keeps the value at this place: no `:=`, no code of the user's that is given it."""
    for node in ast.walk(expression):
        if isinstance(node, ast.NamedExpr):
            return False
        given = [*node.args, *(each.value for each in node.keywords)] if isinstance(node, ast.Call) else []
        if any(map(place.lies_in, given)) and not is_harmless(node, frame):
            return False
    return True
