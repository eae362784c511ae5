"""The canonical form of a block: its calls without names and numbers. Blocks of one form share a function."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from torch import fx

from hbpcompiler.codegen.numbers import CHUNK, LENGTH, argument_names, part_of
from hbpcompiler.codegen.places import Places
from hbpcompiler.codegen.segments import Segment, is_text
from hbpcompiler.compiler.program.writer import Loop

NUMBER = re.compile(r"\d+")
CODE, SHAPE, INPUT = "code", "the comment on a shape", "an input's shape"
"""Where a number stands. That of an input's shape is not written, but decides how a reshape is."""


class Form:
    """A block without its names and numbers (`key`), and these: what makes two blocks alike, and what differs."""

    def __init__(self, segment: Segment, entries: Places, returned: Collection[fx.Node] = ()) -> None:
        self.path, self.entries, self.meant = segment.path, entries, ""
        self.places: dict[fx.Node, tuple[Any, ...]] = {
            node: ("own", position) for position, node in enumerate(segment.nodes)}
        self.inputs: list[fx.Node] = []
        self.numbers: list[tuple[str, int]] = []
        """(where it stands, the number)."""
        self.meanings: list[str] = []
        """What each number is (see `numbers`); "" for those of shapes."""
        self.owners: list[fx.Node] = []
        """The node of the block that each number belongs to."""
        self.statements = sum(not is_text(node) and "results" not in node.meta for node in segment.nodes)
        self.key: Any = None
        values = set(segment.values())
        title = segment.block.title.rpartition(": ")[2]
        rows = []
        for node in segment.nodes:
            rows.append((self._node(node), self.entry(node) or node in values, node in returned))
            self.owners += [node] * (len(self.numbers) - len(self.owners))
        self.entries_read = sum(self.entry(node) is not None for node in self.inputs)
        self.key = (title, segment.block.part, tuple(rows))

    def entry(self, node: fx.Node) -> tuple[str, str] | None:
        """Which entry of a table a value is: the table, and the key behind the module's path."""
        return entry_of(node, self.entries, self.path)

    def _node(self, node: fx.Node) -> Any:
        target = self._loop(node.target) if isinstance(node.target, Loop) else node.target
        return (node.op, target, *self._arguments(node), self._shape(node),
                node.meta.get("dtype"), node.meta.get("results"))

    def _arguments(self, node: fx.Node) -> Any:
        args, kwargs = [], []
        for name, item in zip(argument_names(node), node.args, strict=False):
            self.meant = name
            args.append(self._item(item))
        for name, item in node.kwargs.items():
            self.meant = name
            kwargs.append((name, self._item(item)))
        return tuple(args), tuple(kwargs)

    def _number(self, where: str, number: int, meaning: str = "") -> None:
        self.numbers.append((where, number))
        self.meanings.append(meaning)

    def _loop(self, loop: Loop) -> Any:
        self._number(CODE, loop.chunk, CHUNK)
        for number, node in enumerate(loop.body.nodes):
            self.places[node] = ("body", number)
        rows = [self._shape(node) if node.op == "placeholder" else self._node(node)
                for node in loop.body.nodes if node.op != "output"]
        return ("loop", loop.axis, loop.totals, loop.rows, loop.cut, loop.chunk == 1, loop.begins, tuple(rows))

    def _shape(self, node: fx.Node, where: str = SHAPE) -> Any:
        shape = node.meta.get("shape")
        if shape is None:
            return None
        texts, numbers = _numbers_apart(shape)
        for number in numbers:
            self._number(where, number)
        return texts

    def _item(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            return self._value(item)
        if isinstance(item, dict):
            return tuple((name, self._item(part)) for name, part in item.items())
        if isinstance(item, list | tuple):
            return (type(item) is list or type(item).__name__ == "list", *self._parts(item))
        if isinstance(item, slice):
            return ("slice", self._item(item.start), self._item(item.stop), self._item(item.step))
        if isinstance(item, int) and not isinstance(item, bool):
            self._number(CODE, item, self.meant or LENGTH)
            return "#"
        return (type(item).__name__, str(item))

    def _parts(self, item: Sequence[Any]) -> list[Any]:
        meant, found = self.meant, []
        for position, part in enumerate(item):
            self.meant = part_of(meant, position, len(item))
            found.append(self._item(part))
        self.meant = meant
        return found

    def _value(self, node: fx.Node) -> Any:
        if node in self.places:
            return self.places[node]
        if is_text(node):
            self.meant = LENGTH
            return (node.op, node.target, self._item(node.args), self._item(node.kwargs))
        entry = self.entry(node)
        self.places[node] = entry or ("input", len(self.inputs))
        self.inputs.append(node)
        return (*self.places[node], self._shape(node, INPUT), node.meta.get("dtype"))


@lru_cache(maxsize=4096)
def _numbers_apart(shape: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Lengths without their numbers, and these."""
    return (tuple(NUMBER.sub("#", length) for length in shape),
            tuple(int(number) for length in shape for number in NUMBER.findall(length)))


def entry_of(node: fx.Node, places: Places, path: str) -> tuple[str, str] | None:
    """The table and the key behind the path, of a value that stands in one under this module."""
    place = places.get(node)
    leaf = None if place is None else place.under(path)
    return None if place is None or leaf is None else (place.table, leaf)
