"""What a graph comes to where masks pick nothing.

Operations become forms, equal ones of which compute the same of the same. Of a mask that is all false it is known what
follows: the rows that it picks are EMPTY, what is put back of them changes nothing, their sum is zero. Two graphs with
equal forms of all that they put out are one function there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.conditions.ways import Asked, counted, factors_of_sum, itself
from hbpcompiler.compiler.trace.fx_graph.by_name import chosen_by, given_to
from hbpcompiler.compiler.trace.rows.forms import EMPTY, FALSE, NOTHING, ONE, ZERO, Form, Known, Lengths, Numbers
from hbpcompiler.compiler.trace.rows.kept_zeros import keeps_zero
from hbpcompiler.compiler.trace.rows.labelled_rows import MEAN, SUMMED, reduction_of
from hbpcompiler.rules.shared.torch_operations import (
    ADDITIONS,
    AT_LEAST,
    BOTH_TRUE,
    COPYING,
    DETACH,
    FILLS,
    INVERSES,
    ITEMS,
    KEEPS_NUMBERS,
    MAY_BE_INFINITE,
    OF_VIEW,
    ONE_TRUE,
    PICKS,
    PRODUCTS,
    PUTS,
    RATIO,
    SCATTERS,
    SIDE_BY_SIDE,
    SUMS,
    TRUE_PLACES,
    WHERE,
    ZEROS,
)


class Forms:
    """Of a graph's nodes."""

    def __init__(self, graph: Graph, numbers: Numbers, inputs: Mapping[str, Form], known: Known = NOTHING, *,
                 zero_means_of: Collection[Asked] | None = None) -> None:
        """`inputs`: of placeholders whose names say nothing, by name. With `zero_means_of` a mean of what a known mask
        picks, or one of these that is false then, is zero, as is a sum over their number or weights;
        `self.zero_means` holds them, each with the mask if it is one over weights."""
        self.of: dict[Node, Form] = {}
        self._numbers, self._inputs, self._zeroes = numbers, inputs, zero_means_of
        self._false: dict[Node, Form] = {}
        """The masks that are all false by themselves, and what they would be otherwise."""
        self._true: dict[Node, Form] = {}
        self.zero_means: dict[Node, set[Node]] = {}
        self._infinite: set[Node] = set()
        """What may be infinite or NaN without rows, as a number over theirs is."""
        self._lengths = Lengths()
        self._drawn: dict[Form, int] = {}
        for node in graph.nodes:
            if node.op == "output":
                continue
            form = self._form(node)
            if node in known.false or form in known.false:
                self._false[node] = form
                form = self._with_shape(FALSE, node)
            elif node in known.true or form in known.true:
                self._true[node] = form
                form = self._all(ONE, node)
            self.of[node] = form

    def says_otherwise(self, asked: Asked) -> bool:
        """Whether what is asked for rows has none, by what is known."""
        return self._is(ONE if asked.inverted else FALSE, asked.mask)

    @property
    def met(self) -> Known:
        """What the known masks would be otherwise."""
        return Known({*self._false.values()}, {*self._true.values()})

    def outputs(self, nodes: Collection[Any]) -> list[Form]:
        return [self._written(node) for node in nodes]

    def _form(self, node: Node) -> Form:
        if node.op == "placeholder":
            return self._inputs.get(node.name) or self._numbers.of(("input", node.name))
        if node.op != "call_function":
            return self._numbers.of(node)
        called: Any = node.target
        self._name_lengths(node, called)
        if self._is_empty(node):
            return self._with_shape(EMPTY, node)
        if any(read in self._infinite for read in node.all_input_nodes) or (
                called in MAY_BE_INFINITE and any(map(self.is_zero, node.args))):
            self._infinite.add(node)
        if not isinstance(node.meta.get("val"), Tensor):
            return self._itself(node)
        if called in ZEROS:
            return self._all(ZERO, node)
        if called in COPYING - {DETACH} and self._is_like(node, node.args[0]):
            return self._written(node.args[0])
        if called in OF_VIEW and self._puts_back_what_was_there(node, OF_VIEW[called]):
            return self._written(node.args[0])
        if called in ADDITIONS:
            return self._of_sum(node, called)
        for follows in (self._of_truth, self._of_nothing):
            if (found := follows(node, called)) is not None:
                return found
        return self._itself(node)

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
        if self.is_zero(right) and self._is_like(node, left):
            return self._written(left)
        if self.is_zero(left) and ADDITIONS[called] and self._is_like(node, right) and not node.kwargs:
            return self._written(right)
        return self._itself(node)

    def _of_truth(self, node: Node, called: Any) -> Form | None:
        """Where a mask, or numbers made of one, are known; None where nothing special follows."""
        first, *others = node.args or [None]
        if called in INVERSES and node.meta["val"].dtype is torch.bool:
            return self._all(ONE, node) if self._is(FALSE, first) else \
                self._with_shape(FALSE, node) if self._is(ONE, first) else None
        if called in KEEPS_NUMBERS and self._is(ONE, first):
            return self._all(ONE, node)
        if called is WHERE and self._is(ONE, first) and self._is_like(node, others[0]):
            return None if others[1] in self._infinite else self._written(others[0])
        for one, other in ((first, others[0]), (others[0], first)) if others else ():
            unit = ONE if called in BOTH_TRUE | PRODUCTS else FALSE if called in ONE_TRUE else None
            if unit is not None and self._is(unit, one) and self._is_like(node, other):
                return self._written(other)
            if called in ONE_TRUE and self._is(ONE, one):
                return self._all(ONE, node)
        return None

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
        if self._is(EMPTY, first) and (reduction_of(node) == SUMMED or (
                reduction_of(node) == MEAN and self._becomes_zero(node, self._is_of_the_mask(first)))):
            return self._all(ZERO, node)
        if called in SUMS and (parts := self._side_by_side(node)) is not None:
            return parts
        if called in BOTH_TRUE and any(self._is(FALSE, item) for item in node.args):
            return self._with_shape(FALSE, node)
        if keeps_zero(called, others) and self.is_zero(first):
            is_mask = self._is(FALSE, first) and node.meta["val"].dtype is torch.bool
            return self._with_shape(FALSE, node) if is_mask else self._all(ZERO, node)
        if called in PRODUCTS and any(map(self.is_zero, node.args)) and node not in self._infinite:
            return self._all(ZERO, node)
        if called is RATIO and self.is_zero(first) and self._divides(node, others[0]):
            return self._all(ZERO, node)
        return None

    def _is_chosen_by_nothing(self, node: Node) -> bool:
        """Whether an operation that puts rows has none to put."""
        chosen: Any = chosen_by(given_to(node))
        return any(self._is(FALSE, part) or self._is(EMPTY, part)
                   for part in (chosen if isinstance(chosen, list | tuple) else [chosen]))

    def _puts_back_what_was_there(self, node: Node, view: Any) -> bool:
        """x with its part put into its place is x."""
        (base, part, *rest), named = self._given(node)
        return bool(part == self._numbers.of((str(view), ((base, *rest), named))))

    def _side_by_side(self, node: Node) -> Form | None:
        """The sum of all numbers laid side by side, without those that are zero: one is that number itself."""
        first: Any = node.args[0]
        alone = len(node.args) == 1 and not node.kwargs and SUMS[node.target] is False
        if not alone or not isinstance(first, Node) or first.target not in SIDE_BY_SIDE:
            return None
        parts: Any = first.args[0]
        left = [part for part in parts if not self.is_zero(part)]
        if len(left) == 1 and self._is_like(node, left[0]):
            return self._written(left[0])
        return self._numbers.of(("sum of", tuple(map(self._written, left)))) if left else self._all(ZERO, node)

    def _divides(self, node: Node, divisor: Any) -> bool:
        """Whether zero over this is zero: it is a number, or is at least one; or how many rows there are, or the sum of
        their weights."""
        if self.is_zero(divisor):
            mask = counted(divisor)
            if (mask is not None and self._is_known(mask)) or self._is_of_the_mask(divisor):
                return self._becomes_zero(node, True)
            mask = next(filter(None, map(self._mask_of, factors_of_sum(divisor))), None)
            return self._becomes_zero(node, mask is not None, mask)
        if isinstance(divisor, Node) and isinstance(divisor.meta.get("val"), Tensor):
            least = divisor.args[1] if divisor.target is AT_LEAST and len(divisor.args) > 1 else None
            return isinstance(least, int | float) and least > 0
        return divisor not in self._infinite

    def _mask_of(self, factor: Node) -> Node | None:
        """The known mask that a factor is, or whose rows it is of."""
        if self._is_of_the_mask(factor):
            (mask,) = {self._lengths.makers[symbol] for symbol in free_unbacked_symbols(factor.meta["val"])}
            return mask
        return factor if self._is_known(factor) else None

    def _is_known(self, mask: Node) -> bool:
        """Whether it is all false by itself, or is one of those asked for rows and all false then."""
        if mask.target in ONE_TRUE:
            return all(isinstance(part, Node) and self._is_known(part) for part in mask.args)
        asked = itself(mask)
        known, kind = (self._true, ONE) if asked.inverted else (self._false, FALSE)
        return asked.mask in known or (asked in (self._zeroes or ()) and self._is(kind, asked.mask))

    def _becomes_zero(self, node: Node, may: bool, mask: Node | None = None) -> bool:
        """Whether the program makes zero of what is NaN otherwise."""
        if may and self._zeroes is not None:
            self.zero_means[node] = set() if mask is None else {mask}
        return may and self._zeroes is not None

    def _is_of_the_mask(self, rows: Any) -> bool:
        """Whether they, or their number, are what a mask picks that is known to be all false itself."""
        symbols = free_unbacked_symbols(rows.meta["val"]) if isinstance(rows, Node) else ()
        return bool(symbols) and all(map(self._is_known, (self._lengths.makers[symbol] for symbol in symbols)))

    def _is(self, kind: str, item: Any) -> bool:
        return isinstance(item, Node) and isinstance(form := self.of[item], tuple) and form[0] == kind

    def is_zero(self, item: Any) -> bool:
        if isinstance(item, Node) and isinstance(item.meta.get("val"), Tensor):
            return self._is(ZERO, item) or self._is(FALSE, item)
        item = self._written(item)
        return (isinstance(item, int) and item == 0) or item == ("float", "0.0")

    def _all(self, kind: str, node: Node) -> Form:
        return *self._with_shape(kind, node), str(node.meta["val"].dtype)

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

    def _name_lengths(self, node: Node, called: Any) -> None:
        """Numbers that only values say: of rows it is known where there are none."""
        symbols = self._lengths.new_of(node)
        if not symbols:
            return
        picks = called in PICKS | TRUE_PLACES
        chosen = (picks and node.all_input_nodes[1:]) or node.all_input_nodes
        is_zero = picks and any(self._is(EMPTY, read) or self._is(FALSE, read) for read in chosen)
        is_zero |= called in ITEMS and self.is_zero(chosen[0])
        self._lengths.enter(symbols, chosen[0], self._itself(node), is_zero)

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
            return self._lengths.written(item)
        return item if isinstance(item, int) and not isinstance(item, bool) else (type(item).__name__, str(item))
