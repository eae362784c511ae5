"""Tensors without elements in a list whose rule says that they add nothing: they are left out of the graph.

A language model's empty cache is joined to the first keys and values in this way.
"""

from __future__ import annotations

from dataclasses import replace

from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rule import Rule
from hbpcompiler.rule.registry import Registry


def without_idle_operands(graph: Graph, registry: Registry) -> Graph:
    """The graph in which no list holds them, unless all that it holds are such."""
    operations = []
    for operation in graph.operations:
        rule = registry.find(operation.target, operation.overload)
        names = rule.idle_if_empty if isinstance(rule, Rule) else ()
        for name in names:
            operation = _with_full_ones(operation, name)
        operations.append(operation)
    return without_dead(replace(graph, operations=operations)) if operations != list(graph.operations) else graph


def _with_full_ones(operation: Operation, name: str) -> Operation:
    slots = [slot for slot in operation.tensors if slot.split(".")[0] == name]
    kept = [operation.tensors[slot] for slot in slots if not _is_empty(operation.tensors[slot])]
    if len(kept) in (0, len(slots)):
        return operation
    tensors = {slot: value for slot, value in operation.tensors.items() if slot not in slots}
    tensors |= {f"{name}.{position}": value for position, value in enumerate(kept)}
    listed = [f"{name}.{position}" for position in range(len(kept))]
    return replace(operation, tensors=tensors, attributes={**operation.attributes, name: listed})


def _is_empty(value: Value) -> bool:
    return any(length == 0 for length in value.shape)
