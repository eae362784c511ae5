"""What a mask picks, kept whole. How many rows o[mask] has is known to no program before it runs; so all rows stay, and
those outside the mask count for nothing where rows are added up or put back:

    f(o[mask]).sum()                   torch.where(mask, f(all), 0).sum(), all = torch.where(mask, o, HARMLESS)
    f(o[mask]).mean()                  the same over mask.sum()
    cross_entropy(o[mask], y[mask])    cross_entropy(o, torch.where(mask, y, ignore_index))
    out[mask] = f(x[mask])             torch.where(mask, f(all), out)

torch asks how many rows there are where it could take a shortcut: see `many_rows`.

A graph in which rows come to something else stays as it is, and is refused later.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from hbpcompiler.compiler.trace.conditions.ways import counted
from hbpcompiler.compiler.trace.fx_graph.by_name import axes_of, chosen_by, given_to, names_of
from hbpcompiler.compiler.trace.fx_graph.functional import with_graph
from hbpcompiler.compiler.trace.refusals.refusals import MEAN_OF_NONE, CannotFollowError
from hbpcompiler.compiler.trace.rows.labelled_rows import loss_of_labels
from hbpcompiler.compiler.trace.rows.places import Count, InOrder, Places, of_numbers, of_places, placed, places_of
from hbpcompiler.compiler.trace.rows.row_by_row import RowByRow
from hbpcompiler.compiler.trace.rows.row_lengths import Lengths
from hbpcompiler.compiler.trace.rows.rows import NotWholeError, OneBefore, Rows, Writer, are_alike, is_real, shape_of
from hbpcompiler.compiler.trace.rows.wide_masks import as_long_as, as_rows, in_places_of, widened
from hbpcompiler.rules.shared.torch_operations import (
    ANY_TRUE,
    AT_LEAST,
    BROADCASTS,
    FLATTENS,
    IN_ORDER,
    ITEMS,
    LONGER,
    NOT,
    OF_LABELS,
    PICKS,
    PUTS,
    RATIO,
    SHOWS,
    SUMS,
    TOTAL,
    TRUE_PLACES,
)


def whole_rows(program: Any, zero_means: Mapping[Node, Collection[Node]] = MappingProxyType({})) -> Any:
    """An ExportedProgram in which no length is a mask's, where that can be written; otherwise as it is. `zero_means` of
    no rows are zero: those that are sums over weights with the masks among these."""
    if not zero_means and not any(_makes_unknown_length(node) or _is_count(node) for node in program.graph.nodes):
        return program
    walk = _Walk(zero_means)
    try:
        walk.write(program.graph)
    except NotWholeError:
        return program
    if walk.left:
        raise CannotFollowError(MEAN_OF_NONE)
    return with_graph(program, walk.graph)


def _makes_unknown_length(node: Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return node.target in PICKS | TRUE_PLACES and any(
        isinstance(value, Tensor) and free_unbacked_symbols(value) for value in leaves)


def _is_count(node: Node) -> bool:
    """Whether it is a number that .item() makes of how many elements of a mask are true."""
    return node.target in ITEMS and counted(node) is not None


class _Walk:
    """Copies a graph node by node."""

    def __init__(self, zero_means: Mapping[Node, Collection[Node]]) -> None:
        self.graph = Graph()
        self.writer = Writer(self.graph)
        self.zero_means, self.left = zero_means, set(zero_means)
        """Means that are not yet zero where no row is picked."""
        self.values: dict[Node, Any] = {}
        """Node before -> what stands for it: a node of the copy, Rows or a list of them, Places, a Count; None: a
        condition on lengths, or a number that is no Count."""
        self.lengths = Lengths(self.writer, self.values)
        self.each = RowByRow(self.writer, self.values, self.lengths)

    def write(self, before: Graph) -> None:
        """Copy all."""
        for node in before.nodes:
            self.writer.meta = node.meta
            self.values[node] = self._call(node) if node.op == "call_function" else self._copy(node)
        self.graph.eliminate_dead_code()

    def _copy(self, node: Node) -> Node:
        return self.writer.alike.enter(self.graph.node_copy(node, self._plain))

    def _plain(self, read: Any) -> Node:
        """What stands for a node that has nothing to do with a mask's rows."""
        found = self.values.get(read) if isinstance(read, Node) else None
        if not isinstance(found, Node):
            raise NotWholeError
        return found

    def _call(self, node: Node) -> Any:
        called: Any = node.target
        arguments: Any = node.args
        reads = [self.values[read] for read in node.all_input_nodes]
        if _makes_unknown_length(node) and called in TRUE_PLACES:
            return self.lengths.noted(node, places_of(self._plain(arguments[0]), self.writer))
        if _makes_unknown_length(node) and (picked := self._picked(given_to(node))):
            return picked if isinstance(picked, OneBefore) else self.lengths.noted(node, picked)
        if called is RATIO and self._is_zero_mean(node):
            return self.writer.call(RATIO, self._plain(arguments[0]), self._at_least_one_of_none(node, arguments[1]))
        if _is_count(node):
            mask = self._plain(counted(node))
            return Count(self.writer.count(mask), mask)
        if all(isinstance(read, Node) for read in reads):
            return self._copy(node)
        if called is operator.getitem and isinstance(reads[0], list):
            return dict(enumerate(reads[0])).get(arguments[1])
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):
            return self.lengths.number_of(node, reads)
        if isinstance(reads[0], Places) and not any(isinstance(read, Node | Rows | Places) for read in reads[1:]):
            return of_places(reads[0], node)  # the others are lengths
        if isinstance(reads[0], OneBefore):
            if called in SHOWS and str(shape_of(node)) == str(shape_of(node.all_input_nodes[0])[1:]):
                return reads[0].rows
            raise NotWholeError
        if called in PUTS:
            return self._put(called, given_to(node))
        if not isinstance(called, torch._ops.OpOverload) or any(read is None for read in reads):
            raise NotWholeError
        rows = [read for read in reads if isinstance(read, Rows)]
        self._check_one_mask(rows)
        return self._of_rows(node, called) if rows else self._of_counts(node, called)

    def _is_zero_mean(self, node: Node) -> bool:
        """Whether it has to be zero where no row is picked, which whoever asks takes care of."""
        found = node in self.left
        self.left.discard(node)
        return found

    def _at_least_one_of_none(self, mean: Node, divisor: Any) -> Node:
        """What a mean goes over: one where no row is picked."""
        masks = sorted(self.zero_means[mean])
        if not masks:
            return self.writer.call(AT_LEAST, self.lengths.number(divisor), 1)
        weights = self._plain(divisor)
        for mask in masks:  # the product with any that picks nothing is zero
            weights = self.writer.call(TOTAL, weights, self.writer.call(NOT, self.writer.call(
                ANY_TRUE, self._plain(mask))))
        return weights

    # -- where rows come from, and how many there are ----------------------------------------------------------------

    def _parts(self, chosen: Any) -> list[Any]:
        """What stands for an index, or for each of a list of some."""
        parts = [*chosen] if isinstance(chosen, list | tuple) else [chosen]
        return [self.values.get(part) if isinstance(part, Node) else None for part in parts]

    def _picked(self, given: Mapping[str, Any]) -> Rows | Places | OneBefore | None:
        """values[mask], rows[truth], values[mask, classes], rows[in order, classes]; None: each row picks by itself."""
        found, values = self._parts(chosen_by(given)), self.values.get(given["self"])
        if isinstance(values, Rows) and (given.get("dim", 0) != 0 or given.get("indices", [0])[0] is None):
            return None
        if given.get("indices", [0])[0] is None and given["self"].target is LONGER and given["self"].args[1] == 0:
            picked = self._picked({"self": given["self"].args[0], "indices": given["indices"][1:]})
            return OneBefore(picked) if isinstance(picked, Rows) else None
        if given.get("dim", 0) != 0:
            raise NotWholeError
        if (places := of_numbers(given["self"], found)) is not None:
            return places
        if "mask" in given and isinstance(found[0], Node):
            found = [widened(found[0], self._plain(given["self"]), self.writer)]
        if not isinstance(found[-1], Rows):
            return self.writer.picked(self._plain(given["self"]), *placed(found, self.writer.numbers))
        if len(found) == 1 and not isinstance(values, Rows):
            return None
        if len(found) == 1 and isinstance(values, Rows) and found[0].is_truth:
            self._check_one_mask([values, found[0]])
            return self.writer.picked_again(values, found[0])
        rows = values if isinstance(values, Rows) else self.writer.picked(
            self._plain(given["self"]), *placed(found[:-1], self.writer.numbers))
        if isinstance(values, Rows) and (len(found) != 2 or not isinstance(found[0], InOrder)):
            raise NotWholeError
        self._check_one_mask([rows, found[-1]])
        return self.writer.of_classes(rows, found[-1])

    def _check_one_mask(self, rows: Sequence[Rows]) -> None:
        if len({self.writer.numbers[each.picked_by] for each in rows}) > 1:
            raise NotWholeError

    def _of_counts(self, node: Node, called: Any) -> Node | InOrder | Rows:
        """Of tensors and of how many rows there are."""
        if called in IN_ORDER:
            lengths = [self.values[part] for part in node.args if isinstance(part, Node)]
            others = [part for part in node.args if not isinstance(part, Node)]
            if len(lengths) == 1 and lengths[0].picked_by and others in ([], [0], [0, 1]):
                return InOrder()
        if shape_of(node) and (mask := self.lengths.mask_of(shape_of(node)[0])) is not None:
            return self.each.made(node, called, mask)
        if torch.Tag.pointwise not in called.tags:
            raise NotWholeError
        arguments, named = pytree.tree_map_only(
            Node, lambda part: self.lengths.number(part, node.meta["val"].dtype), (node.args, dict(node.kwargs)))
        return self.writer.call(called, *arguments, **named)

    # -- what becomes of them ----------------------------------------------------------------------------------------

    def _of_rows(self, node: Node, called: Any) -> Rows | list[Rows] | Node:
        given = given_to(node)
        whole = self.values[given["self"]] if isinstance(given.get("self"), Node) else None
        if called in SUMS and isinstance(whole, Rows) and given.get("dtype") is None:
            along = axes_of(given.get("dim"), 1 + len(whole.beside))
            if 0 in along:
                everything = len(along) == 1 + len(whole.beside) and not given.get("keepdim")
                keep = given.get("keepdim", False)
                return self.writer.total(whole, SUMS[called], None if everything else along, keep,
                                         zero_of_none=self._is_zero_mean(node))
        if called in FLATTENS and isinstance(whole, Rows):
            before, after = shape_of(given["self"]), shape_of(node)
            if str(before) == str(after):
                return whole
            if len(after) == 2 and (several := as_rows(whole, after[1], self.writer)) is not None:
                return several
            axes = len(before) - len(after)
            if str(before[0]) != str(after[0]) and axes > 0 and after[1:] == before[1 + axes:]:
                return self.writer.joined(whole, axes)
        if called in OF_LABELS:
            labels = self.values.get(given["target"])
            if isinstance(labels, Rows) and not is_real(labels):
                others = {name: self._plain(item) if isinstance(item, Node) else item for name, item in given.items()
                          if name not in ("self", "target")}
                return loss_of_labels(self.writer, called, others, whole, labels, self._is_zero_mean(node))
        if given.get("reduction", 0) or ("reduction" not in given and "reduction" in names_of(called)):
            (each,) = self.each.results(node, called, {**given, "reduction": 0})
            return self.writer.total(each, mean=given.get("reduction", 1) == 1, zero_of_none=self._is_zero_mean(node))
        found = self.each.results(node, called, given)
        results = pytree.tree_leaves(node.meta["val"])
        lengths = {str(shape_of(read)[0]) for read in node.all_input_nodes if isinstance(self.values[read], Rows)}
        for each, result in zip(found, results, strict=False):
            if str(result.shape[0]) not in lengths or free_unbacked_symbols(result.shape[1:]) or not are_alike(
                    each.beside, result.shape[1:]):
                raise NotWholeError
        return found[0] if isinstance(node.meta["val"], Tensor) else found

    def _put(self, called: Any, given: Mapping[str, Any]) -> Node:
        """Rows back in their places."""
        source = given.get("values", given.get("source"))
        rows = self.values.get(source) if isinstance(source, Node) else None
        base, (mask, axes) = self._plain(given["self"]), placed(self._parts(chosen_by(given)), self.writer.numbers)
        if not isinstance(rows, Rows) or given.get("dim", 0) != 0 or given.get("alpha", 1) != 1:
            raise NotWholeError
        adds = PUTS[called] or bool(given.get("accumulate"))
        if called in BROADCASTS:
            rows = as_long_as(rows, shape_of(base)[len(axes):], self.writer)
        return self.writer.put_back(base, *in_places_of(mask, axes, rows, base, self.writer), adds)
