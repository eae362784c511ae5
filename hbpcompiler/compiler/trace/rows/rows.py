"""Rows that a mask picks, as all rows and the mask, and how they are written into a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.fx_graph.alike_nodes import AlikeNodes
from hbpcompiler.compiler.trace.fx_graph.by_name import in_order
from hbpcompiler.rules.shared.torch_operations import (
    ANY,
    AT_LEAST,
    BELOW,
    BOTH,
    CLASS,
    COLUMN,
    EXPAND,
    FLATTEN,
    LONGER,
    PERMUTE,
    PRODUCT,
    RATIO,
    RUNNING_SUM,
    SAME,
    SIZE,
    SUM,
    SUM_ALONG,
    TOTAL,
    VIEW,
    WHERE,
    WHERE_OR_NUMBER,
)

BINDINGS = "unbacked_bindings"
"""By what torch knows a number of rows, of which what is written here has none."""
HARMLESS = 0.5
"""Stands where nothing is picked: roots, logarithms and quotients of it are finite, as are their derivatives."""


class NotWholeError(Exception):
    """What only the number of picked rows could say."""


@dataclass(frozen=True)
class Rows:
    """[u, *z] = whole[mask], where `whole` is [*m, *z] and the mask [*m]."""

    whole: Node
    mask: Node
    picked_by: Node
    """The mask as the user's code has it; `mask` may be that with its axes as one, or one of elements."""
    given: Node | None = None
    """What they were picked from, if nothing has happened to them since."""
    outside: float | None = None
    """The number that stands where nothing is picked, if it is known."""

    @property
    def lead(self) -> int:
        """How many axes the mask has."""
        return len(shape_of(self.mask))

    @property
    def is_truth(self) -> bool:
        """Whether each row is one truth value."""
        return self.is_of_truth and not self.beside

    @property
    def is_of_truth(self) -> bool:
        """Whether rows are of truth values."""
        return bool(self.whole.meta["val"].dtype is torch.bool)

    @property
    def beside(self) -> tuple[Any, ...]:
        """The shape of a row."""
        return shape_of(self.whole)[self.lead :]


@dataclass(frozen=True)
class OneBefore:
    """[1, u, *z]: rows behind an axis of length one."""

    rows: Rows


def shape_of(node: Node) -> tuple[Any, ...]:
    """Of a node's value."""
    return tuple(node.meta["val"].shape)


def are_alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether shapes are the same but for the batch's size, which inputs and targets share under different symbols."""
    return len(one) == len(other) and all(
        statically_known_true(length == own) for length, own in zip(one, other, strict=True)
        if isinstance(length, int) or isinstance(own, int))


