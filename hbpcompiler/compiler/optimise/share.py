"""An optimisation pass: what is computed twice is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.axes import axes_from_the_front
from hbpcompiler.compiler.program.nodes import is_pure, place_of_wanted_results, writes_in_place


def share_common_subexpressions(graph: fx.Graph) -> None:
    """Equal calls on equal arguments become one: the unfold of two quantities, the derivative of two streams.

    With shapes known, x.flatten(2) and x.flatten(-2) are equal too. A kernel that is asked for some of its results is
    asked once, for all that somebody needs.
    """
    seen: dict[Any, fx.Node] = {}
    written = {node.args[0] for node in graph.nodes if writes_in_place(node) and isinstance(node.args[0], fx.Node)}
    for node in list(graph.nodes):
        if node in written or not is_pure(node):
            continue
        key = (node.op, node.target, _frozen(_arguments(node)), _frozen(node.kwargs))
        twin = seen.setdefault(key, node)
        if twin is not node:
            _ask_for_both(twin, node)
            meta.ask_for(twin, meta.hint(node))
            node.replace_all_uses_with(twin)
            graph.erase_node(node)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """Its arguments as equal calls have them."""
    if node.target is torch.einsum:
        return (_canonical(str(node.args[0])), *node.args[1:])
    place = place_of_wanted_results(node)
    if place is not None:
        return (*node.args[:place], *node.args[place + 1:])
    return axes_from_the_front(node)


def _ask_for_both(kernel: fx.Node, other: fx.Node) -> None:
    """The results that either call asks for, of the first."""
    place = place_of_wanted_results(kernel)
    if place is not None:
        masks = [each if isinstance(each, list | tuple) else () for each in (kernel.args[place], other.args[place])]
        wanted = [one or two for one, two in zip(*masks, strict=True)]
        kernel.args = (*kernel.args[:place], wanted, *kernel.args[place + 1:])


def _canonical(equation: str) -> str:
    """An einsum's equation with letters in order of appearance: "nko,nkz->oz" and "nka,nkb->ab" are one."""
    letters: dict[str, str] = {}
    return "".join(letters.setdefault(sign, chr(97 + len(letters))) if sign.isalpha() else sign for sign in equation)


def _frozen(item: Any) -> Any:
    if type(item) is fx.Node or type(item) is str:
        return item
    if isinstance(item, dict):
        return tuple(sorted((key, _frozen(value)) for key, value in item.items()))
    if isinstance(item, list | tuple):
        return (type(item).__name__, *map(_frozen, item))
    if isinstance(item, slice):
        return ("slice", item.start, item.stop, item.step)
    return (type(item).__name__, item) if isinstance(item, bool | int | float) else item
