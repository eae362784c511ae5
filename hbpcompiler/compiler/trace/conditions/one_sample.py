"""Ways that the user's code goes for a batch of one alone, which torch.export does not note: to it N is 2 or more."""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import sympy
import torch

from hbpcompiler.compiler.trace.refusals.refusals import line_of
from hbpcompiler.compiler.trace.source.source import is_library

COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
WRITTEN = ("COMPARE_OP", "CONTAINS_OP")
"""n > 1 and n in (1, 2), but not max(n, 1), which compares as well."""
MORE = (2, 3, 7, 100)


@dataclass(frozen=True)
class WayOfOne:
    """A comparison that is another one for a batch of one than for all larger ones."""

    expr: Any
    """N != 1, in torch's symbol of it."""
    line: str
    """file:line: code of the user's."""


@contextmanager
def ways_of_one_noted() -> Iterator[None]:
    """Meanwhile such comparisons are noted with the ShapeEnv whose size they ask (see `ways_of_one`)."""
    number: Any = torch.SymInt
    before = {name: getattr(number, name) for name in COMPARISONS}
    for name, own in before.items():
        setattr(number, name, _noting(own, getattr(operator, name)))
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(number, name, own)


def ways_of_one(environment: Any) -> tuple[WayOfOne, ...]:
    """Those that were noted."""
    return tuple(getattr(environment, "ways_of_one", ()))


def _noting(own: Callable[[Any, Any], Any], compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compared(number: Any, other: Any) -> Any:
        frame = sys._getframe(1)
        if _is_written(frame):
            _note(number, other, compare, frame)
        return own(number, other)

    return compared


def _is_written(frame: FrameType) -> bool:
    """Whether a line of the user's says so itself."""
    code = frame.f_code
    return not is_library(code.co_filename) and dis.opname[code.co_code[frame.f_lasti]] in WRITTEN


def _note(number: Any, other: Any, compare: Callable[[Any, Any], Any], frame: FrameType) -> None:
    if not isinstance(other, int | float | torch.SymInt):
        return
    pair = [sympy.sympify(getattr(getattr(each, "node", None), "expr", each)) for each in (number, other)]
    symbols = set().union(*(each.free_symbols for each in pair))
    if len(symbols) != 1:
        return
    (size,) = symbols
    one, *others = (bool(compare(*(each.subs(size, samples) for each in pair))) for samples in (1, *MORE))
    if one not in others:
        environment = number.node.shape_env
        environment.ways_of_one = [*ways_of_one(environment), WayOfOne(sympy.Ne(size, 1), line_of(frame))]
