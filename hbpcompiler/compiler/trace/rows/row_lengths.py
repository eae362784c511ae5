"""How many rows masks pick, and the numbers that are made of that: u of torch's trace is mask.sum()."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.rows.places import Count, Places
from hbpcompiler.compiler.trace.rows.rows import Rows, Writer
from hbpcompiler.rules.shared.torch_operations import (
    ANY_TRUE,
    ARITHMETIC,
    CAST,
    INVERSE,
    PRODUCT,
    SIZE,
    WHERE_OR_NUMBER,
)


class Lengths:
    """Of the nodes of one graph, for which `values` stand in its copy."""

    def __init__(self, writer: Writer, values: Mapping[Node, Any]) -> None:
        self.writer, self.values = writer, values
        self.known: dict[str, Count] = {}
        """torch's symbol of a number of rows -> that number."""

    def noted(self, node: Node, found: Rows | Places) -> Rows | Places:
        """The same; the length of what stands for a node is known from here on."""
        length = pytree.tree_leaves(node.meta["val"])[0].shape[0]
        mask = found.mask if isinstance(found, Places) else found.picked_by
        self.known.setdefault(str(length), Count(self.writer.count(mask), mask))
        return found

    def mask_of(self, length: Any) -> Node | None:
        """The mask that picks so many rows; None where it is no number of rows."""
        known = self.known.get(str(length))
        return None if known is None else known.picked_by

    def number_of(self, node: Node, reads: Sequence[Any]) -> Count | None:
        """A length, or a number made of lengths; None: a condition on them."""
        called: Any = node.target
        if called is SIZE and isinstance(reads[0], Rows | Places) and node.args[1] == 0:
            self.noted(node.all_input_nodes[0], reads[0])
        if str(node.meta["val"]) in self.known:
            return self.known[str(node.meta["val"])]
        if called in ARITHMETIC and not any(read is None for read in reads):
            parts = [self.number(part) for part in node.args]
            return Count(self._calculated(called, parts))
        return None

    def _calculated(self, called: Any, parts: list[Any]) -> Node:
        """Of two numbers, one of which is a tensor; a quotient is real, as Python's is."""
        turned = not _is_tensor(parts[0])
        tensor, other = reversed(parts) if turned else parts
        if called is operator.truediv:
            tensor = self.writer.call(CAST, tensor, dtype=torch.float64)
            if turned:
                return self.writer.call(PRODUCT, self.writer.call(INVERSE, tensor), other)
        found = self.writer.call(ARITHMETIC[called], tensor, other)
        return self.writer.call(PRODUCT, found, -1) if turned and called is operator.sub else found

    def number(self, part: Any, dtype: torch.dtype | None = None) -> Any:
        """What stands for an argument: of a number its tensor; a real one is of this type, if one is given."""
        found = self.values[part] if isinstance(part, Node) else part
        if not isinstance(found, Count):
            return found
        own = found.number.meta["val"].dtype
        if dtype is None or not own.is_floating_point or not dtype.is_floating_point or own is dtype:
            return found.number
        return self.writer.call(CAST, found.number, dtype=dtype)

    def of_some(self, count: Count, rows: Rows) -> Node:
        """The number for an operation on rows: where there are none it is one, for NaN times zero is NaN."""
        return self.writer.once(WHERE_OR_NUMBER, self.writer.once(ANY_TRUE, rows.mask), count.number, 1)

    def is_of(self, length: Any, rows: Rows) -> bool:
        """Whether so many rows are these, along one axis."""
        numbers, mask = self.writer.numbers, length.picked_by if isinstance(length, Count) else None
        return mask is not None and rows.lead == 1 and numbers[mask] == numbers[rows.picked_by]


def _is_tensor(part: Any) -> bool:
    return isinstance(part, Node) and isinstance(part.meta["val"], Tensor)
