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
from typing import Any, NamedTuple

import sympy
import torch
from torch import SymBool, SymInt, Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.fx_graph.alike_nodes import AlikeNodes
from hbpcompiler.compiler.trace.patches.many_rows import truth_of_many
from hbpcompiler.compiler.trace.patches.replaced import replaced
from hbpcompiler.compiler.trace.refusals.refusals import CONTROL, CannotFollowError, line_of
from hbpcompiler.compiler.trace.source.source import is_library
from hbpcompiler.rules.shared.torch_operations import (
    ALL_OF_ALL,
    ANY_OF_ALL,
    COMPARED,
    COPYING,
    INVERSES,
    ITEMS,
    KEEPS_NUMBERS,
    NUMBER_OF_TRUE,
    PARTS,
    PICKS,
    PRODUCTS,
    SUMS,
    TRUE_PLACES,
)

MOST = 128
"""Masks that one model asks for rows; a loop that goes on while there are some would never end."""
FEW = (1, 2, 3)
"""Numbers of rows, of which a condition has to say the same as of many."""
SHARES = (1e-12, 0.5, 1.0)
"""What part of all elements a mask may pick, if any."""
NUMBERS = (torch.int64, torch.float32, torch.float64)
"""Types that a count of rows does not overflow."""


class Asked(NamedTuple):
    """What a condition asks for rows: the true elements of a mask, or the false ones."""

    mask: Node
    inverted: bool = False


@dataclass
class Ways:
    """The masks that a trace is asked whether they pick rows, in the order in which it meets them first."""

    empty: Callable[[int], bool] = lambda number: False
    """Which of them pick nothing."""
    lines: list[str] = field(default_factory=list)
    """file:line: code."""
    conditions: list[Tensor | SymInt] = field(default_factory=list)
    """What says whether there are rows: a truth value of a mask, or the length."""
    asked: dict[str, str] = field(default_factory=dict)
    """What the batch was asked beside its numbers, see `asked`."""
    _known: dict[tuple[int, bool], int] = field(default_factory=dict)
    """By the number of what computes a mask, and whether it is inverted: its place."""

    def begin(self) -> None:
        """A run of the model."""
        self.lines.clear()
        self.conditions.clear()
        self._known.clear()

    def answer(self, frame: FrameType, asked: Asked, condition: Tensor | SymInt, with_rows: bool) -> bool:
        """Which way this trace goes: the same wherever it is asked for one mask."""
        computed = _number_of(asked.mask), asked.inverted
        if computed not in self._known:
            if len(self.lines) == MOST:
                raise CannotFollowError(CONTROL)
            self._known[computed] = len(self.lines)
            self.lines.append(line_of(frame))
            self.conditions.append(condition)
        return with_rows != self.empty(self._known[computed])

    @property
    def contradicts(self) -> bool:
        """Whether neither a mask nor its inverse picks rows: of such a batch there is none."""
        return any((number, not inverted) in self._known and self.empty(place)
                   and self.empty(self._known[number, not inverted])
                   for (number, inverted), place in self._known.items())

    @property
    def empties(self) -> list[bool]:
        """Of each that was met."""
        return [self.empty(number) for number in range(len(self.lines))]


def _number_of(mask: Node) -> int:
    """The same for masks that compute the same."""
    alike = AlikeNodes()
    for node in mask.graph.nodes:
        alike.enter(node)
    return alike.numbers[mask]


def asked_by(tensor: Tensor) -> tuple[Asked, bool] | None:
    """What a truth value asks for rows, and what it says where there are some; None: it is another condition."""
    mode = get_proxy_mode()
    made = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return None if made is None else asked_of(made.proxy.node)


def asked_of(node: Node) -> tuple[Asked, bool] | None:
    """The same of a node."""
    called: Any = node.target
    first: Any = node.args[0] if node.args else None
    if called in COPYING and isinstance(first, Node):
        return asked_of(first)
    if called in INVERSES and isinstance(first, Node) and _is_mask(node):
        found = asked_of(first)
        return None if found is None else (found[0], not found[1])
    if called in ANY_OF_ALL and _is_mask(first):
        return itself(first), True
    if called in ALL_OF_ALL and _is_mask(first):
        mask, inverted = itself(first)
        return Asked(mask, not inverted), False
    if called in PARTS:
        part = _is_one_of_rows(node)
        return None if part is None else (part[0], True)
    if called in COMPARED and isinstance(node.args[1], int | float) and (number := _is_one_of_rows(first)):
        asked, with_rows, without = number
        truth = COMPARED[called]
        says = {truth(amount, node.args[1]) for amount in with_rows}
        return None if len(says) != 1 or truth(without, node.args[1]) in says else (asked, says.pop())
    if called in COMPARED and isinstance(node.args[1], int | float):
        counts, truth = counted(first), COMPARED[called]
        says = {truth(many, node.args[1]) for many in (*FEW, sys.maxsize)}
        if counts is None or len(says) != 1 or truth(0, node.args[1]) in says:
            return None
        return itself(counts), says.pop()
    counts = counted(node)
    return None if counts is None else (itself(counts), True)


