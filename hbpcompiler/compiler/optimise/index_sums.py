"""A pass: rows that are added up at an index are added where the sum that they belong to lies.

A vocabulary's table is large: zeros of its size, and a second pass over them, cost more than the rows do.
"""

from __future__ import annotations

import operator

from torch import fx

from hbpcompiler.compiler.program import meta


def add_at_index(graph: fx.Graph) -> None:
    """total + zeros.index_add(axis, index, rows) becomes total.index_add(axis, index, rows). After `annotate`."""
    for node in list(graph.nodes):
        if node.target is not operator.add or node.kwargs:
            continue
        for total, made in (node.args, node.args[::-1]):
            if isinstance(total, fx.Node) and _is_sum_at_index(made) and meta.alike(total, node):
                zeros = made.args[0]
                node.op, node.target, node.args = "call_method", made.target, (total, *made.args[1:])
                graph.erase_node(made)
                graph.erase_node(zeros)
                break


def _is_sum_at_index(node: object) -> bool:
    """Whether these are rows, added to zeros, that nobody else reads."""
    if not isinstance(node, fx.Node) or node.target != "index_add" or node.kwargs or len(node.users) != 1:
        return False
    zeros = node.args[0]
    return isinstance(zeros, fx.Node) and zeros.target == "new_zeros" and len(zeros.users) == 1
