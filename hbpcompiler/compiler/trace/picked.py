"""What a mask picks, kept whole. How many rows o[mask] has is known to no program before it runs; so all rows stay, and
those outside the mask count for nothing where rows are added up or put back:

    f(o[mask]).sum()                   torch.where(mask, f(all), 0).sum(), all = torch.where(mask, o, HARMLESS)
    f(o[mask]).mean()                  the same over mask.sum()
    cross_entropy(o[mask], y[mask])    cross_entropy(o, torch.where(mask, y, ignore_index))
    out[mask] = f(x[mask])             torch.where(mask, f(all), out)

A graph in which rows come to something else stays as it is, and is refused later.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import TensorArgument
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.rows import NotWholeError, Rows, Writer, are_alike, is_real, shape_of
from hbpcompiler.rules.shared.torch_operations import (
    ARITHMETIC,
    COLUMN,
    FLATTENS,
    LAST_AXES,
    MOVE_AXIS,
    OF_LABELS,
    PICKS,
    PUTS,
    SIZE,
    SUMS,
    TOTAL,
    TRUE_PLACES,
    WHERE,
    WHERE_OR_NUMBER,
)


@dataclass(frozen=True)
class Places:
    """The places where a mask is true: the table of them, or one of its columns."""

    mask: Node
    column: int | None = None


@dataclass(frozen=True)
class Count:
    """How many rows there are, or a number made of that: a tensor in the copy."""

    number: Node
    is_length: bool = False


def whole_rows(program: Any) -> Any:
    """An ExportedProgram in which no length is a mask's, where that can be written; otherwise as it is."""
    if not any(_makes_unknown_length(node) for node in program.graph.nodes):
        return program
    walk = _Walk()
    try:
        outputs = walk.write(program.graph)
    except NotWholeError:
        return program
    signature = copy(program.graph_signature)
    signature.output_specs = [replace(spec, arg=TensorArgument(name=node.name))
                              for spec, node in zip(signature.output_specs, outputs, strict=True)]
    found = copy(program)
    found._graph_module = GraphModule(program.graph_module, walk.graph)
    found._graph_signature = signature
    return found