class Writer:
    """Writes operations into a graph, with their shapes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.meta: dict[str, Any] = {}
        """Of the operation that is being written anew."""
        self.written: dict[tuple[Any, ...], Node] = {}
        self.alike = AlikeNodes()

    @property
    def numbers(self) -> Mapping[Node, int]:
        """The same for nodes that compute the same."""
        return self.alike.numbers

    def call(self, called: Any, *arguments: Any, **named: Any) -> Node:
        """An operation on nodes of the graph. Raises NotWholeError where torch cannot say its shape."""
        value = self._value(called, arguments, named)
        node = self.graph.call_function(called, arguments, named)
        node.meta = {name: item for name, item in self.meta.items() if name != BINDINGS} | {"val": value}
        return self.alike.enter(node)

    def called(self, called: Any, given: Mapping[str, Any]) -> Node:
        """The same with arguments by name."""
        values, named = in_order(called, given)
        return self.call(called, *values, **named)

    def once(self, called: Any, *arguments: Any) -> Node:
        """The same, written once."""
        key = called, *map(str, arguments)
        if key not in self.written:
            self.written[key] = self.call(called, *arguments)
        return self.written[key]

    def _value(self, called: Any, arguments: Any, named: Any) -> Any:
        given, options = pytree.tree_map_only(Node, lambda node: node.meta["val"], (arguments, named))
        mode = detect_fake_mode(pytree.tree_leaves((given, options, self.meta.get("val"))))
        environment = getattr(mode, "shape_env", None)
        try:
            with mode or nullcontext(), nullcontext() if environment is None else environment.suppress_guards(), \
                    enable_python_dispatcher():
                return called(*given, **options)
        except Exception as error:  # whatever torch says of shapes that do not fit
            raise NotWholeError from error

    # -- masks -----------------------------------------------------------------------------------------------------

    def count(self, mask: Node) -> Node:
        """How many rows the mask picks."""
        return self.once(SUM, mask)

    def beside(self, rows: Rows) -> Node:
        """The mask with axes of length one for what is in a row."""
        mask = rows.mask
        for _ in rows.beside:
            mask = self.once(LONGER, mask, -1)
        return mask

    # -- rows ------------------------------------------------------------------------------------------------------

    def picked(self, values: Node, mask: Node, axes: Sequence[int]) -> Rows:
        """values[places], where these are the mask's along some of its axes. Real numbers where nothing is picked are
        HARMLESS, for NaN times zero is NaN."""
        whole = self._beside_mask(values, mask, axes)
        rows = Rows(whole, mask, mask, whole)
        return self.with_outside(rows, HARMLESS) if is_real(rows) else rows

    def _beside_mask(self, values: Node, mask: Node, axes: Sequence[int]) -> Node:
        """[*m, *z] of values [*(m[axis] for axis in axes), *z]: the same along the other axes of the mask [*m]."""
        if not are_alike(shape_of(values)[: len(axes)], [shape_of(mask)[axis] for axis in axes]):
            raise NotWholeError
        lead, behind = len(shape_of(mask)), range(len(axes), len(shape_of(values)))
        if list(axes) != sorted(axes):
            values = self.once(PERMUTE, values, [*sorted(range(len(axes)), key=axes.__getitem__), *behind])
        if len(axes) == lead:
            return values
        for axis in sorted({*range(lead)} - {*axes}):
            values = self.once(LONGER, values, axis)
        lengths = [self.once(SIZE, mask, axis) for axis in range(lead)]
        return self.once(EXPAND, values, [*lengths, *(-1 for _ in behind)])

    def with_outside(self, rows: Rows, number: float) -> Rows:
        """The same, with this number where nothing is picked."""
        if rows.outside == number:
            return rows
        given = rows if rows.given is None else replace(rows, whole=rows.given)
        return replace(rows, whole=self.put_elsewhere(given, number, once=True), outside=number)

    def put_elsewhere(self, rows: Rows, number: float, once: bool = False) -> Node:
        """All rows, with this number where nothing is picked."""
        write = self.once if once else self.call
        return write(WHERE_OR_NUMBER, self.beside(rows), rows.whole, number)

    def flattened(self, rows: Rows) -> Rows:
        """The same with one axis for the mask's."""
        last = rows.lead - 1
        if not last:
            return rows
        given = None if rows.given is None else self.once(FLATTEN, rows.given, 0, last)
        return replace(rows, whole=self.once(FLATTEN, rows.whole, 0, last), mask=self.once(FLATTEN, rows.mask, 0, last),
                       given=given)

    def joined(self, rows: Rows, axes: int) -> Rows:
        """[u * a, *z] of rows [u, *a, *z]: so many axes of a row are rows of their own."""
        lengths, whole, mask = rows.beside[:axes], rows.whole, rows.mask
        if set(lengths) <= {1}:
            for _ in lengths:
                whole = self.call(COLUMN, whole, rows.lead, 0)
            return replace(rows, whole=whole, given=None)
        sizes = [self.once(SIZE, mask, axis) for axis in range(rows.lead)]
        for _ in lengths:
            mask = self.once(LONGER, mask, -1)
        mask = self.once(EXPAND, mask, [*sizes, *lengths])
        return Rows(whole, mask, mask, rows.given)

    def picked_again(self, rows: Rows, chosen: Rows) -> Rows:
        """rows[chosen], of truth values for the same rows."""
        if rows.lead != chosen.lead:
            rows, chosen = self.flattened(rows), self.flattened(chosen)
        mask = self.once(BOTH, rows.mask, chosen.whole)
        return self.picked(rows.whole, mask, range(rows.lead))

    def of_classes(self, rows: Rows, classes: Rows) -> Rows:
        """[u]: of each row [C] the number of its class, which may be counted from behind."""
        if rows.lead != classes.lead:
            rows, classes = self.flattened(rows), self.flattened(classes)
        if len(rows.beside) != 1 or classes.beside:
            raise NotWholeError
        place = self.with_outside(classes, 0).whole
        behind = self.call(WHERE, self.call(BELOW, place, 0), self.call(TOTAL, place, rows.beside[0]), place)
        found = self.call(CLASS, rows.whole, rows.lead, self.call(LONGER, behind, -1))
        return replace(rows, whole=self.call(COLUMN, found, -1, 0), given=None, outside=None)

    def as_picked(self, rows: Rows) -> Node:
        """All rows with the axes of the mask by which they were picked."""
        if rows.lead == len(shape_of(rows.picked_by)):
            return rows.whole
        sizes = [self.once(SIZE, rows.picked_by, axis) for axis in range(len(shape_of(rows.picked_by)))]
        return self.call(VIEW, rows.whole, [*sizes, *rows.beside])

    def put_back(self, base: Node, rows: Rows, axes: Sequence[int], adds: bool) -> Node:
        """base[places] = rows or += rows, where the places are the mask's along these of its axes."""
        others = sorted({*range(rows.lead)} - {*axes})
        if not others and not adds and are_alike(shape_of(rows.whole), shape_of(base)):
            return self.call(WHERE, self.beside(rows), rows.whole, base)
        if others and not adds:
            rows = replace(rows, mask=self._last_true(rows.mask, others))
        put = self.put_elsewhere(rows, 0)
        there = rows.mask
        if others:
            put, there = self.call(SUM_ALONG, put, others), self.once(ANY, there, others)
        if list(axes) != sorted(axes):
            kept = sorted(axes)
            order = [kept.index(axis) for axis in axes]
            put = self.call(PERMUTE, put, [*order, *range(len(axes), len(shape_of(put)))])
            there = self.once(PERMUTE, there, order)
        if not are_alike(shape_of(put), shape_of(base)):
            raise NotWholeError
        if adds:
            return self.call(TOTAL, base, put)
        return self.call(WHERE, self.beside(Rows(put, there, there)), put, base)

    def _last_true(self, mask: Node, along: Sequence[int]) -> Node:
        """Where a place is named more than once the last row stays."""
        if len(along) != 1:
            raise NotWholeError
        so_far, all_of_them = self.once(RUNNING_SUM, mask, *along), self.once(SUM_ALONG, mask, [*along], True)
        return self.once(BOTH, mask, self.once(SAME, so_far, all_of_them))

    def total(self, rows: Rows, mean: bool, along: Sequence[int] | None = None, keep: bool = False, *,
              zero_of_none: bool = False) -> Node:
        """The sum or the mean of all elements, or `along` these axes of the rows, the first among them; of no rows
        the mean is NaN, or zero."""
        if along is None:
            total = self.call(SUM, self.put_elsewhere(rows, 0))
            summed = rows.beside
        else:
            rows = self.flattened(rows)
            total = self.call(SUM_ALONG, self.put_elsewhere(rows, 0), list(along), keep)
            summed = tuple(rows.beside[axis - 1] for axis in along if axis)
        if not mean:
            return total
        number, others = self.count(rows.mask), prod(summed)
        if zero_of_none:
            number = self.once(AT_LEAST, number, 1)
        return self.call(RATIO, total, number if others == 1 else self.call(PRODUCT, number, others))


def is_real(rows: Rows) -> bool:
    """Whether their numbers are floating-point ones."""
    value = rows.whole.meta["val"]
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
