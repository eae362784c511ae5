"""Type promotion, which torch does inside an operation, as casts of the graph: columns come back in each input's dtype.

float32 + float64 is float64; what flows back to the first is cast to float32, as torch's own backward pass does.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared.written import cast


def with_promotions(graph: Graph) -> Graph:
    """The graph in which elementwise operations have inputs of their result's dtype, where derivatives reach both; and
    others inputs of one dtype."""
    operations: list[Operation] = []
    casts: dict[tuple[str, torch.dtype], Value] = {}
    for operation in graph.operations:
        tensors = dict(operation.tensors)
        for slot, value in operation.tensors.items():
            if operation.name in graph.active and value.name in graph.active and _is_promoted(operation, value):
                key = value.name, operation.output.dtype
                if key not in casts:
                    operations.append(_cast(value, operation, operation.output.dtype))
                    casts[key] = operations[-1].output
                tensors[slot] = casts[key]
        wide = _widest(operation) if operation.name in graph.active else None
        if wide is None:
            operations.append(replace(operation, tensors=tensors))
        else:
            operations += _widened(operation, wide)
            casts[operation.name, wide] = operation.output
    return replace(graph, operations=operations) if casts else graph


def _is_promoted(operation: Operation, value: Value) -> bool:
    if value.dtype == operation.output.dtype or not operation.target.startswith("aten."):
        return False
    if not (value.floating and operation.output.floating):
        return False  # the size of a complex number is none of its parts
    return torch.Tag.pointwise in aten.overload_of(operation).tags and "dtype" not in operation.attributes


def _widest(operation: Operation) -> torch.dtype | None:
    """The widest dtype of the inputs, where an operation that is not elementwise takes several: a norm of bfloat16 with
    parameters of float32, under autocast."""
    dtypes = {value.dtype for value in operation.tensors.values() if value.floating}
    if len(dtypes) < 2 or not operation.output.floating or not operation.target.startswith("aten."):
        return None
    if torch.Tag.pointwise in aten.overload_of(operation).tags or "dtype" in operation.attributes:
        return None
    return functools.reduce(torch.promote_types, sorted(dtypes, key=str))


def _widened(operation: Operation, dtype: torch.dtype) -> list[Operation]:
    """The operation on inputs of one dtype, and its result in the dtype that it had."""
    before, tensors = list[Operation](), dict(operation.tensors)
    for slot, value in operation.tensors.items():
        if value.floating and value.dtype != dtype:
            cast = _cast(replace(value, name=f"{operation.name}_{slot.replace('.', '_')}"), operation, dtype)
            before.append(replace(cast, tensors={"self": value}))
            tensors[slot] = cast.output
    if operation.output.dtype == dtype:
        return [*before, replace(operation, tensors=tensors)]
    wide = replace(operation.output, name=f"{operation.name}_wide", dtype=dtype)
    back = _cast(wide, operation, operation.output.dtype)
    return [*before, replace(operation, tensors=tensors, output=wide), replace(back, output=operation.output)]


def _cast(value: Value, user: Operation, dtype: torch.dtype) -> Operation:
    output = Value(f"{value.name}_{str(dtype).removeprefix('torch.')}", value.shape, dtype, "result",
                   shared=value.shared)
    return write(cast(dtype), {"self": value}, output, user.source)
