"""What a graph comes to where masks pick nothing.

Operations become forms, equal ones of which compute the same of the same. Of a mask that is all false it is known what
follows: the rows that it picks are EMPTY, what is put back of them changes nothing, their sum is zero. Two graphs with
equal forms of all that they put out are one function there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.by_name import given_to, names_of
from hbpcompiler.compiler.trace.labelled_rows import MEAN, NONE, SUMMED
from hbpcompiler.compiler.trace.ways import counted
from hbpcompiler.rules.shared.torch_operations import (
    ADDITIONS,
    BOTH_TRUE,
    COPYING,
    FILLS,
    KEEPS_ZERO,
    PICKS,
    PRODUCTS,
    PUTS,
    RATIO,
    SCATTERS,
    SUMS,
    TRUE_PLACES,
    WHERE,
    ZEROS,
)

Form = Any
"""EMPTY, FALSE, ("zero", shape, type), or the number of an operation on forms."""
EMPTY, FALSE = "empty", "false everywhere"


class Numbers:
    """Of what computes the same of the same, in all graphs that are compared."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def of(self, key: Any) -> int:
        return self._known.setdefault(key, len(self._known))


class Forms:
    """Of a graph's nodes."""

    def __init__(self, graph: Graph, numbers: Numbers, inputs: Mapping[str, Form], false: Collection[Any] = (),
                 none: Collection[Any] = (), *,
                 plain: Mapping[Node, Form] | None = None) -> None:
        """`inputs`: of placeholders whose names say nothing, by name; `false`: masks that are all false, as nodes and
        as forms; `none`: symbols of lengths that are 0. `plain`: forms without these; a mean of what such a mask itself
        picks is then zero, and is among `zero_means`, as is a sum over their number."""
        self.of: dict[Node, Form] = {}
        self._numbers, self._inputs, self._false, self._plain = numbers, inputs, false, plain
        self._lengths: dict[Any, Any] = dict.fromkeys(none, 0)
        """By symbol: 0, or a symbol named by what picks so many, which graphs have in common."""
        self._drawn: dict[Form, int] = {}
        self._pickers: dict[Any, Node] = {}
        """By symbol: what picks so many."""
        self.zero_means: set[Node] = set()
        for node in graph.nodes:
            if node.op != "output":
                form = self._form(node)
                self.of[node] = FALSE if node in false or form in false else form

    def outputs(self, nodes: Collection[Any]) -> list[Form]:
        """Of what a graph puts out."""
        return [self._written(node) for node in nodes]

    def _form(self, node: Node) -> Form:
        if node.op == "placeholder":
            return self._inputs.get(node.name) or self._numbers.of(("input", node.name))
        if node.op != "call_function":
            return self._numbers.of(node)
        called: Any = node.target
        if called in PICKS | TRUE_PLACES:
            self._name_lengths(node)
        if self._is_empty(node):
            return EMPTY
        if not isinstance(node.meta.get("val"), Tensor):
            return self._itself(node)
        if called in ZEROS:
            return self._zero(node)
        if called in COPYING and self._is_like(node, node.args[0]):
            return self._written(node.args[0])
        if called in ADDITIONS:
            return self._of_sum(node, called)
        found = self._of_nothing(node, called)
        return self._itself(node) if found is None else found

    def _itself(self, node: Node) -> Form:
        """The operation of these arguments; each random draw is one of its own."""
        form = self._numbers.of((str(node.target), self._given(node)))
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            self._drawn[form] = self._drawn.get(form, 0) + 1
            return self._numbers.of((form, self._drawn[form]))
        return form

    # -- what follows from nothing ------------------------------------------------------------------------------------

    def _of_sum(self, node: Node, called: Any) -> Form:
        """x + 0, x - 0 and 0 + x are x."""
        left, right = node.args
        if self._is_zero(right) and self._is_like(node, left):
            return self._written(left)
        if self._is_zero(left) and ADDITIONS[called] and self._is_like(node, right) and not node.kwargs:
            return self._written(right)
        return self._itself(node)

    def _of_nothing(self, node: Node, called: Any) -> Form | None:
        """Where EMPTY, FALSE or zero is read; None where nothing special follows."""
        first, *others = [self._written(item) for item in node.args] or [None]
        if called is WHERE and first == FALSE and self._is_like(node, node.args[2]):
            return others[1]
        if called in FILLS and others[0] == FALSE:
            return first
        if called in PUTS and any(part in (EMPTY, FALSE) for part in [*others, *_parts(others[0])]):
            return first
        if called in SCATTERS and EMPTY in others:
            return first
        if first == EMPTY and (reduction := self._reduction(node)) in (MEAN, SUMMED):
            if reduction == SUMMED:
                return self._zero(node)
            if self._is_of_the_mask(node.args[0]):
                self.zero_means.add(node)
                return self._zero(node)
        if called in BOTH_TRUE and FALSE in (first, *others):
            return FALSE
        if called in KEEPS_ZERO and self._is_zero(node.args[0]):
            return FALSE if first == FALSE and node.meta["val"].dtype is torch.bool else self._zero(node)
        if called in PRODUCTS and any(map(self._is_zero, node.args)):
            return self._zero(node)
        if called is RATIO and self._is_zero(node.args[0]):
            return self._of_ratio(node)
        return None

    def _of_ratio(self, node: Node) -> Form | None:
        """Zero, by a number or by how many rows there are."""
        if not self._is_zero(node.args[1]):
            return self._zero(node)
        divisor: Any = node.args[1]
        mask = counted(divisor)
        by_count = mask is not None and self._plain is not None and self._plain[mask] in self._false
        if not by_count and not self._is_of_the_mask(divisor):
            return None
        self.zero_means.add(node)
        return self._zero(node)

    def _is_zero(self, item: Any) -> bool:
        if isinstance(item, Node) and isinstance(item.meta.get("val"), Tensor):
            form = self.of[item]
            return form == FALSE or (isinstance(form, tuple) and form[0] == "zero")
        item = self._written(item)
        return isinstance(item, int | float) and item == 0

    def _zero(self, node: Node) -> Form:
        value = node.meta["val"]
        return "zero", self._written(tuple(value.shape)), str(value.dtype)

    def _is_like(self, node: Node, other: Any) -> bool:
        """Whether it has this node's shape and type."""
        if not isinstance(other, Node) or not isinstance(other.meta.get("val"), Tensor):
            return False
        mine, its = node.meta["val"], other.meta["val"]
        return mine.dtype == its.dtype and self._written(tuple(mine.shape)) == self._written(tuple(its.shape))

    @staticmethod
    def _reduction(node: Node) -> int:
        """How an operation, or a loss function of torch's, adds up."""
        if node.target in SUMS:
            return MEAN if SUMS[node.target] else SUMMED
        return given_to(node).get("reduction", MEAN) if "reduction" in names_of(node.target) else NONE

    def _is_of_the_mask(self, rows: Any) -> bool:
        """Whether they, or their number, are what a mask picks that is known to be all false itself."""
        symbols = free_unbacked_symbols(rows.meta["val"]) if isinstance(rows, Node) else ()
        return bool(symbols) and self._plain is not None and all(
            self._plain[self._pickers[symbol]] in self._false for symbol in symbols)

    # -- lengths and arguments ----------------------------------------------------------------------------------------

    def _name_lengths(self, node: Node) -> None:
        """The number of rows is 0, or is called by what picks them."""
        chosen = node.all_input_nodes[1:] or node.all_input_nodes
        by_nothing = any(self.of[read] in (EMPTY, FALSE) for read in chosen)
        for value in pytree.tree_leaves(node.meta["val"]):
            for symbol in free_unbacked_symbols(value) - self._lengths.keys():
                named = sympy.Symbol(f"rows_of_{self._itself(node)}", integer=True)
                self._lengths[symbol] = 0 if by_nothing else named
            for symbol in free_unbacked_symbols(value):
                self._pickers.setdefault(symbol, chosen[0])

    def _is_empty(self, node: Node) -> bool:
        leaves = pytree.tree_leaves(node.meta.get("val"))
        return bool(leaves) and all(isinstance(value, Tensor) and 0 in self._written(tuple(value.shape))
                                    for value in leaves)

    def _given(self, node: Node) -> Form:
        named = tuple((name, self._written(value)) for name, value in sorted(node.kwargs.items()))
        return tuple(map(self._written, node.args)), named

    def _written(self, item: Any) -> Any:
        """An argument, or a shape."""
        if isinstance(item, Node):
            value = item.meta.get("val")
            return self._written(value) if isinstance(value, torch.SymInt) else self.of[item]
        if isinstance(item, list | tuple):
            return tuple(map(self._written, item))
        if isinstance(item, torch.SymInt):
            found = item.node.expr.subs(self._lengths)
            return int(found) if found.is_number else str(found)
        return item if isinstance(item, int) and not isinstance(item, bool) else (type(item).__name__, str(item))


def _parts(chosen: Any) -> tuple[Any, ...]:
    return chosen if isinstance(chosen, tuple) else ()
