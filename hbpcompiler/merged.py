"""Positions merged into the sample axis, as x.view(-1, x.shape[-1]) does: split off again, [p*N, *z] to [N, p, *z].

Done where every rule on the way can take it (`Rule.merged`); elsewhere the graph stays, and what merges is refused.
"""

from __future__ import annotations

from dataclasses import replace

import sympy

from hbpcompiler.graph import Graph, N, Operation, Value
from hbpcompiler.registry import Registry
from hbpcompiler.rule import Rule


def positions(value: Value) -> int:
    """p of a value of shape [p*N, *z]; 1 if the first axis is the samples alone, 0 if it is something else."""
    ratio = sympy.sympify(value.shape[0]) / N if value.shape else sympy.S.Zero
    return int(ratio) if ratio.is_Integer else 0


def split_merged(graph: Graph, registry: Registry) -> Graph:
    """The graph with the sample axis by itself in every value that derivatives reach, and in what meets them."""
    active = graph.active()
    found = {operation.name: _split(operation.output) for operation in graph.operations
             if operation.name in active and positions(operation.output) > 1}
    grown = 0
    while grown < len(found):
        grown = len(found)
        for operation in graph.operations:
            if any(value.name in found for value in _values(operation)):
                found |= {value.name: _split(value) for value in _values(operation)
                          if value.role == "result" and positions(value) > 1}
    if not found or graph.output.name in found:
        return graph
    operations = []
    for operation in graph.operations:
        if any(value.name in found for value in _values(operation)):
            tensors = {slot: found.get(value.name, value) for slot, value in operation.tensors.items()}
            operation = replace(operation, output=found.get(operation.name, operation.output), tensors=tensors)
            rule = registry.find(operation.target, operation.overload)
            if not isinstance(rule, Rule) or not rule.merged:
                return graph
        operations.append(operation)
    return replace(graph, operations=operations, makers={operation.name: operation for operation in operations})


def _values(operation: Operation) -> list[Value]:
    return [*operation.tensors.values(), operation.output]


def _split(value: Value) -> Value:
    return replace(value, shape=(N, positions(value), *value.shape[1:]))
