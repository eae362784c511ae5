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

from hbpcompiler.compiler.trace.conditions.ways import counted
from hbpcompiler.compiler.trace.fx_graph.by_name import chosen_by, given_to, names_of
from hbpcompiler.compiler.trace.rows.labelled_rows import MEAN, NONE, SUMMED
from hbpcompiler.rules.shared.torch_operations import (
    ADDITIONS,
    AT_LEAST,
    BOTH_TRUE,
    COPYING,
    DETACH,
    FILLS,
    KEEPS_ZERO,
    MAY_BE_INFINITE,
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
"""(EMPTY, shape), (FALSE, shape), (ZERO, shape, type), or the name of an operation on forms."""
EMPTY, FALSE, ZERO = "empty", "false", "zero"


class Numbers:
    """Of what computes the same of the same, in all graphs that are compared."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def of(self, key: Any) -> str:
        """No number that a graph may have as an argument."""
        return f"#{self._known.setdefault(key, len(self._known))}"


class Forms:
    """Of a graph's nodes."""

    def __init__(self, graph: Graph, numbers: Numbers, inputs: Mapping[str, Form], false: Collection[Any] = (), *,
                 zero_means: bool = False) -> None:
        """`inputs`: of placeholders whose names say nothing, by name; `false`: masks that are all false, as nodes, or
        as what they would be otherwise. With `zero_means` a mean of what such a mask picks is zero, as is a sum over
        their number; `self.zero_means` holds them."""
        self.of: dict[Node, Form] = {}
        self._numbers, self._inputs, self._zeroes = numbers, inputs, zero_means
        self.false: dict[Node, Form] = {}
        """The masks that are all false by themselves, and what they would be otherwise."""
        self.zero_means: set[Node] = set()
        self._infinite: set[Node] = set()
        """What may be infinite or NaN without rows, as a number over theirs is."""
        self._lengths: dict[Any, Any] = {}
        """By symbol: 0, or a symbol named by what picks so many, which graphs have in common."""
        self._pickers: dict[Any, Node] = {}
        """By symbol: what picks so many."""
        self._drawn: dict[Form, int] = {}
        for node in graph.nodes:
            if node.op == "output":
                continue
            form = self._form(node)
            if node in false or form in false:
                self.false[node] = form
                form = self._with_shape(FALSE, node)
            self.of[node] = form

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
            return self._with_shape(EMPTY, node)
        if any(read in self._infinite for read in node.all_input_nodes) or (
                called in MAY_BE_INFINITE and any(map(self._is_zero, node.args))):
            self._infinite.add(node)
        if not isinstance(node.meta.get("val"), Tensor):
            return self._itself(node)
        if called in ZEROS:
            return self._zero(node)
        if called in COPYING - {DETACH} and self._is_like(node, node.args[0]):
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
        first, *others = node.args or [None]
        if called is WHERE and self._is(FALSE, first) and self._is_like(node, others[1]):
            return None if others[0] in self._infinite else self._written(others[1])
        if called in FILLS and self._is(FALSE, others[0]) and self._is_like(node, first):
            return self._written(first)
        if called in PUTS and self._is_chosen_by_nothing(node):
            return self._written(first)
        if called in SCATTERS and self._is(EMPTY, others[1]):
            return self._written(first)
        if self._is(EMPTY, first) and self._adds_up_to_zero(node):
            return self._zero(node)
        if called in BOTH_TRUE and any(self._is(FALSE, item) for item in node.args):
            return self._with_shape(FALSE, node)
        if called in KEEPS_ZERO and self._is_zero(first):
            is_mask = self._is(FALSE, first) and node.meta["val"].dtype is torch.bool
            return self._with_shape(FALSE, node) if is_mask else self._zero(node)
        if called in PRODUCTS and any(map(self._is_zero, node.args)) and node not in self._infinite:
            return self._zero(node)
        if called is RATIO and self._is_zero(first) and self._divides(node, others[0]):
            return self._zero(node)
        return None

    def _is_chosen_by_nothing(self, node: Node) -> bool:
        """Whether an operation that puts rows has none to put."""
        chosen: Any = chosen_by(given_to(node))
        return any(self._is(FALSE, part) or self._is(EMPTY, part)
                   for part in (chosen if isinstance(chosen, list | tuple) else [chosen]))

    def _divides(self, node: Node, divisor: Any) -> bool:
        """Whether zero over this is zero: it is a number, or is at least one; or how many rows there are."""
        if self._is_zero(divisor):
            mask = counted(divisor)
            return self._becomes_zero(node, mask in self.false or self._is_of_the_mask(divisor))
        if isinstance(divisor, Node) and isinstance(divisor.meta.get("val"), Tensor):
            least = divisor.args[1] if divisor.target is AT_LEAST and len(divisor.args) > 1 else None
            return isinstance(least, int | float) and least > 0
        return divisor not in self._infinite

    def _becomes_zero(self, node: Node, may: bool) -> bool:
        """Whether the program makes zero of what is NaN otherwise."""
        if may and self._zeroes:
            self.zero_means.add(node)
        return may and self._zeroes

    def _adds_up_to_zero(self, node: Node) -> bool:
        reduction = self._reduction(node)
        return reduction == SUMMED or (
            reduction == MEAN and self._becomes_zero(node, self._is_of_the_mask(node.args[0])))

    @staticmethod
    def _reduction(node: Node) -> int:
        """How an operation, or a loss function of torch's, adds up."""
        if node.target in SUMS:
            return MEAN if SUMS[node.target] else SUMMED
        return given_to(node).get("reduction", MEAN) if "reduction" in names_of(node.target) else NONE

    def _is_of_the_mask(self, rows: Any) -> bool:
        """Whether they, or their number, are what a mask picks that is known to be all false itself."""
        symbols = free_unbacked_symbols(rows.meta["val"]) if isinstance(rows, Node) else ()
        return bool(symbols) and all(self._pickers[symbol] in self.false for symbol in symbols)

    def _is(self, kind: str, item: Any) -> bool:
        return isinstance(item, Node) and isinstance(form := self.of[item], tuple) and form[0] == kind

    def _is_zero(self, item: Any) -> bool:
        if isinstance(item, Node) and isinstance(item.meta.get("val"), Tensor):
            return self._is(ZERO, item) or self._is(FALSE, item)
        item = self._written(item)
        return (isinstance(item, int) and item == 0) or item == ("float", "0.0")

    def _zero(self, node: Node) -> Form:
        return *self._with_shape(ZERO, node), str(node.meta["val"].dtype)

    def _with_shape(self, kind: str, node: Node) -> Form:
        leaves = pytree.tree_leaves(node.meta["val"])
        return kind, self._written([tuple(leaf.shape) for leaf in leaves])

    def _is_like(self, node: Node, other: Any) -> bool:
        """Whether it has this node's shape and type."""
        if not isinstance(other, Node) or not isinstance(other.meta.get("val"), Tensor):
            return False
        mine, its = node.meta["val"], other.meta["val"]
        return mine.dtype == its.dtype and self._written(tuple(mine.shape)) == self._written(tuple(its.shape))

    # -- lengths and arguments ----------------------------------------------------------------------------------------

    def _name_lengths(self, node: Node) -> None:
        """The number of rows is 0, or is called by what picks them."""
        chosen = node.all_input_nodes[1:] or node.all_input_nodes
        by_nothing = any(self._is(EMPTY, read) or self._is(FALSE, read) for read in chosen)
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
            return int(found) if found.is_Integer else str(found)
        return item if isinstance(item, int) and not isinstance(item, bool) else (type(item).__name__, str(item))