def _makes_unknown_length(node: Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return node.target in PICKS | TRUE_PLACES and any(
        isinstance(value, Tensor) and free_unbacked_symbols(value) for value in leaves)


class _Walk:
    """Copies a graph node by node."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.writer = Writer(self.graph)
        self.values: dict[Node, Any] = {}
        """Node before -> what stands for it: a node of the copy, Rows, Places, a Count; None: a condition on lengths,
        or a number that is no Count."""

    def write(self, before: Graph) -> Sequence[Node]:
        """Copy all, and return what the copy puts out."""
        for node in before.nodes:
            self.writer.meta = node.meta
            self.values[node] = self._call(node) if node.op == "call_function" else self._copy(node)
        self.graph.eliminate_dead_code()
        outputs: Sequence[Node] = self.graph.output_node().args[0]  # type: ignore[assignment]
        return outputs

    def _copy(self, node: Node) -> Node:
        return self.graph.node_copy(node, self._plain)

    def _plain(self, read: Any) -> Node:
        """What stands for a node that has nothing to do with a mask's rows."""
        found = self.values.get(read) if isinstance(read, Node) else None
        if not isinstance(found, Node):
            raise NotWholeError
        return found

    def _call(self, node: Node) -> Any:
        called: Any = node.target
        reads = [self.values[read] for read in node.all_input_nodes]
        if _makes_unknown_length(node):
            return Places(self._plain(node.args[0])) if called in TRUE_PLACES else self._picked(_given(node))
        if all(isinstance(read, Node) for read in reads):
            return self._copy(node)
        if not isinstance(node.meta.get("val"), Tensor):
            return self._no_tensor(node, reads)
        if isinstance(reads[0], Places) and len(reads) == 1:
            return self._column(node, reads[0])
        if called in PUTS:
            return self._put(called, _given(node))
        if not isinstance(called, torch._ops.OpOverload) or any(read is None for read in reads):
            raise NotWholeError
        rows = [read for read in reads if isinstance(read, Rows)]
        if len({self.writer.number_of(each.picked_by) for each in rows}) > 1:
            raise NotWholeError
        return self._of_rows(node, called, rows) if rows else self._of_counts(node, called)

    # -- where rows come from, and how many there are ----------------------------------------------------------------

    def _column(self, node: Node, table: Places) -> Places:
        """A column of the table, or the column of a table of one in any other form."""
        axes = len(shape_of(table.mask))
        if table.column is not None:
            raise NotWholeError
        if node.target is operator.getitem:
            return replace(table, column=node.args[1])
        if node.target is COLUMN and node.args[1] in (1, -1):
            return replace(table, column=int(node.args[2]) % axes)  # type: ignore[call-overload]
        if axes != 1 or len(shape_of(node)) != 1:
            raise NotWholeError
        return replace(table, column=0)

    def _mask(self, chosen: Any) -> Node:
        """The mask by which an index, or a list of one for each axis, chooses."""
        parts = [*chosen] if isinstance(chosen, list | tuple) else [chosen]
        found = [self.values.get(part) if isinstance(part, Node) else None for part in parts]
        mask = found[0].mask if isinstance(found[0], Places) else found[0]
        if not isinstance(mask, Node) or mask.meta["val"].dtype is not torch.bool:
            raise NotWholeError
        by_places = [Places(mask, column) for column in range(len(shape_of(mask)))]
        numbered = [(self.writer.number_of(part.mask), part.column) if isinstance(part, Places) else part
                    for part in found]
        if numbered not in ([mask], [(self.writer.number_of(mask), part.column) for part in by_places]):
            raise NotWholeError
        return mask

    def _picked(self, given: Mapping[str, Any]) -> Rows:
        if given.get("dim", 0) != 0:
            raise NotWholeError
        return self.writer.picked(self._plain(given["self"]), self._mask(_chosen(given)))

    def _no_tensor(self, node: Node, reads: Sequence[Any]) -> Any:
        """A length, a number made of lengths, a condition on them, or several tensors."""
        called: Any = node.target
        first: Any = node.args[0] if node.args else None
        if called is SIZE and isinstance(reads[0], Rows | Places) and node.args[1] == 0:
            mask = reads[0].picked_by if isinstance(reads[0], Rows) else reads[0].mask
            return Count(self.writer.count(mask), is_length=True)
        if called in ARITHMETIC and not any(read is None for read in reads):
            parts = [self._number(part) for part in node.args]
            parts = parts if isinstance(parts[0], Node) else parts[::-1]
            swapped = not isinstance(self._number(first), Node)
            if not (swapped and called in (operator.sub, operator.truediv)):
                return Count(self.writer.call(ARITHMETIC[called], *parts))
        return None

    def _number(self, part: Any) -> Any:
        found = self.values[part] if isinstance(part, Node) else part
        return found.number if isinstance(found, Count) else found

    def _of_counts(self, node: Node, called: Any) -> Node:
        """Of tensors and of how many rows there are."""
        if torch.Tag.pointwise not in called.tags:
            raise NotWholeError
        arguments, named = pytree.tree_map_only(Node, self._number, (node.args, dict(node.kwargs)))
        return self.writer.call(called, *arguments, **named)

    # -- what becomes of them ----------------------------------------------------------------------------------------

    def _of_rows(self, node: Node, called: Any, rows: Sequence[Rows]) -> Rows | Node:
        given = _given(node)
        whole = self.values[given["self"]] if isinstance(given.get("self"), Node) else None
        if called in SUMS and isinstance(whole, Rows) and given.get("dtype") is None:
            along = _axes(given.get("dim"), 1 + len(whole.beside))
            if 0 in along:
                everything = len(along) == 1 + len(whole.beside) and not given.get("keepdim")
                return self.writer.total(whole, SUMS[called], None if everything else along, given.get("keepdim", False))
        if called in FLATTENS and isinstance(whole, Rows) and len(shape_of(node)) == 1:
            return self.writer.elements(whole)
        if called in OF_LABELS:
            labels = self.values.get(given["target"])
            if isinstance(labels, Rows) and not is_real(labels):
                return self._of_labels(node, called, given, labels)
        if given.get("reduction", 0) or "reduction" not in given and "reduction" in _names(called):
            each = self._row_by_row(node, called, {**given, "reduction": 0}, None)
            return self.writer.total(each, mean=given.get("reduction", 1) == 1)
        return self._row_by_row(node, called, given, shape_of(node)[1:])

    def _row_by_row(self, node: Node, called: Any, given: Mapping[str, Any], beside: tuple[Any, ...] | None) -> Rows:
        """The operation of all rows. Raises NotWholeError unless these are in front of its result, too."""
        drawn = torch.Tag.nondeterministic_seeded in called.tags and given.get("train") is not False
        if drawn or any(name.startswith("dim") and 0 in _axes(axes, len(shape_of(node)))
                        for name, axes in given.items() if axes is not None):
            raise NotWholeError
        found = {read: self.values[read] for read in node.all_input_nodes}
        rows = [each for each in found.values() if isinstance(each, Rows)]
        together = {each.lead for each in rows} == {rows[0].lead} and (
            called in LAST_AXES or torch.Tag.pointwise in called.tags
            and {len(each.beside) for each in rows} == {len(shape_of(node)) - 1})
        if not together:
            found = {read: self.writer.flattened(each) if isinstance(each, Rows) else each
                     for read, each in found.items()}
            rows = [each for each in found.values() if isinstance(each, Rows)]
        filled = {name: self._argument(item, found, rows[0]) for name, item in given.items()}
        whole = self._called(called, filled)
        result = replace(rows[0], whole=whole, given=None)
        front = shape_of(rows[0].whole)[: result.lead]
        if not are_alike(shape_of(whole)[: result.lead], front) or not (
                beside is None or are_alike(result.beside, beside)):
            raise NotWholeError
        return result

    def _called(self, called: Any, given: Mapping[str, Any]) -> Node:
        """An operation with arguments by name; those without a name get their defaults."""
        schema = called._schema.arguments
        by_place = [argument for argument in schema if not argument.kwarg_only]
        last = max(number for number, argument in enumerate(by_place) if argument.name in given)
        values = [given.get(argument.name, argument.default_value) for argument in by_place[: last + 1]]
        named = {argument.name: given[argument.name] for argument in schema
                 if argument.kwarg_only and argument.name in given}
        return self.writer.call(called, *values, **named)

    def _argument(self, item: Any, found: Mapping[Node, Any], rows: Rows) -> Any:
        """An argument of the operation on all rows: a length of the rows in a list is that of all."""
        if isinstance(item, list | tuple):
            lengths = [isinstance(part, Node) and isinstance(found[part], Count) for part in item]
            if any(lengths) and not (lengths[0] and sum(lengths) == 1 and found[item[0]].is_length and rows.lead == 1):
                raise NotWholeError
            if any(lengths):
                return [self.writer.once(SIZE, rows.whole, 0), *item[1:]]
            return [self._argument(part, found, rows) for part in item]
        if not isinstance(item, Node):
            return item
        value = found[item]
        if isinstance(value, Rows):
            return value.whole
        if isinstance(value, Places):
            raise NotWholeError
        return value.number if isinstance(value, Count) else value

    def _of_labels(self, node: Node, called: Any, given: Mapping[str, Any], labels: Rows) -> Rows | Node:
        """A loss of rows and labels: outside the mask is the label that counts for nothing."""
        scores = self.values.get(given["self"])
        if not isinstance(scores, Rows):
            raise NotWholeError
        classes_behind = scores.lead > 1 and len(scores.beside) == 1 and labels.lead == scores.lead
        if not classes_behind:
            scores, labels = self.writer.flattened(scores), self.writer.flattened(labels)
        labels = replace(labels, whole=labels.given or labels.whole)
        all_scores = scores.given or scores.whole
        if classes_behind:
            all_scores = self.writer.call(MOVE_AXIS, all_scores, -1, 1)
        ignored = self.writer.put_elsewhere(labels, given.get("ignore_index", -100))
        filled = {name: self._plain(item) if isinstance(item, Node) and name not in ("self", "target") else item
                  for name, item in given.items()}
        found = self._called(called, {**filled, "self": all_scores, "target": ignored})
        if given.get("reduction", 1):
            return found
        return replace(labels, whole=found, given=None)

    def _put(self, called: Any, given: Mapping[str, Any]) -> Node:
        """Rows back in their places."""
        source = given.get("values", given.get("source"))
        rows = self.values.get(source) if isinstance(source, Node) else None
        base, mask = self._plain(given["self"]), self._mask(_chosen(given))
        if not isinstance(rows, Rows) or given.get("dim", 0) != 0 or given.get("alpha", 1) != 1:
            raise NotWholeError
        whole = self.writer.as_picked(rows)
        if self.writer.number_of(mask) != self.writer.number_of(rows.picked_by) or not (
                are_alike(shape_of(whole), shape_of(base))):
            raise NotWholeError
        rows = Rows(whole, mask, mask)
        if PUTS[called] or given.get("accumulate"):
            return self.writer.call(TOTAL, base, self.writer.put_elsewhere(rows, 0))
        return self.writer.call(WHERE, self.writer.beside(rows), whole, base)


def _given(node: Node) -> dict[str, Any]:
    """The arguments by name."""
    return {**dict(zip(_names(node.target), node.args, strict=False)), **node.kwargs}


def _names(called: Any) -> list[str]:
    return [argument.name for argument in called._schema.arguments]


def _chosen(given: Mapping[str, Any]) -> Any:
    return given.get("indices", given.get("mask", given.get("index")))


def _axes(given: Any, rank: int) -> tuple[int, ...]:
    """Axes, counted from the front; all of them where none is named."""
    if given is None or given == []:
        return tuple(range(rank))
    return tuple(axis % max(rank, 1) for axis in (given if isinstance(given, list | tuple) else [given]))
