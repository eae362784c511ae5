"""Blocks of operations that are alike become calls of one function: a network of fifty equal layers is written once.

A block is what stands under one heading: an operation's step back and what ends at its parameters. Two blocks are alike
if the same calls are made on the same inputs, numbers aside: numbers that differ are arguments of the function. Nothing
is searched for: every block has a canonical form, and equal forms make a class. The order of all calls is as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import fx

from hbpcompiler.codegen.places import Places
from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.nodes import is_pure
from hbpcompiler.compiler.program.writer import Loop

SAVED = 8
"""From so many statements that need not be written again, alike blocks share a function."""
ENTRIES = 3
"""A block of one statement is as short as a call of it, unless it reads so many entries of tables."""
NUMBER = re.compile(r"\d+")
LETTERS = "abcdefhijlmopqrstuvwz"
"""Of numbers that differ: not n, k and N, which are samples and columns, nor what tensors are called."""


class Letter:
    """A number that differs between alike blocks, as it is written inside their function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


@dataclass
class Segment:
    """Nodes of one graph that stand one after the other under one heading."""

    block: Block
    nodes: list[fx.Node]

    @property
    def path(self) -> str:
        """The module's."""
        return self.block.title.rpartition(": ")[0]

    def values(self) -> list[fx.Node]:
        """What later lines read."""
        own = set(self.nodes)
        return [node for node in self.nodes if "shape" in node.meta and any(
            reader not in own for reader in readers(node))]


@dataclass
class Function:
    """A class of alike blocks: the graph of one, with a placeholder for each input."""

    graph: fx.Graph
    block: Block
    letters: list[str]
    """of the numbers that are arguments."""
    members: int
    values: list[fx.Node] = field(default_factory=list)
    """nodes of `graph` that are returned."""
    entries: dict[fx.Node, tuple[str, str]] = field(default_factory=dict)
    """Nodes of `graph` that stand in tables: the table, and the key behind the module's path."""

    @property
    def tables(self) -> list[str]:
        return sorted({table for table, _ in self.entries.values()})


@dataclass
class Call:
    """A block in its place: which function, on what, for what."""

    function: Function
    inputs: list[fx.Node]
    numbers: list[int]
    values: list[fx.Node]
    path: str
    """of the module."""


@dataclass
class Outline:
    """The calls by the last node of their block, and all nodes that are inside a function."""

    calls: dict[fx.Node, Call] = field(default_factory=dict)
    inside: set[fx.Node] = field(default_factory=set)


def outlined(graph: fx.Graph, places: Places) -> Outline:
    """The classes of a program, its loops' bodies included. `places` are entries of tables (see `places`)."""
    classes: dict[Any, list[tuple[Segment, _Form]]] = {}
    for segment in _segments(graph):
        form = _Form(segment, places)
        if (form.statements > 1 or form.entries_read >= ENTRIES) and _is_whole(segment):
            classes.setdefault(form.key, []).append((segment, form))
    found = Outline()
    for members in classes.values():
        if (len(members) - 1) * members[0][1].statements >= SAVED:
            _share(members, places, found)
    return found


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a value, also by way of shapes and other expressions that are written where they are read."""
    for user in node.users:
        if is_text(user):
            yield from readers(user)
        else:
            yield user


def is_text(node: fx.Node) -> bool:
    """Whether the node is no tensor but a shape, a number or a dtype: it is written where it is read."""
    return ("shape" not in node.meta and "results" not in node.meta and not node.meta.get("hint") and is_pure(node)
            and not _of_loop(node))


def blocks_in(loop: Loop) -> int:
    """Under how many headings a loop's body stands."""
    return len({node.meta["block"].title for node in loop.body.nodes if node.meta.get("block") is not None
                and node.op not in ("placeholder", "output")})


def _of_loop(node: fx.Node) -> bool:
    """Whether the node is one of a loop's results."""
    return any(isinstance(read.target, Loop) for read in node.all_input_nodes)


def _segments(graph: fx.Graph) -> Iterator[Segment]:
    current: Segment | None = None
    for node in graph.nodes:
        block = node.meta.get("block")
        if node.op in ("placeholder", "output") or is_text(node) or block is None:
            continue
        long_loop = isinstance(node.target, Loop) and blocks_in(node.target) > 1
        if long_loop:
            yield from _segments(cast("Loop", node.target).body)
        apart = long_loop or _belongs_to_long_loop(node)
        if current is not None and (apart or block != current.block):
            yield current
            current = None
        if not apart and block.part != "results":
            current = current or Segment(block, [])
            current.nodes.append(node)
    if current is not None:
        yield current


def _belongs_to_long_loop(node: fx.Node) -> bool:
    """Whether it is a total or a result of a loop through several blocks, which is printed with the loop."""
    totals = [user for user in node.users if isinstance(user.target, Loop) and node in cast("Any", user.args[0])]
    loops = [*totals, *(read for read in node.all_input_nodes if isinstance(read.target, Loop))]
    return any(blocks_in(cast("Loop", loop.target)) > 1 for loop in loops)


def _is_whole(segment: Segment) -> bool:
    """Whether loops and the totals that they add to are all inside."""
    own = set(segment.nodes)
    totals = [total for node in own if isinstance(node.target, Loop) for total in cast("Any", node.args[0])]
    left = [node for node in own if any(isinstance(user.target, Loop) and user not in own and node in
                                        cast("Any", user.args[0]) for user in node.users)]
    return own.issuperset(totals) and not left


