"""How many rows masks pick, and the numbers that are made of that: u of torch's trace is mask.sum()."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.places import Count, Places
from hbpcompiler.compiler.trace.rows import Rows, Writer
from hbpcompiler.rules.shared.torch_operations import ANY_TRUE, ARITHMETIC, CAST, SIZE, WHERE_OR_NUMBER


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
            if not isinstance(parts[0], Node):
                if called in (operator.sub, operator.truediv):
                    return None
                parts.reverse()
            if called is operator.truediv:  # as Python's floats have it
                parts[0] = self.writer.call(CAST, parts[0], dtype=torch.float64)
            return Count(self.writer.call(ARITHMETIC[called], *parts))
        return None

    def number(self, part: Any) -> Any:
        """What stands for an argument: of a number its tensor."""
        found = self.values[part] if isinstance(part, Node) else part
        return found.number if isinstance(found, Count) else found

    def of_some(self, count: Count, rows: Rows) -> Node:
        """The number for an operation on rows: where there are none it is one, for NaN times zero is NaN."""
        return self.writer.once(WHERE_OR_NUMBER, self.writer.once(ANY_TRUE, rows.mask), count.number, 1)

    def is_of(self, length: Any, rows: Rows) -> bool:
        """Whether so many rows are these, along one axis."""
        numbers, mask = self.writer.numbers, length.picked_by if isinstance(length, Count) else None
        return mask is not None and rows.lead == 1 and numbers[mask] == numbers[rows.picked_by]
