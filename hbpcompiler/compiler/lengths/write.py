"""A program for one length rewritten for all of them: T is read off an input, and numbers are what T makes of them."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from hbpcompiler.compiler.lengths.numbers import Polynomial, Power, text
from hbpcompiler.compiler.lengths.walk import LengthsDifferError, Walk
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import with_formula
from hbpcompiler.compiler.program.loop_call import LoopCall
from hbpcompiler.compiler.program.meta import Role
from hbpcompiler.compiler.program.weighted_loss import WeightedLoss
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.rule.composite import Composite, EachSample

LENGTH = "T"
"""What it is called in a program."""
FITTED = (Polynomial, Power)


def write(graph: fx.Graph, walk: Walk, name: str, axis: int, first: int) -> None:
    """Rewrite a graph in place, the first of a walk, made at this length; T is the length of an axis of the batch's
    tensor of this name.

    Raises LengthsDifferError for what cannot be told T.
    """
    _Writing(walk, axis, first).program(graph, name)


class _Writing:
    def __init__(self, walk: Walk, axis: int, first: int) -> None:
        self.walk, self.axis, self.first = walk, axis, first
        self.functions: dict[int, Composite] = {}
        """What stands for functions of the file's own that need T, by their ids."""

    def program(self, graph: fx.Graph, name: str) -> None:
        holder = next(node for node in graph.nodes if node.op == "placeholder" and node.target == name)
        last = next((node for node in graph.nodes if meta.role(node) is Role.BATCH_SIZE), None)
        if last is None:
            last = [node for node in graph.nodes if node.op == "placeholder"][-1]
        with graph.inserting_after(last):
            shape = graph.call_function(getattr, (holder, "shape"))
        with graph.inserting_after(shape):
            length = graph.call_function(operator.getitem, (shape, self.axis))
        for made in (shape, length):
            meta.set_no_tensor(meta.place(made, last))
        meta.ask_for(length, LENGTH)
        self._graph(graph, length, holder)
        if not length.users:
            graph.erase_node(length)
            graph.erase_node(shape)

    def _graph(self, graph: fx.Graph, length: fx.Node, holder: fx.Node | None) -> None:
        """A graph with T and, in the whole program, the tensor whose length it is."""
        for node in list(graph.nodes):
            if node not in self.walk.found:
                continue
            args, kwargs = self.walk.found[node]
            node.args = self._item(graph, node, args, length)
            node.kwargs = self._item(graph, node, kwargs, length)
            if node in self.walk.shapes:
                node.meta["shape"] = tuple(self._length(lengths) for lengths in self.walk.shapes[node])
            if isinstance(node.target, Loop):
                self._loop(node, length)
            self._functions(node, holder)

    def _loop(self, node: fx.Node, length: fx.Node) -> None:
        loop: Any = node.target
        if self._needs(loop.body):
            inner = LoopCall.of(node).pass_whole(length, LENGTH)
            meta.set_no_tensor(inner)
            self._graph(loop.body, inner, None)
        else:
            self._graph(loop.body, length, None)

    def _needs(self, graph: fx.Graph) -> bool:
        """Whether something in it, or in a loop in it, is made of T."""
        return any(_has_fitted(self.walk.found[node]) or (isinstance(node.target, Loop) and self._needs(
            node.target.body)) for node in graph.nodes if node in self.walk.found)

    def _item(self, graph: fx.Graph, node: fx.Node, item: Any, length: fx.Node) -> Any:
        if isinstance(item, FITTED):
            return item.written(length, _applied(graph, node))
        if isinstance(item, tuple | list):
            return type(item)(self._item(graph, node, part, length) for part in item)
        if isinstance(item, dict):
            return {name: self._item(graph, node, part, length) for name, part in item.items()}
        if isinstance(item, slice):
            return slice(*(self._item(graph, node, part, length) for part in (item.start, item.stop, item.step)))
        return item

    def _length(self, lengths: tuple[list[str], list[Any]]) -> str:
        """An axis's length as a text, in which a number that T makes has both (see `program.lengths`)."""
        texts, numbers = lengths
        found = texts[0]
        for number, behind in zip(numbers, texts[1:], strict=True):
            if not isinstance(number, FITTED):
                found += f"{number}{behind}"
                continue
            formula = text(number)
            alone = texts == ["", ""]
            found += with_formula(int(number.at(self.first)), formula if alone else f"({formula})") + behind
        return found

    # -- functions of the file's own ---------------------------------------------------------------------------------

    def _functions(self, node: fx.Node, holder: fx.Node | None) -> None:
        """They are given the tensor whose length T is, as their last argument."""
        mentioned = [item for item in (node.target, *node.args) if isinstance(item, Composite)]
        if not any(map(self._is_told, mentioned)):
            return
        if holder is None or mentioned != [node.target] or isinstance(node.target, EachSample):
            raise LengthsDifferError(f"the function {mentioned[0].name} has the length in it, where it cannot be told")
        node.target = self._told(mentioned[0])
        node.args = (*node.args, holder)

    def _is_told(self, function: Composite) -> bool:
        inner = function.losses if isinstance(function, WeightedLoss) else function
        inner = inner.whole if isinstance(inner, EachSample) else inner
        return self._needs(inner.graph)

    def _told(self, function: Composite) -> Composite:
        """The same function with one more argument."""
        if id(function) not in self.functions:
            found = copy.copy(function)
            if isinstance(found, WeightedLoss):
                found.losses = self._told(found.losses)
            else:
                found.batched = [*found.batched, True]
                found.graph = self._with_tensor(found.graph)
            self.functions[id(function)] = found
        return self.functions[id(function)]

    def _with_tensor(self, graph: fx.Graph) -> fx.Graph:
        known: dict[fx.Node, fx.Node] = {}
        copied = fx.Graph()
        result = copied.graph_copy(graph, known)
        holders = [node for node in copied.nodes if node.op == "placeholder"]
        with copied.inserting_after(holders[-1]):
            tensor = copied.placeholder("lengths_of")
        for node, own in known.items():
            for items, put in zip(self.walk.found[node], ("args", "kwargs"), strict=True):
                if _has_fitted(items):
                    with copied.inserting_before(own):
                        shape = copied.call_function(getattr, (tensor, "shape"))
                        length = copied.call_function(operator.getitem, (shape, self.axis))
                    setattr(own, put, self._item(copied, own, _mapped(items, known), length))
        copied.output(result)
        return copied


def _mapped(item: Any, known: dict[fx.Node, fx.Node]) -> Any:
    return fx.node.map_aggregate(item, lambda part: known[part] if isinstance(part, fx.Node) else part)


def _applied(graph: fx.Graph, node: fx.Node) -> Callable[..., Any]:
    """Writes an operator's node in front of another one, under its heading."""
    def apply(function: Callable[..., Any], left: Any, right: Any) -> fx.Node:
        with graph.inserting_before(node):
            made = graph.call_function(function, (left, right))
        meta.set_no_tensor(meta.place(made, node))
        return made

    return apply


def _has_fitted(item: Any) -> bool:
    if isinstance(item, tuple | list):
        return any(map(_has_fitted, item))
    if isinstance(item, dict):
        return any(map(_has_fitted, item.values()))
    if isinstance(item, slice):
        return _has_fitted((item.start, item.stop, item.step))
    return isinstance(item, FITTED)