class _Form:
    """A block without its names and numbers (`key`), and these: what makes two blocks alike, and what differs."""

    def __init__(self, segment: Segment, entries: Places) -> None:
        self.path, self.entries = segment.path, entries
        self.places: dict[fx.Node, tuple[Any, ...]] = {
            node: ("own", position) for position, node in enumerate(segment.nodes)}
        self.inputs: list[fx.Node] = []
        self.numbers: list[tuple[bool, int]] = []
        """(whether it is in the code and not only in a shape's comment, the number)."""
        self.statements = sum(not is_text(node) and "results" not in node.meta for node in segment.nodes)
        self.key: Any = None
        values = set(segment.values())
        title = segment.block.title.rpartition(": ")[2]
        rows = [(self._node(node), self._entry(node) or node in values) for node in segment.nodes]
        self.entries_read = sum(self._entry(node) is not None for node in self.inputs)
        self.key = (title, segment.block.part, tuple(rows))

    def _entry(self, node: fx.Node) -> tuple[str, str] | None:
        """Which entry of a table a value is: the table, and the key behind the module's path."""
        return entry_of(node, self.entries, self.path)

    def _node(self, node: fx.Node) -> Any:
        target = self._loop(node.target) if isinstance(node.target, Loop) else node.target
        return (node.op, target, self._item(node.args), self._item(node.kwargs), self._shape(node),
                node.meta.get("dtype"), node.meta.get("results"))

    def _loop(self, loop: Loop) -> Any:
        self.numbers.append((True, loop.chunk))
        for number, node in enumerate(loop.body.nodes):
            self.places[node] = ("body", number)
        rows = [self._shape(node) if node.op == "placeholder" else self._node(node)
                for node in loop.body.nodes if node.op != "output"]
        return ("loop", loop.axis, loop.totals, loop.rows, loop.cut, loop.chunk == 1, tuple(rows))

    def _shape(self, node: fx.Node) -> Any:
        shape = node.meta.get("shape")
        if shape is None:
            return None
        self.numbers += [(False, int(number)) for text in shape for number in NUMBER.findall(text)]
        return tuple(NUMBER.sub("#", text) for text in shape)

    def _item(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            return self._value(item)
        if isinstance(item, dict):
            return tuple((name, self._item(part)) for name, part in item.items())
        if isinstance(item, list | tuple):
            return (type(item).__name__ == "list", *(self._item(part) for part in item))
        if isinstance(item, slice):
            return ("slice", self._item(item.start), self._item(item.stop), self._item(item.step))
        if isinstance(item, int) and not isinstance(item, bool):
            self.numbers.append((True, item))
            return "#"
        return (type(item).__name__, str(item))

    def _value(self, node: fx.Node) -> Any:
        if node in self.places:
            return self.places[node]
        if is_text(node):
            return (node.op, node.target, self._item(node.args), self._item(node.kwargs))
        entry = self._entry(node)
        self.places[node] = entry or ("input", len(self.inputs))
        self.inputs.append(node)
        shape = node.meta.get("shape")
        return (*self.places[node], None if shape is None else len(shape), node.meta.get("dtype"))


def entry_of(node: fx.Node, places: Places, path: str) -> tuple[str, str] | None:
    """The table and the key behind the path, of a value that stands in one under this module."""
    place = places.get(node)
    leaf = None if place is None else place.under(path)
    return None if place is None or leaf is None else (place.table, leaf)


def _share(members: Sequence[tuple[Segment, _Form]], places: Places, found: Outline) -> None:
    """One function for these blocks, and a call in the place of each."""
    first, form = members[0]
    rows = [[number for _, number in other.numbers] for _, other in members]
    in_code = [code for code, _ in form.numbers]
    letters: dict[tuple[int, ...], str] = {}
    written: list[Any] = []
    arguments: dict[str, int] = {}
    for position, column in enumerate(zip(*rows, strict=True)):
        if len(set(column)) == 1:
            written.append(column[0])
            continue
        if column not in letters:
            letters[column] = LETTERS[len(letters)] if len(letters) < len(LETTERS) else f"a{len(letters)}"
        if in_code[position]:
            arguments.setdefault(letters[column], position)
        written.append(Letter(letters[column]))
    function = Function(fx.Graph(), first.block, list(arguments), len(members))
    _Copy(function, form.inputs, iter(written), places).run(first)
    for segment, other in members:
        inputs = [node for node in other.inputs if entry_of(node, places, segment.path) is None]
        values = [node for node in segment.values() if entry_of(node, places, segment.path) is None]
        numbers = [other.numbers[position][1] for position in arguments.values()]
        found.calls[segment.nodes[-1]] = Call(function, inputs, numbers, values, segment.path)
        found.inside.update(segment.nodes)


class _Copy:
    """Copies a block into its function's graph, numbers written as they differ. Walks as `_Form` does."""

    def __init__(self, function: Function, inputs: Sequence[fx.Node], numbers: Iterator[Any],
                 places: Places) -> None:
        self.function, self.numbers, self.places = function, numbers, places
        self.known: dict[fx.Node, fx.Node] = {}
        for node in inputs:
            self.known[node] = function.graph.placeholder(node.name)
            self.known[node].meta = dict(node.meta)

    def run(self, segment: Segment) -> None:
        values = segment.values()
        for node in segment.nodes:
            self._node(node, self.function.graph)
        for node in [*self.known]:
            if (entry := entry_of(node, self.places, segment.path)) is not None:
                self.function.entries[self.known[node]] = entry
        self.function.values = [self.known[node] for node in values if self.known[node] not in self.function.entries]
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
        return self.known[node]


ShortName = Callable[[str], str]


def short_names(call_block: Block) -> ShortName:
    """How a function calls what its blocks call by their module's path: S_layer1_0_conv1 is S."""
    module = re.sub(r"[^0-9a-zA-Z_]+", "_", call_block.title.rpartition(": ")[0])

    def short(name: str) -> str:
        without = name.replace(f"_{module}", "").replace(f"{module}_", "") if module else name
        return without.strip("_") or "x"

    return short