def _is_one_of_rows(node: Any) -> tuple[Asked, tuple[float, ...], float] | None:
    """Of a truth that asks for rows, or the mean or largest of a mask's numbers: what it asks, what it may be where
    there are rows, and what it is without."""
    if isinstance(node, Node) and node.target in PARTS:
        overflows = PARTS[node.target] and node.meta["val"].dtype not in NUMBERS
        mask: Any = node.args[0] if len(node.args) == 1 and not overflows else None
        while isinstance(mask, Node) and mask.target in COPYING and not _is_mask(mask):
            mask = mask.args[0]
        return (itself(mask), SHARES if PARTS[node.target] else (1.0,), 0.0) if _is_mask(mask) else None
    found = asked_of(node) if _is_mask(node) else None
    return None if found is None else (found[0], (float(found[1]),), float(not found[1]))


def itself(mask: Node) -> Asked:
    """A mask, or what it is the inverse of."""
    first: Any = mask.args[0] if mask.args else None
    if mask.target in INVERSES | COPYING and _is_mask(first):
        found, inverted = itself(first)
        return Asked(found, inverted != (mask.target in INVERSES))
    return Asked(mask)


def counted(node: Any) -> Node | None:
    """The mask whose true elements this counts."""
    if not isinstance(node, Node) or not node.args or not isinstance(node.args[0], Node):
        return None
    if node.target in ITEMS:
        return counted(node.args[0])
    if getattr(node.meta.get("val"), "dtype", None) not in NUMBERS:
        return None
    if node.target in COPYING:
        return counted(node.args[0])
    if node.target not in NUMBER_OF_TRUE or len(node.args) > 1:
        return None
    mask: Any = node.args[0]
    while mask.target in COPYING and not _is_mask(mask):
        mask = mask.args[0]
    return mask if _is_mask(mask) else None


def factors_of_sum(node: Any) -> Iterator[Node]:
    """What a sum of products, or a number times one, has as factors, masks and weights, as far as they are nodes."""
    while isinstance(node, Node) and node.target in PRODUCTS and isinstance(node.args[1], int | float):
        node = node.args[0]
    waiting: list[Any] = [node.args[0]] if isinstance(node, Node) and node.target in SUMS else []
    while waiting:
        factor = waiting.pop()
        if isinstance(factor, Node):
            yield factor
            waiting += factor.args if factor.target in KEEPS_NUMBERS | PRODUCTS else ()


def _is_mask(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, Tensor) and value.dtype is torch.bool


@contextmanager
def lengths_of_many(ways: Ways) -> Iterator[None]:
    """Meanwhile the user's conditions on whether a mask picks rows, by their number, are answered."""

    def told(own: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def truth(condition: Any) -> bool:
            frame, expression = sys._getframe(2), condition.node.expr  # `replaced` is between
            many = None if is_library(frame.f_code.co_filename) else truth_of_many(expression)
            asked = asked_of_length(expression) if many is not None and _asks_for_rows(expression, many) else None
            if many is None or asked is None:
                return own(condition)
            (symbol,) = expression.free_symbols
            return ways.answer(frame, asked, condition.node.shape_env.create_symintnode(symbol, hint=None), many)

        return truth

    bools: Callable[[Any], bool] = SymBool.__bool__
    numbers: Callable[[Any], bool] = SymInt.__bool__
    with replaced(SymBool, "__bool__", told(bools)), replaced(SymInt, "__bool__", told(numbers)):
        yield


def asked_of_length(expression: Any, graph: Graph | None = None) -> Asked | None:
    """What picks as many rows as the one symbol of a length says, or what .item() of a count counts."""
    mode = get_proxy_mode()
    graph = mode.tracer.graph if graph is None and mode is not None else graph
    for node in () if graph is None else graph.nodes:
        leaves = pytree.tree_leaves(node.meta.get("val")) if node.target in PICKS | TRUE_PLACES | ITEMS else ()
        if not any(free_unbacked_symbols(leaf) & expression.free_symbols for leaf in leaves):
            continue
        if node.target in ITEMS:
            counts = counted(node.args[0])
            return None if counts is None else itself(counts)
        masks = [read for read in node.all_input_nodes[1:] or node.all_input_nodes if _is_mask(read)]
        return itself(masks[0]) if len(masks) == 1 else None
    return None


def _asks_for_rows(expression: Any, many: bool) -> bool:
    """Whether it is one thing of no rows, and another of any number of them: it compares, and is linear in that."""
    (symbol,) = expression.free_symbols
    sides = [part for part in (expression.args if expression.is_Relational else [expression]) if part.has(symbol)]
    linear = all(isinstance(part, sympy.Expr) and part.is_polynomial(symbol) and sympy.degree(part, symbol) == 1
                 for part in sides)
    return linear and bool(expression.subs({symbol: 0})) != many and all(
        bool(expression.subs({symbol: number})) == many for number in FEW)
