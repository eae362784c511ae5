"""Optimisation passes: factors that are one number throughout, with shapes known."""

from __future__ import annotations

import operator

import torch
from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.nodes import replace_by, writes_in_place


def drop_constant_factors(graph: fx.Graph) -> None:
    """A factor that is one number throughout is that number; if all are ones, it is nothing."""
    for node in list(graph.nodes):
        if node.target is not operator.mul or not isinstance(node.args[0], fx.Node):
            continue
        value, factor = node.args
        number = _constant(factor)
        if number is None or not meta.alike(value, node):
            continue
        if number == 1:
            replace_by(graph, node, value)
        else:
            node.args = (value, number)


def _constant(factor: object) -> float | None:
    """The number that all entries are, whatever axes were put in."""
    while isinstance(factor, fx.Node) and factor.op == "call_method" and factor.target == "unsqueeze":
        factor = factor.args[0]
    if not isinstance(factor, fx.Node):
        return None
    if factor.target is operator.neg:
        number = _constant(factor.args[0])
        return None if number is None else -number
    if factor.target is operator.mul and isinstance(factor.args[1], int | float):
        number = _constant(factor.args[0])
        return None if number is None else number * factor.args[1]
    if factor.target not in (torch.ones_like, torch.full_like):
        return None
    full = factor.args[1] if factor.target is torch.full_like else 1
    return full if isinstance(full, int | float) else None


def drop_ones(graph: fx.Graph) -> None:
    """Ones times x are x, ones over x are 1 / x; where x is smaller, only if all that reads them spreads it anyway."""
    written = {node.args[0] for node in graph.nodes if writes_in_place(node)}
    for node in list(graph.nodes):
        if node.target not in (operator.mul, operator.truediv) or _constant(node.args[0]) != 1:
            continue
        other = node.args[1]
        if not isinstance(other, fx.Node) or other in written or meta.dtype(other) != meta.dtype(node):
            continue
        if meta.alike(other, node):
            _take(graph, node, other)
        elif _is_spread(node, other):
            _take_smaller(graph, node, other)


def _take(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    if node.target is operator.mul:
        replace_by(graph, node, other)
    else:
        node.op, node.target, node.args = "call_method", "reciprocal", (other,)


def _take_smaller(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    """Axes that were put into the whole are put into what is smaller; one number needs none."""
    lengths = meta.shape(other) or ()
    meta.set_tensor(node, lengths, meta.dtype(node))
    for view in _with_column_axis(node):
        if lengths:
            meta.set_tensor(view, (lengths[0], "1", *lengths[1:]), meta.dtype(node))
        else:
            replace_by(graph, view, node)
    _take(graph, node, other)


def _is_spread(node: fx.Node, other: fx.Node) -> bool:
    """Whether products with tensors of the whole shape are all that reads it."""
    whole, lengths = meta.shape(node), meta.shape(other)
    if whole is None or lengths is None or len(lengths) not in (0, len(whole)):
        return False
    views = _with_column_axis(node)
    return all(_is_product_of_whole(reader, read)
               for read in (node, *views) for reader in read.users if reader not in views)


def _with_column_axis(node: fx.Node) -> list[fx.Node]:
    return [each for each in node.users
            if each.op == "call_method" and each.target == "unsqueeze" and each.args[1:] == (1,)]


def _is_product_of_whole(reader: fx.Node, read: fx.Node) -> bool:
    if reader.target is not operator.mul or not isinstance(reader.args[0], fx.Node) or reader.args[0] is read:
        return False
    return reader.args[1] is read and meta.alike(reader.args[0], reader)
