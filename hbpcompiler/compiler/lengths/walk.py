"""Programs for several lengths side by side: the same calls in the same order, and the numbers in which they differ.

A walk goes through all of them at once and hands each number, with what it is in every one, to a function; what that
gives back stands in its place in a copy of the first. Whatever else differs ends the walk: the programs are of one
kind, or a program for each length is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import called
from hbpcompiler.compiler.program.weighted_loss import WeightedLoss
from hbpcompiler.compiler.program.writer import Loop
from hbpcompiler.rule.composite import Composite, EachSample

Numbers = Callable[[Sequence[Any]], Any]
"""What stands for these numbers, one of each program."""
NUMBER = re.compile(r"\d+")
KEPT = ("hint", "wish", "subject", "letters", "role", "dtype", "results", "argument", "annotation", "sizes", "step",
        "curvature", "own memory", "no tensor")
"""What nodes say of themselves that must not differ."""


class LengthsDifferError(Exception):
    """Programs for several lengths differ in more than numbers: how, in words."""


class Walk:
    """Through some graphs at once."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        self.found: dict[fx.Node, tuple[Any, Any]] = {}
        """Of nodes of the first graph, arguments and named arguments with what stands for numbers."""
        self.shapes: dict[fx.Node, tuple[Any, ...]] = {}
        """Their shapes: for each axis a text, or (texts between numbers, what stands for these)."""
        self._places: list[dict[fx.Node, tuple[int, int]]] = []
        self._graphs = 0
        self._composites: set[int] = set()
        self.inside: dict[int, list[fx.Node]] = {}
        """By the id of a composite, the nodes of its graph that have such numbers."""

    def run(self, graphs: Sequence[fx.Graph]) -> None:
        """Raises LengthsDifferError."""
        if not self._places:
            self._places = [{} for _ in graphs]
        number = self._graphs
        self._graphs += 1
        rows = [list(graph.nodes) for graph in graphs]
        for places, nodes in zip(self._places, rows, strict=True):
            places.update({node: (number, position) for position, node in enumerate(nodes)})
        for together in zip(*rows, strict=False):
            self._node(together)
        if len({len(nodes) for nodes in rows}) > 1:
            raise LengthsDifferError("one has more steps than another")

    def _node(self, nodes: Sequence[fx.Node]) -> None:
        first = nodes[0]
        self._same(nodes, "what is called", [node.op for node in nodes])
        targets = [node.target for node in nodes]
        if isinstance(first.target, Loop):
            self._loop(nodes, targets)
        elif isinstance(first.target, Composite):
            self._composite(nodes, targets)
        else:
            self._same(nodes, "what is called", [str(target) for target in targets])
        self._same(nodes, "its heading", [meta.block(node) for node in nodes])
        for key in KEPT:
            self._same(nodes, f"its {key}", [node.meta.get(key) for node in nodes])
        self.found[first] = (self._item(nodes, [node.args for node in nodes]),
                             self._item(nodes, [dict(node.kwargs) for node in nodes]))
        shapes = [node.meta.get("shape") for node in nodes]
        if shapes[0] is not None:
            self._same(nodes, "the number of axes", [None if shape is None else len(shape) for shape in shapes])
            self.shapes[first] = tuple(self._length(nodes, lengths) for lengths in zip(*shapes, strict=True))

    def _length(self, nodes: Sequence[fx.Node], lengths: Sequence[str]) -> Any:
        """Of a shape."""
        self._same(nodes, "a shape", [NUMBER.sub("#", length) for length in lengths])
        columns = zip(*([int(number) for number in NUMBER.findall(length)] for length in lengths), strict=True)
        return NUMBER.split(lengths[0]), [self._number(nodes, column) for column in columns]

    def _loop(self, nodes: Sequence[fx.Node], loops: Sequence[Any]) -> None:
        self._same(nodes, "what is called", [isinstance(loop, Loop) for loop in loops])
        self._same(nodes, "a loop's chunks", [
            (loop.chunk, loop.axis, loop.totals, loop.rows, loop.cut, loop.letter, loop.begins) for loop in loops])
        self.run([loop.body for loop in loops])

    def _composite(self, nodes: Sequence[fx.Node], functions: Sequence[Any]) -> None:
        first = functions[0]
        self._same(nodes, "what is called", [type(function) for function in functions])
        self._same(nodes, "a function", [(function.name, tuple(function.shape), function.dtype, tuple(function.batched))
                                         for function in functions])
        if id(first) in self._composites:
            return
        self._composites.add(id(first))
        if isinstance(first, WeightedLoss):
            self._composite(nodes, [function.losses for function in functions])
            return
        if isinstance(first, EachSample):
            self._composite(nodes, [function.whole for function in functions])
            return
        self.run([function.graph for function in functions])

    def _item(self, nodes: Sequence[fx.Node], items: Sequence[Any]) -> Any:
        first = items[0]
        self._same(nodes, "an argument", [type(item) for item in items])
        if isinstance(first, fx.Node):
            self._same(nodes, "what it reads", [places[item] for places, item in zip(self._places, items, strict=True)])
            return first
        if isinstance(first, Composite):
            self._composite(nodes, items)
            return first
        if isinstance(first, list | tuple):
            self._same(nodes, "an argument", [len(item) for item in items])
            parts = [self._item(nodes, parts) for parts in zip(*items, strict=True)]
            return tuple(parts) if isinstance(first, tuple) else parts
        if isinstance(first, Mapping):
            self._same(nodes, "an argument", [tuple(item) for item in items])
            return {name: self._item(nodes, [item[name] for item in items]) for name in first}
        if isinstance(first, slice):
            return slice(*(self._item(nodes, parts) for parts in zip(
                *((item.start, item.stop, item.step) for item in items), strict=True)))
        if isinstance(first, int | float) and not isinstance(first, bool):
            return self._number(nodes, items)
        self._same(nodes, "an argument", [str(item) for item in items])
        return first

    def _number(self, nodes: Sequence[fx.Node], numbers: Sequence[Any]) -> Any:
        try:
            return self.numbers(numbers)
        except LengthsDifferError as error:
            raise self._error(nodes, str(error)) from None

    def _same(self, nodes: Sequence[fx.Node], what: str, found: Sequence[Any]) -> None:
        if any(other != found[0] for other in found[1:]):
            raise self._error(nodes, f"{what} is not the same at every length")

    def _error(self, nodes: Sequence[fx.Node], what: str) -> LengthsDifferError:
        block = meta.block(nodes[0])
        return LengthsDifferError(f"{block.title if block is not None else 'the program'}, {called(nodes[0])}: {what}")
