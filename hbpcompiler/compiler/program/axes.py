"""Axes that calls name from the back, named from the front: two spellings of one call."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import fx

from hbpcompiler.compiler.program import meta

AXES = frozenset({"dim", "dims", "dim0", "dim1", "start_dim", "end_dim", "source", "destination", "dimension"})
"""Names of arguments that are axes, in torch's schemas."""


def axes_from_the_front(node: fx.Node) -> tuple[Any, ...]:
    """The arguments of a method's call, axes that are left out filled in and all counted from the front.

    As they are where shapes are not known, or the method adds axes: whose axis -1 is, depends on the method.
    """
    tensor = node.args[0] if node.args else None
    if node.op != "call_method" or not isinstance(tensor, fx.Node):
        return node.args
    before, after = meta.shape(tensor), meta.shape(node)
    if before is None or after is None or len(after) > len(before):
        return node.args
    for names, defaults in _signatures(str(node.target)):
        given = (*node.args, *defaults[len(node.args) :])
        if len(node.args) <= len(names) and all(map(_fits, names[1:], given[1:])):
            return (tensor, *(_from_the_front(item, len(before)) if name in AXES else item
                              for name, item in zip(names[1:], given[1:], strict=False)))
    return node.args


@cache
def _signatures(method: str) -> list[tuple[list[str], list[Any]]]:
    """Names and defaults of the positional arguments of each overload that takes an axis."""
    packet = getattr(torch.ops.aten, method, None)
    found = []
    for overload in packet.overloads() if packet is not None else ():
        arguments = [each for each in getattr(packet, overload)._schema.arguments if not each.kwarg_only]
        names = [each.name for each in arguments]
        if AXES.intersection(names):
            found.append((names, [each.default_value for each in arguments]))
    return found


def _fits(name: str, item: Any) -> bool:
    """Whether an argument of this name may be such an axis, or such axes; of others nothing is asked."""
    return name not in AXES or isinstance(item, int) or (
        isinstance(item, list | tuple) and all(isinstance(each, int) for each in item))


def _from_the_front(item: Any, rank: int) -> Any:
    if isinstance(item, int):
        return item % rank if rank else item
    return tuple(each % rank for each in item)
