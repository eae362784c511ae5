"""What torch's own code asks about how many rows a mask picks: whether there is one, which would be broadcast, or none,
of which nothing is to be computed.

What torch's operations mean is the same whatever shortcut they take for few rows, so that they are told that there are
many. What the user's code asks, or makes of such a condition, is not answered here (see `ways`).
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import SymBool
from torch.fx.experimental import sym_node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv, free_unbacked_symbols

from hbpcompiler.compiler.trace.patches.replaced import replaced
from hbpcompiler.compiler.trace.source.source import is_library
from hbpcompiler.rules.shared.torch_operations import PICKS, TRUE_PLACES

MANY = (2**20 + 7, 2**20 + 10)
"""Numbers of rows, odd and even, as far as a condition on them asks."""
BETWEEN = (torch.__file__, sym_node.__file__, f"{Path(__file__).parents[1]}{os.sep}")
"""Files, and the folder of files, between a condition and the code that writes it."""


def truth_of_many(expression: Any) -> bool | None:
    """What a condition on one mask's rows is for many; None where it is about more, or their exact number."""
    symbols = expression.free_symbols
    if len(symbols) != 1 or symbols != free_unbacked_symbols(expression):
        return None
    found = {bool(expression.subs(dict.fromkeys(symbols, many))) for many in MANY}
    return found.pop() if len(found) == 1 else None


@contextmanager
def shortcuts_not_taken() -> Iterator[None]:
    """Meanwhile torch's own code goes the way of many rows where it could not go on otherwise."""
    users: dict[int, Any] = {}
    lengths: dict[ShapeEnv, set[Any]] = defaultdict(set)
    makes: Callable[..., None] = SymBool.__init__
    names: Callable[..., Any] = ShapeEnv.create_unbacked_symint
    asks: Callable[..., Any] = ShapeEnv.evaluate_sym_node

    def made(condition: SymBool, node: Any) -> None:
        makes(condition, node)
        if not is_library(_writer_of(sys._getframe(1)).f_code.co_filename):
            users[id(node)] = node

    def named(environment: ShapeEnv, *given: Any, **options: Any) -> Any:
        """A symbol for what only values say: that of a length, or of a number that .item() makes."""
        symbol = names(environment, *given, **options)
        if sys._getframe(2).f_locals.get("func") in PICKS | TRUE_PLACES:  # `replaced` is between
            lengths[environment].add(symbol.node.expr)
        return symbol

    def answered(environment: ShapeEnv, node: Any, *given: Any, **options: Any) -> Any:
        try:
            return asks(environment, node, *given, **options)
        except GuardOnDataDependentSymNode:
            if id(node) in users or not node.is_bool() or not node.expr.free_symbols <= lengths[environment]:
                raise
            found = truth_of_many(node.expr)
            if found is None:
                raise
            return found

    with replaced(SymBool, "__init__", made), replaced(ShapeEnv, "create_unbacked_symint", named), \
            replaced(ShapeEnv, "evaluate_sym_node", answered):
        yield


def _writer_of(frame: FrameType) -> FrameType:
    """The frame whose code wrote a condition."""
    while frame.f_code.co_filename.startswith(BETWEEN) and frame.f_back is not None:
        frame = frame.f_back
    return frame
