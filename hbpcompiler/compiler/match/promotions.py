"""Type promotion, which torch does inside an operation, as casts of the graph: columns come back in each input's dtype.

float32 + float64 is float64; what flows back to the first is cast to float32, as torch's own backward pass does.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from hbpcompiler.compiler.match import aten
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value


def with_promotions(graph: Graph) -> Graph:
    """The graph in which elementwise operations have inputs of their result's dtype, where derivatives reach both."""
    operations: list[Operation] = []
    casts: dict[tuple[str, torch.dtype], Value] = {}
    for operation in graph.operations:
        tensors = dict(operation.tensors)
        for slot, value in operation.tensors.items():
            if operation.name in graph.active and value.name in graph.active and _is_promoted(operation, value):
                key = value.name, operation.output.dtype
                if key not in casts:
                    operations.append(_cast(value, operation))
                    casts[key] = operations[-1].output
                tensors[slot] = casts[key]
        operations.append(replace(operation, tensors=tensors))
    return replace(graph, operations=operations) if casts else graph


def _is_promoted(operation: Operation, value: Value) -> bool:
    if value.dtype == operation.output.dtype or not operation.target.startswith("aten."):
        return False
    return torch.Tag.pointwise in aten.overload_of(operation).tags and "dtype" not in operation.attributes


def _cast(value: Value, user: Operation) -> Operation:
    dtype = user.output.dtype
    output = Value(f"{value.name}_{str(dtype).removeprefix('torch.')}", value.shape, dtype, "result",
                   shared=value.shared)
    attributes = {"dtype": dtype, "non_blocking": False, "copy": False, "memory_format": None}
    return Operation("aten.to", "dtype", output, {"self": value}, attributes, 0, user.source)
