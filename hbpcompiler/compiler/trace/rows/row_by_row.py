"""Operations that do the same with each row, of all rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.conditions.ways import counted
from hbpcompiler.compiler.trace.fx_graph.by_name import draws, given_to
from hbpcompiler.compiler.trace.rows.among_rows import mixes_rows
from hbpcompiler.compiler.trace.rows.outside import outside
from hbpcompiler.compiler.trace.rows.places import Count, InOrder, Places
from hbpcompiler.compiler.trace.rows.row_lengths import Lengths
from hbpcompiler.compiler.trace.rows.rows import HARMLESS, NotWholeError, Rows, Writer, are_alike, shape_of
from hbpcompiler.compiler.trace.source.source import PICKED
from hbpcompiler.rules.shared.torch_operations import AT_LEAST, BATCH_NORMS, DEVIATIONS, LAST_AXES, PADDING, ROOT, SIZE


class RowByRow:
    """Of the nodes of one graph, for which `values` stand in its copy."""

    def __init__(self, writer: Writer, values: Mapping[Node, Any], lengths: Lengths) -> None:
        self.writer, self.values, self.lengths = writer, values, lengths

    def results(self, node: Node, called: Any, given: Mapping[str, Any]) -> list[Rows]:
        """The operation of all rows. Raises NotWholeError unless these are in front of its results, too."""
        rows = [found for read in node.all_input_nodes if isinstance(found := self.values[read], Rows)]
        behind = len(pytree.tree_leaves(node.meta["val"])[0].shape) - 1
        rank = 1 + max(behind, *(len(each.beside) for each in rows))
        if draws(called, given) or mixes_rows(called, given, self._ranks(given), rank):
            raise NotWholeError
        found = {read: self.values[read] for read in node.all_input_nodes}
        together = {each.lead for each in rows} == {rows[0].lead} and (
            called in LAST_AXES
            or (torch.Tag.pointwise in called.tags and {len(each.beside) for each in rows} == {behind}))
        if not together:
            found = {read: self.writer.flattened(each) if isinstance(each, Rows) else each
                     for read, each in found.items()}
            rows = [each for each in found.values() if isinstance(each, Rows)]
        is_deviation = called in DEVIATIONS
        called = DEVIATIONS.get(called, called)
        whole = self.writer.called(called, {
            name: self._argument(item, found, rows[0], partial(outside, called, name, given=given, read=found))
            for name, item in given.items()})
        if given.get(PADDING, -1) < 0:  # where nothing is picked such a table learns nothing
            whole.meta[PICKED] = len(shape_of(rows[0].picked_by))
        wholes = self._results(whole)
        if called.overloadpacket in BATCH_NORMS:
            wholes = wholes[:1]  # the others, a batch's statistics, have no numbers here
        front = shape_of(rows[0].whole)[: rows[0].lead]
        if not all(are_alike(shape_of(each)[: len(front)], front) for each in wholes):
            raise NotWholeError
        results = [replace(rows[0], whole=each, given=None, outside=None) for each in wholes]
        if is_deviation:
            results = [replace(each, whole=self.writer.call(ROOT, self.writer.with_outside(each, HARMLESS).whole))
                       for each in results]
        return results

    def _ranks(self, given: Mapping[str, Any]) -> dict[str, list[int]]:
        """By name, of an argument's tensors how many axes they have if they are rows, or 0."""
        found = {name: [self.values[part] for part in pytree.tree_leaves(item) if isinstance(part, Node)]
                 for name, item in given.items()}
        return {name: [1 + len(part.beside) if isinstance(part, Rows) else 0 for part in parts]
                for name, parts in found.items()}

    def _results(self, whole: Node) -> list[Node]:
        """Each tensor that an operation gives."""
        values = whole.meta["val"]
        if isinstance(values, Tensor):
            return [whole]
        return [self.writer.call(operator.getitem, whole, number) for number in range(len(values))]

    def _argument(self, item: Any, found: Mapping[Node, Any], rows: Rows,
                  asked: Callable[[Rows], float | None] = lambda rows: None) -> Any:
        """An argument of the operation on all rows: a length of the rows in a list is that of all. `asked` says which
        number is to stand where nothing is picked."""
        if isinstance(item, list | tuple):
            lengths = [isinstance(part, Node) and isinstance(found[part], Count) for part in item]
            if any(lengths) and not (lengths[0] and sum(lengths) == 1 and self.lengths.is_of(found[item[0]], rows)):
                raise NotWholeError
            if any(lengths):
                return [self.writer.once(SIZE, rows.whole, 0), *item[1:]]
            return [self._argument(part, found, rows, asked) for part in item]
        if not isinstance(item, Node):
            return item
        value = found[item]
        if isinstance(value, Rows):
            number = asked(value)
            return value.whole if number is None else self.writer.with_outside(value, number).whole
        if isinstance(value, Places | InOrder):
            raise NotWholeError
        if isinstance(value, Count):
            return self.lengths.of_some(value, rows)
        return self.writer.once(AT_LEAST, value, 1) if self._is_their_number(item, rows) else value

    def _is_their_number(self, item: Node, rows: Rows) -> bool:
        """Whether it counts the rows, as a tensor: where there are none nobody asks what is divided by it."""
        mask, numbers = counted(item), self.writer.numbers
        found = None if mask is None else self.values.get(mask)
        return isinstance(found, Node) and numbers[found] == numbers[rows.picked_by]

    def made(self, node: Node, called: Any, mask: Node) -> Rows:
        """As many rows as the mask picks, made of what is no row: zeros, a parameter in each row."""
        rows = self.writer.flattened(Rows(mask, mask, mask))
        alone = [item for item in given_to(node).values() if isinstance(item, Node)]
        if any(isinstance(self.values[item], Count) for item in alone):  # the first so many rows of something
            raise NotWholeError
        given = {name: self._argument(item, self.values, rows) for name, item in given_to(node).items()}
        found = replace(rows, whole=self.writer.called(called, given))
        if draws(called, given) or not are_alike(
                shape_of(found.whole), [shape_of(rows.mask)[0], *shape_of(node)[1:]]):
            raise NotWholeError
        return found
