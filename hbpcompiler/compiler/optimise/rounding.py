"""A pass for `curvature_dtype`: what meets a column of curvature is rounded too."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.kernels import GRAMS
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.meta import Mark
from hbpcompiler.compiler.program.nodes import facts, replace_by, writes_in_place
from hbpcompiler.compiler.program.shapes import BATCHES, evaluate, round_of
from hbpcompiler.compiler.program.writer import Loop


def round_what_columns_meet(graph: fx.Graph, dtype: torch.dtype, model: torch.dtype,
                            arguments: Callable[[int], Sequence[Any]]) -> None:
    """Round what columns of this dtype meet, in a program as it was derived; `arguments` as for `annotate`."""
    given = [(argument, False) for argument in arguments(BATCHES[0])]
    _Rounding(graph, dtype, torch.promote_types(dtype, model)).run(given)


class _Rounding:
    """One graph, the program's or a loop's body, node by node: what is a column, what a column meets."""

    def __init__(self, graph: fx.Graph, dtype: torch.dtype, total: torch.dtype) -> None:
        self.graph, self.dtype, self.total = graph, dtype, total
        self.values: dict[fx.Node, Any] = {}
        self.columns: set[fx.Node] = set()
        """Nodes that were computed from columns, in their dtype."""
        self.totals: set[fx.Node] = set()
        """What a loop's body adds to, in a dtype of its own."""
        self.casts: dict[fx.Node, fx.Node] = {}

    def run(self, given: Sequence[tuple[Any, bool]], totals: int = 0) -> None:
        """`given` are the placeholders' values, and whether these are columns; so many, the first, are totals."""
        arguments = iter(given)
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.totals.update(placeholders[:totals])
        for node in list(self.graph.nodes):
            if node.op == "placeholder":
                value, is_column = next(arguments)
                self._note(node, value, is_column)
            elif isinstance(node.target, Loop):
                self._enter(node, node.target)
            elif node.op != "output":
                self._node(node)

    def _note(self, node: fx.Node, value: Any, is_column: bool) -> None:
        """Of what was computed from columns, tensors of their dtype are columns again; masks and shapes are not.

        So is the dtype itself: what is made in it (unit vectors) starts as a column.
        """
        self.values[node] = value
        parts = value if isinstance(value, tuple | list) else (value,)
        if is_column and self.dtype in (getattr(part, "dtype", part) for part in parts):
            self.columns.add(node)

    def _node(self, node: fx.Node) -> None:
        reads_columns, mark = any(read in self.columns for read in node.all_input_nodes), meta.mark(node)
        if reads_columns and writes_in_place(node) and node.args[0] not in self.columns:
            self._add_to_total(node)
        elif reads_columns and node.target in GRAMS and self.total != self.dtype:
            node.kwargs = {**node.kwargs, "dtype": self.total}
        elif reads_columns and mark is None and node.target != "type_as":
            self._round_others(node)
        self._note(node, evaluate(node, self.values), reads_columns or mark == Mark.BEGINS)
        before = node.args[0] if node.args else None
        if isinstance(before, fx.Node) and self._is_idle(node, before):
            replace_by(self.graph, node, before)
        elif mark == Mark.BEGINS:
            meta.ask_for(node, _hint(before if isinstance(before, fx.Node) else node))

    def _is_idle(self, node: fx.Node, before: fx.Node) -> bool:
        """Whether a cast changes nothing; columns keep their dtype where a rule gives them a model's tensor's."""
        if node.target == "type_as" and before in self.columns:
            return bool(self.values[node].is_floating_point())
        mark, value = meta.mark(node), self.values[before]
        same = mark is not None and value.dtype == self.values[node].dtype
        return same and (mark == Mark.ENDS or before in self.columns)

    def _round_others(self, node: fx.Node) -> None:
        """All other floating tensors that the node reads are rounded, but what it adds to."""
        def other(read: fx.Node) -> fx.Node:
            total = read in self.totals or (writes_in_place(node) and read is node.args[0])
            return self._rounded(read, node) if self._is_other(read) and not total else read

        node.args, node.kwargs = fx.node.map_arg(node.args, other), dict(fx.node.map_arg(node.kwargs, other))

    def _is_other(self, node: fx.Node) -> bool:
        value = self.values[node]
        return node not in self.columns and isinstance(value, Tensor) and value.is_floating_point()

    def _rounded(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """A cast of the node, before the moves that made it if it is no larger there; written in front of its user."""
        if node not in self.casts:
            moved = self._is_move(node)
            others = filter(self._is_other, node.all_input_nodes if moved else ())
            inputs = {read: self._rounded(read, user) for read in others}
            with self.graph.inserting_before(user):
                if moved:
                    made = self.graph.node_copy(node, lambda read: inputs.get(read, read))
                else:
                    made = self.graph.call_method("to", (node, self.dtype))
            made.meta = {}  # what a copy says is said of the original
            meta.place(made, user)
            meta.ask_for(made, _hint(node) if meta.hint(node) or not moved else "")
            self._note(made, evaluate(made, self.values), True)
            self.casts[node] = made
        return self.casts[node]

    def _is_move(self, node: fx.Node) -> bool:
        inputs = [self.values[read] for read in node.all_input_nodes if self._is_other(read)]
        return (node.op in ("call_method", "call_function") and facts(node).moves and bool(inputs)
                and sum(value.numel() for value in inputs) <= self.values[node].numel())

    def _add_to_total(self, node: fx.Node) -> None:
        """Elementwise kernels add to a wider total as they are; a product with it must be taken apart."""
        if node.target in ("addmm_", "baddbmm_"):
            total, left, right = node.args
            with self.graph.inserting_before(node):
                product = self.graph.call_function(operator.matmul, (left, right))
            meta.place(product, node)
            self._node(product)
            node.target, node.args = "add_", (total, product)
            return
        if not isinstance(node.target, str):  # a helper that multiplies, whose operands must be of one dtype
            self._round_others(node)
        node.args = tuple(read.args[0] if isinstance(read, fx.Node) and meta.mark(read) == Mark.ENDS else read
                          for read in node.args)

    def _enter(self, node: fx.Node, loop: Loop) -> None:
        call = LoopCall.of(node)
        accumulators, cut, whole = ([passed.outer for passed in given] for given in (call.filled, call.cut, call.whole))
        for total in accumulators:
            if total in self.columns and self.total != self.dtype:
                total.kwargs = {**total.kwargs, "dtype": self.total}
                self.values[total] = self.values[total].to(self.total)
                self.columns.discard(total)
        totals, parts, others = ([self.values[read] for read in given] for given in (accumulators, cut, whole))
        are_columns = [read in self.columns for read in (*accumulators, *cut, *whole)]
        inside = round_of(loop, totals, parts, others)
        _Rounding(loop.body, self.dtype, self.total).run(list(zip(inside, are_columns, strict=True)),
                                                                  len(accumulators))
        self._note(node, tuple(totals), any(total in self.columns for total in accumulators))


def _hint(source: fx.Node) -> str:
    """How a cast is named in generated code."""
    return "_".join(filter(None, ("rounded", meta.hint(source))))
