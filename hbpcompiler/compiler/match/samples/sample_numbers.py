"""Values that number the samples: torch.arange(N), in whatever shape, or torch.arange(p N) where positions are merged
with them. As an index they keep all samples in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.samples.merged_positions import positions
from hbpcompiler.compiler.match.samples.sample_wise import depends, number_for
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value

BATCHES = (3, 5)
"""Two batch sizes at which a value that depends on nothing else is computed."""


def with_sample_numbers(graph: Graph) -> Graph:
    """The graph with every value marked whose entries are the numbers of their samples."""
    found = _numbering(graph)
    if not found:
        return graph

    def marked(value: Value) -> Value:
        return replace(value, numbering=True) if value.name in found else value

    operations = [replace(operation, output=marked(operation.output), tensors={
        slot: marked(value) for slot, value in operation.tensors.items()}) for operation in graph.operations]
    return replace(graph, operations=operations)


def _numbering(graph: Graph) -> set[str]:
    """Names of the integers [p*N, ...], made of the batch size alone, that are what they number."""
    makers: dict[str, Operation] = {}
    found = set()
    for operation in graph.operations:
        drawn = torch.Tag.nondeterministic_seeded in getattr(_overload(operation), "tags", ())
        if drawn or any(value.name not in makers for value in operation.tensors.values()):
            continue
        makers[operation.name] = operation
        output = operation.output
        whole = output.dtype in (torch.int64, torch.int32)
        if not whole or not positions(output) or any(map(depends, output.shape[1:])):
            continue
        if all(_numbers(_computed(operation, makers, batch), positions(output) * batch) for batch in BATCHES):
            found.add(operation.name)
    return found


def _overload(operation: Operation) -> object:
    try:
        return aten.overload_of(operation)
    except AttributeError:
        return None  # one of the compiler's own


def _numbers(tensor: Tensor | None, count: int) -> bool:
    if tensor is None:
        return False
    own = torch.arange(count, device=tensor.device).view(-1, *[1] * (tensor.dim() - 1))
    return bool((tensor == own).all())


def _computed(operation: Operation, makers: Mapping[str, Operation], batch: int) -> Tensor | None:
    """The value for a batch of this size; None if torch cannot say."""
    tensors = {slot: _computed(makers[value.name], makers, batch) for slot, value in operation.tensors.items()}
    if any(tensor is None for tensor in tensors.values()):
        return None
    try:
        result: Tensor = aten.call(operation, aten.overload_of(operation), tensors.__getitem__,
                                   lambda item: number_for(batch, item))
    except (RuntimeError, ValueError, IndexError, AttributeError):
        return None
    return result
