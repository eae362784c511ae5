"""Blocks as they lie in a program: nodes that stand one after the other under one heading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import fx

from hbpcompiler.compiler.program.meta import Block
from hbpcompiler.compiler.program.nodes import is_pure
from hbpcompiler.compiler.program.writer import Loop


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


def segments(graph: fx.Graph) -> Iterator[Segment]:
    """Of a program, its loops' bodies included."""
    for _, row in rows(graph):
        yield from row


def rows(graph: fx.Graph) -> Iterator[tuple[fx.Graph, list[Segment]]]:
    """Blocks with nothing between them, and the graph that they are in: the program's, or the body of a loop through
    several blocks, which parts what is before it from what is behind it."""
    row: list[Segment] = []
    block: Block | None = None
    for node in graph.nodes:
        own: Block | None = node.meta.get("block")
        if node.op in ("placeholder", "output") or is_text(node) or own is None:
            continue
        if isinstance(node.target, Loop) and is_long(node.target):
            yield graph, row
            yield from rows(node.target.body)
            row, block = [], None
        elif _belongs_to_long_loop(node) or own.part == "results":
            block = None
        else:
            if own != block:
                row.append(Segment(own, []))
            row[-1].nodes.append(node)
            block = own
    yield graph, row


def _belongs_to_long_loop(node: fx.Node) -> bool:
    """Whether it is a total or a result of a loop through several blocks, which is printed with the loop."""
    totals = [user for user in node.users if isinstance(user.target, Loop) and node in cast("Any", user.args[0])]
    loops = [*totals, *(read for read in node.all_input_nodes if isinstance(read.target, Loop))]
    return any(is_long(cast("Loop", loop.target)) for loop in loops)


def is_whole(segment: Segment) -> bool:
    """Whether loops and the totals that they add to are all inside."""
    own = set(segment.nodes)
    totals = [total for node in own if isinstance(node.target, Loop) for total in cast("Any", node.args[0])]
    left = [node for node in own if any(isinstance(user.target, Loop) and user not in own and node in
                                        cast("Any", user.args[0]) for user in node.users)]
    return own.issuperset(totals) and not left


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


def _of_loop(node: fx.Node) -> bool:
    """Whether the node is one of a loop's results."""
    return any(isinstance(read.target, Loop) for read in node.all_input_nodes)


def is_long(loop: Loop) -> bool:
    """Whether a loop's body stands under more than one heading."""
    first: str | None = None
    for node in loop.body.nodes:
        block: Block | None = node.meta.get("block")
        if block is None or node.op in ("placeholder", "output"):
            continue
        if first is not None and block.title != first:
            return True
        first = block.title
    return False


def under(title: str, path: str) -> str:
    """A heading as it is inside of a module; as it is if it does not stand there."""
    if not title.startswith((f"{path}.", f"{path}: ")):
        return title
    return title[len(path):].removeprefix(".").removeprefix(": ")


def times_read(node: fx.Node, user: fx.Node) -> int:
    """How often one line mentions a value."""
    return sum(read is node for read in _nodes_in((user.args, user.kwargs)))


def _nodes_in(item: Any) -> Iterator[fx.Node]:
    """Every mention of a node in a call's arguments, repeated ones too."""
    if isinstance(item, fx.Node):
        yield item
    elif isinstance(item, dict):
        yield from _nodes_in(list(item.values()))
    elif isinstance(item, list | tuple):
        for part in item:
            yield from _nodes_in(part)
