"""Tensors without elements among those that are laid end to end add nothing: they are left out of the graph.

A language model's empty cache is joined to the first keys and values in this way.
"""

from __future__ import annotations

from dataclasses import replace

from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared.written import END_TO_END


def without_idle_operands(graph: Graph) -> Graph:
    """The graph in which no list of these holds them, unless all that it holds are such."""
    operations = [_with_full_ones(operation, "tensors") if operation.target == END_TO_END else operation
                  for operation in graph.operations]
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
