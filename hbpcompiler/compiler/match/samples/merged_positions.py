"""Positions merged into the sample axis, as x.view(-1, x.shape[-1]) does: split off again, [p*N, *z] to [N, p, *z].

Values that operations connect are split together, where every rule among them can take it (`Rule.merged`,
`LossRule.positions`); elsewhere they stay, and what merges is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import networkx as nx
import sympy

from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.graph import (
    Graph,
    N,
    Operation,
    Value,
)
from hbpcompiler.rule import LossRule
from hbpcompiler.rule.registry import Registry
from hbpcompiler.rules.shared import written


def positions(value: Value) -> int:
    """p of a value of shape [p*N, *z]; 1 if the first axis is the samples alone, 0 if it is something else."""
    ratio = sympy.sympify(value.shape[0]) / N if value.shape else sympy.S.Zero
    return int(ratio) if ratio.is_Integer else 0


def split_merged(graph: Graph, registry: Registry) -> Graph:
    """The graph with the sample axis by itself in every value that derivatives reach, and in what meets them."""
    merged = {value.name: value for value in graph.values() if value.role == "result" and positions(value) > 1}
    active = graph.active
    meetings = nx.Graph()
    for operation in graph.operations:
        names = [value.name for value in _values(operation) if value.name in merged]
        meetings.add_edges_from((("operation", operation.name), name) for name in names)
    operations = {operation.name: [operation] for operation in graph.operations}
    outputs = list(graph.outputs)
    for region in nx.connected_components(meetings):
        if not any(name in active for name in region):
            continue
        found = {name: _split(merged[name]) for name in region if name in merged}
        own = [operation for operation in graph.operations if ("operation", operation.name) in region]
        rewritten = _rewritten(own, found, registry)
        if rewritten is None:
            continue
        operations |= rewritten
        for index, output in enumerate(graph.outputs):
            if output.name in found:  # the model's output has the shape that the user's code gave it
                joined, outputs[index] = _joined(graph.makers[output.name], output, found[output.name])
                operations[output.name] = [*operations[output.name], joined]
    flat = [operation for group in operations.values() for operation in group]
    return replace(graph, operations=flat, outputs=outputs)


def _rewritten(own: Sequence[Operation], found: Mapping[str, Value],
               registry: Registry) -> dict[str, list[Operation]] | None:
    """By name, the operations of a region on split values; None if one of them cannot take them."""
    if any(_samples_elsewhere(value) for operation in own for value in _values(operation)):
        return None  # an order of its own: see `samples_first`
    made = dict[str, list[Operation]]()
    for operation in own:
        apart = taken_apart(operation, found, registry)
        if apart is None:
            return None
        made[operation.name] = apart
    return made


def _values(operation: Operation) -> list[Value]:
    return [*operation.tensors.values(), operation.output]


def _samples_elsewhere(value: Value) -> bool:
    """Whether the batch size sits behind the first axis."""
    return any(N in getattr(length, "free_symbols", ()) for length in value.shape[1:])


def _split(value: Value) -> Value:
    return replace(value, shape=(N, positions(value), *value.shape[1:]))


def taken_apart(operation: Operation, found: Mapping[str, Value], registry: Registry) -> list[Operation] | None:
    """The operation on split values; None if its rule cannot take them."""
    rule = registry.find(operation.target, operation.overload)
    tensors = {slot: found.get(value.name, value) for slot, value in operation.tensors.items()}
    if isinstance(rule, LossRule):
        if rule.positions is None or operation.output.shape:
            return None
        rank = len(operation.tensors[rule.input].shape)
        moves = []
        for slot, value in operation.tensors.items():
            if rule.positions == 2 and value.name in found and len(value.shape) == rank:
                moves.append(_moved(operation, slot, found[value.name]))
                tensors[slot] = moves[-1].output
        return [*moves, replace(operation, tensors=tensors)]
    if rule is None or not rule.merged:
        return None
    return [replace(operation, output=found.get(operation.name, operation.output), tensors=tensors)]


def _moved(operation: Operation, slot: str, value: Value) -> Operation:
    """[N, p, C, *z] -> [N, C, p, *z], the layout in which a loss takes classes."""
    lead, own, classes, *rest = value.shape
    output = replace(value, name=f"{operation.name}_{slot}", shape=(lead, classes, own, *rest), role="result")
    return write(written.transposed(1, 2), {"self": value}, output, operation.source)


def _joined(maker: Operation, merged: Value, split: Value) -> tuple[Operation, Value]:
    """[N, p, *z] -> [p*N, *z]."""
    output = replace(merged, name=f"{merged.name}_merged")
    return write(written.merged(0, 1), {"self": split}, output, maker.source), output
