"""A pass: a length that torch would work out is said where a batch of no samples leaves nothing to work it out from."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import RESHAPES, called

LEFT = -1
"""What stands for the length that torch divides the others out of."""


def say_lengths(graph: fx.Graph) -> None:
    """x.reshape(N, -1, 4) becomes x.reshape(N, x.shape[1], 4), or with the number. After `annotate`.

    Beside a length that may be 0, as N may, torch refuses -1: any length would do.
    """
    for node in list(graph.nodes):
        lengths, place = _lengths(node)
        own = meta.shape(node)
        if own is None or lengths.count(LEFT) != 1:
            continue
        first, left = _first_axis(node), lengths.index(LEFT)
        beside = own[first:first + left] + own[first + left + 1:first + len(lengths)]
        said = None if all(map(str.isdigit, beside)) else _length(graph, node, first + left)
        if said is not None:
            lengths[left] = said
            given: Any = node.args[place]
            listed = [type(given)(lengths)] if isinstance(given, list | tuple) else lengths
            node.args = (*node.args[:place], *listed)


def _lengths(node: fx.Node) -> tuple[list[Any], int]:
    """The lengths that a reshape names, and at which of its arguments they begin; none of what is no reshape."""
    name = called(node).partition(".")[0]
    place = 2 if name == "unflatten" else 1
    if name not in RESHAPES or name == "flatten" or node.kwargs or len(node.args) <= place:
        return [], place
    given: Any = node.args[place:]
    return list(given[0] if isinstance(given[0], list | tuple) else given), place


def _first_axis(node: fx.Node) -> int:
    """Which of its own axes the first of these lengths is."""
    axis, before = node.args[1], meta.shape(node.all_input_nodes[0])
    if called(node).partition(".")[0] != "unflatten" or before is None or not isinstance(axis, int):
        return 0
    return axis % len(before)


def _length(graph: fx.Graph, node: fx.Node, axis: int) -> fx.Node | int | None:
    """That of an axis: the operand's where it is the operand's with all before it; else the number, if it is one."""
    own, source = meta.shape(node), node.all_input_nodes[0]
    before = meta.shape(source)
    assert own is not None
    if before is not None and own[:axis + 1] == before[:axis + 1]:
        with graph.inserting_before(node):
            shape = graph.call_function(getattr, (source, "shape"))
            length = graph.call_function(operator.getitem, (shape, axis))
        for made in (shape, length):
            meta.set_no_tensor(meta.place(made, node))
        return length
    return int(own[axis]) if own[axis].isdigit() else None
