"""Values that a module's turns of loops and its way back share, and that are made of its parameters alone.

A batch norm's scaling is one: every later line of the module reads it. They stand in a table by the module's path,
which is filled in one loop, instead of in a variable for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import fx

from hbpcompiler.codegen.calls import Outline
from hbpcompiler.codegen.forms import Form
from hbpcompiler.codegen.places import SHARED, Place, Places
from hbpcompiler.codegen.segments import readers, segments
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import is_pure
from hbpcompiler.compiler.program.writer import Loop

FEWEST = 3
"""As many are worth a table."""


def made_once(graph: fx.Graph, places: Places) -> dict[fx.Node, Place]:
    """Their places, the placeholders of loops that read them included."""
    found: dict[fx.Node, Place] = {}
    for segment in segments(graph):
        values = segment.values()
        if segment.block.part != "backward" or len(values) != 1 or not all(map(is_pure, segment.nodes)):
            continue
        (value,) = values
        place = Place(SHARED, segment.path)
        form = Form(segment, places)
        own = all(form.entry(node) is not None for node in form.inputs) and value.graph is graph
        if own and segment.path and value not in places and place not in found.values() and (
                {path_of(reader) for reader in _through_loops(value)} == {segment.path}):
            found[value] = place
    if len(found) < FEWEST:
        return {}
    return found | {holder: place for value, place in found.items() for holder in _holders(value)}


def path_of(node: fx.Node) -> str:
    """Of the module that it belongs to."""
    block = meta.block(node)
    return "" if block is None else block.title.rpartition(": ")[0]


def _through_loops(value: fx.Node) -> Iterator[fx.Node]:
    """Who reads it, in loops' bodies too."""
    for reader in readers(value):
        if not isinstance(reader.target, Loop):
            yield reader
    for holder in _holders(value):
        yield from _through_loops(holder)


def _holders(value: fx.Node) -> Iterator[fx.Node]:
    """Placeholders that stand for it, whole, in the bodies of loops."""
    for loop in value.users:
        if isinstance(loop.target, Loop):
            totals, cut, whole = cast("tuple[tuple[fx.Node, ...], ...]", loop.args)
            holders = [node for node in loop.target.body.nodes if node.op == "placeholder"]
            if value in totals or value in cut:
                continue
            for holder, outer in zip(holders[len(totals) + len(cut):], whole, strict=False):
                if outer is value:
                    yield holder
                    yield from _holders(holder)


def rows_of_calls(graph: fx.Graph, outline: Outline) -> dict[fx.Node, list[fx.Node]]:
    """Calls in a row of one function that fills a table: the last nodes of their blocks, by the first of these."""
    found: dict[fx.Node, list[fx.Node]] = {}
    current: list[fx.Node] = []
    for node in graph.nodes:
        call = outline.calls.get(node)
        if call is None:
            current = current if node in outline.inside or "shape" not in node.meta else []
        elif call.inputs or call.numbers or call.values or not call.function.entries:
            current = []
        elif current and call.function is outline.calls[current[0]].function:
            current.append(node)
        else:
            current = found[node] = [node]
    return {node: row for node, row in found.items() if len(row) > 1}
