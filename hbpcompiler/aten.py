"""An operation of the graph as a call of torch.ops.aten, and what torch can take apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hbpcompiler.graph import Operation
from hbpcompiler.registry import Registry

DECOMPOSITION_ROUNDS = 4
"""Decompositions of decompositions, at most."""


def overload_of(operation: Operation) -> Any:
    """The OpOverload that was traced."""
    return getattr(packet_of(operation), operation.overload or "default")


def packet_of(operation: Operation) -> Any:
    """The operation under its name without overload."""
    return getattr(torch.ops.aten, operation.target.removeprefix("aten."))


def call(operation: Operation, run: Callable[..., Any], tensor: Callable[[str], Any],
         other: Callable[[Any], Any] = lambda item: item) -> Any:
    """`run(*arguments)` in the schema's order, tensors by slot; of several results the operation's own."""

    def argument(item: Any) -> Any:
        if isinstance(item, list):
            return [argument(part) for part in item]
        return tensor(item) if isinstance(item, str) and item in operation.tensors else other(item)

    positional, keywords = [], {}
    schema = overload_of(operation)._schema
    for entry in schema.arguments:
        item = argument(entry.name if entry.name in operation.tensors else operation.attributes[entry.name])
        if entry.kwarg_only:
            keywords[entry.name] = item
        else:
            positional.append(item)
    result = run(*positional, **keywords)
    several = len(schema.returns) > 1 or isinstance(schema.returns[0].type, torch.ListType)
    return result[operation.index] if several else result


def decompositions(missing: Sequence[Operation], registry: Registry) -> dict[Any, Any]:
    """How these operations are taken apart, by overload: as a rule file says, or else by torch's own table."""
    from torch._decomp import core_aten_decompositions, decomposition_table

    core = core_aten_decompositions()
    table = {}
    for operation in missing:
        packet = getattr(torch.ops.aten, operation.target.removeprefix("aten."), None)
        overload = getattr(packet, operation.overload or "default", None)
        own = registry.decomposition(operation.target, operation.overload)
        if own is not None:
            table[overload] = own.function
        elif overload in core:
            table[overload] = core[overload]
        elif overload in decomposition_table:
            table[overload] = decomposition_table[overload]
        elif overload is not None and overload.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            table[overload] = overload.decompose
    return table
