"""A block's nodes in a graph of their own, that of the function which it shares with others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from hbpcompiler.codegen.calls import Function
from hbpcompiler.codegen.forms import NUMBER, entry_of
from hbpcompiler.codegen.numbers import Called
from hbpcompiler.codegen.places import Places
from hbpcompiler.codegen.segments import Segment
from hbpcompiler.compiler.program.writer import Loop

LETTERS = "abcefhijloqrtuvwz"
"""Of lengths that differ and stand in shapes alone: not n, k and N, which are samples and columns, nor what tensors and
tables are called (p)."""


class Letter:
    """A number that differs between alike blocks, as it is written inside their function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def lettered(rows: Sequence[Sequence[int]], unseen: Sequence[bool],
             meanings: Sequence[str] = ()) -> tuple[list[Any], dict[tuple[int, ...], str]]:
    """The numbers of alike parts as their function writes them: a name where they differ, after what they mean, or a
    letter. And the names, by what stands there in each part. What is `unseen` is named last."""
    columns = list(zip(*rows, strict=True))
    meant: dict[tuple[int, ...], str] = {}
    for column, meaning in zip(columns, meanings, strict=False):
        meant[column] = meant.get(column) or meaning
    differing = [(hidden, column) for hidden, column in zip(unseen, columns, strict=True) if len(set(column)) > 1]
    seen_first = [column for _, column in sorted(differing, key=lambda pair: pair[0])]
    called = Called(LETTERS)
    letters = {column: called.name(meant.get(column, "")) for column in dict.fromkeys(seen_first)}
    return [Letter(letters[column]) if column in letters else column[0] for column in columns], letters


def letters_in(graph: fx.Graph) -> list[str]:
    """The letters that a graph's code reads, loops' bodies included, in the alphabet's order."""
    found: set[str] = set()
    for node in graph.nodes:
        found.update(_letters(node.args))
        found.update(_letters(node.kwargs))
        if isinstance(node.target, Loop):
            found.update(_letters(node.target.chunk))
            found.update(letters_in(node.target.body))
    return sorted(found)


def _letters(item: Any) -> Iterator[str]:
    if isinstance(item, Letter):
        yield item.name
    elif isinstance(item, dict):
        for part in item.values():
            yield from _letters(part)
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _letters(part)
    elif isinstance(item, slice):
        yield from _letters((item.start, item.stop, item.step))


class Copy:
    """Copies a block into its function's graph, numbers written as they differ. Walks as `forms.Form` does."""

    def __init__(self, function: Function, inputs: Sequence[fx.Node], numbers: Iterator[Any],
                 places: Places, returned: Collection[fx.Node] = ()) -> None:
        self.function, self.numbers, self.places, self.returned = function, numbers, places, returned
        self.known: dict[fx.Node, fx.Node] = {}
        for node in inputs:
            self.known[node] = function.graph.placeholder(node.name)
            self.known[node].meta = dict(node.meta)
        self.unread = set(inputs)

    def run(self, segment: Segment) -> None:
        values = segment.values()
        for node in segment.nodes:
            self._node(node, self.function.graph)
        for node in [*self.known]:
            if (entry := entry_of(node, self.places, segment.path)) is not None:
                self.function.entries[self.known[node]] = entry
        self.function.values = [self.known[node] for node in values
                                if node in self.returned or self.known[node] not in self.function.entries]
        self.function.graph.output(tuple(self.known[node] for node in values))

    def _node(self, node: fx.Node, graph: fx.Graph) -> None:
        target = self._loop(node.target) if isinstance(node.target, Loop) else node.target
        args, kwargs = self._item(node.args, graph), self._item(node.kwargs, graph)
        copy = graph.create_node(node.op, target, args, kwargs)
        self._note(node, copy)
        self.known[node] = copy

    def _note(self, node: fx.Node, copy: fx.Node) -> None:
        copy.meta = dict(node.meta)
        if "shape" in node.meta:
            copy.meta["shape"] = tuple(
                NUMBER.sub(lambda _: str(next(self.numbers)), text) for text in node.meta["shape"])

    def _loop(self, loop: Loop) -> Loop:
        chunk = next(self.numbers)
        body = fx.Graph()
        for node in loop.body.nodes:
            if node.op == "placeholder":
                self.known[node] = body.placeholder(node.name)
                self._note(node, self.known[node])
            elif node.op != "output":
                self._node(node, body)
        body.output(None)
        return replace(loop, body=body, chunk=chunk)

    def _item(self, item: Any, graph: fx.Graph) -> Any:
        if isinstance(item, fx.Node):
            return self._value(item, graph)
        if isinstance(item, dict):
            return {name: self._item(part, graph) for name, part in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(self._item(part, graph) for part in item)
        if isinstance(item, slice):
            return slice(self._item(item.start, graph), self._item(item.stop, graph), self._item(item.step, graph))
        if isinstance(item, int) and not isinstance(item, bool):
            return next(self.numbers)
        return item

    def _value(self, node: fx.Node, graph: fx.Graph) -> fx.Node:
        if node not in self.known:  # a shape or a number, which is written again where it is read
            copy = graph.create_node(node.op, node.target, self._item(node.args, graph),
                                     self._item(node.kwargs, graph))
            copy.meta = dict(node.meta)
            return copy
        if node in self.unread:
            self.unread.remove(node)
            self._note(node, self.known[node])
        return self.known[node]
