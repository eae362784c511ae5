"""Conditions on whether a mask picks any rows: `if mask.any():`, `if rows.numel() == 0: continue`.

Where nothing is picked, nothing is computed of it either way, so that such a branch saves work and makes no difference.
A trace goes the way of many rows, and notes where. That without rows the other way comes to the same is shown on a
trace that goes that way: see `saved_work`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import SymBool, SymInt, Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot

from hbpcompiler.compiler.trace.many_rows import truth_of_many
from hbpcompiler.compiler.trace.refusals import CONTROL, CannotFollowError, line_of
from hbpcompiler.compiler.trace.replaced import replaced
from hbpcompiler.compiler.trace.source import is_library
from hbpcompiler.rules.shared.torch_operations import ANY_OF_ALL, COMPARED, COPYING, INVERSES, NUMBER_OF_TRUE

MOST = 256
"""Conditions of one model; a loop that goes on while a mask picks rows would never end."""
FEW = (1, 2, 3)
"""Numbers of rows, of which a condition has to say the same as of many."""


@dataclass
class Ways:
    """The conditions that a trace has met, in order."""

    other: int | None = None
    """Which of them is answered as without rows."""
    lines: list[str] = field(default_factory=list)
    """file:line: code."""
    conditions: list[Tensor | SymInt] = field(default_factory=list)
    """What says whether there are rows: a truth value of a mask, or the length."""

    def begin(self) -> None:
        """A run of the model."""
        self.lines.clear()
        self.conditions.clear()

    def answer(self, frame: FrameType, condition: Tensor | SymInt, with_rows: bool) -> bool:
        """Which way this trace goes."""
        if len(self.lines) == MOST:
            raise CannotFollowError(CONTROL)
        self.lines.append(line_of(frame))
        self.conditions.append(condition)
        return with_rows == (len(self.lines) - 1 != self.other)


def truth_with_rows(tensor: Tensor) -> bool | None:
    """What a truth value says where a mask is true somewhere; None where it is no such condition."""
    mode = get_proxy_mode()
    made = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    found = None if made is None else mask_of(made.proxy.node)
    return None if found is None else found[1]


def mask_of(node: Node) -> tuple[Node, bool] | None:
    """The mask that a truth value asks for rows, and what it is where there are any."""
    called: Any = node.target
    first: Any = node.args[0] if node.args else None
    if called in COPYING and isinstance(first, Node):
        return mask_of(first)
    if called in INVERSES and isinstance(first, Node):
        found = mask_of(first)
        return None if found is None else (found[0], not found[1])
    if called in ANY_OF_ALL and _is_mask(first):
        return first, True
    if called in COMPARED and isinstance(node.args[1], int | float):
        mask, truth = counted(first), COMPARED[called]
        says = {truth(many, node.args[1]) for many in (*FEW, sys.maxsize)}
        if mask is None or len(says) != 1 or truth(0, node.args[1]) in says:
            return None
        return mask, says.pop()
    mask = counted(node)
    return None if mask is None else (mask, True)


def counted(node: Any) -> Node | None:
    """The mask whose true elements this counts."""
    if not isinstance(node, Node) or not node.args or not isinstance(node.args[0], Node):
        return None
    if node.target in COPYING:
        return counted(node.args[0])
    if node.target not in NUMBER_OF_TRUE:
        return None
    mask: Any = node.args[0]
    while mask.target in COPYING and not _is_mask(mask):
        mask = mask.args[0]
    return mask if _is_mask(mask) else None


def _is_mask(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.dtype is torch.bool


@contextmanager
def lengths_of_many(ways: Ways) -> Iterator[None]:
    """Meanwhile the user's conditions on whether a mask picks rows, by their number, are answered."""

    def told(own: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def truth(condition: Any) -> bool:
            frame = sys._getframe(2)  # `replaced` is between
            many = truth_of_many(condition.node.expr)
            if many is None or is_library(frame.f_code.co_filename) or not _asks_for_rows(condition.node.expr, many):
                return own(condition)
            (symbol,) = condition.node.expr.free_symbols
            return ways.answer(frame, condition.node.shape_env.create_symintnode(symbol, hint=None), many)

        return truth

    bools: Callable[[Any], bool] = SymBool.__bool__
    numbers: Callable[[Any], bool] = SymInt.__bool__
    with replaced(SymBool, "__bool__", told(bools)), replaced(SymInt, "__bool__", told(numbers)):
        yield


def _asks_for_rows(expression: Any, many: bool) -> bool:
    """Whether it is one thing of no rows, and another of any number of them."""
    (symbol,) = expression.free_symbols
    return bool(expression.subs({symbol: 0})) != many and all(
        bool(expression.subs({symbol: number})) == many for number in FEW)
