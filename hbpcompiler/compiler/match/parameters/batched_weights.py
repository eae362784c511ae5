"""x @ W of samples [N, i] and several matrices [E, i, o], a deep ensemble's layer: x.unsqueeze(0) @ W.

The product [E, N, o] has its samples where the second has them, on an axis that was there before.
"""

from __future__ import annotations

from dataclasses import replace

from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared.written import MATRIX_PRODUCT, with_axis


def with_axes_for_weights(graph: Graph) -> Graph:
    """The graph in which samples have an axis of length one for each that such matrices have before their own two."""
    operations: list[Operation] = []
    for operation in graph.operations:
        if _is_of_several(operation):
            x, weights = operation.tensors["self"], operation.tensors["other"]
            for axis in range(len(weights.shape) - len(x.shape)):
                wide = Value(f"{operation.name}_samples_{axis}", (1, *x.shape), x.dtype, "result")
                operations.append(write(with_axis(0), {"self": x}, wide, operation.source))
                x = wide
            operation = write(MATRIX_PRODUCT, {"self": x, "other": weights}, operation.output, operation.source)
        operations.append(operation)
    return replace(graph, operations=operations)


def _is_of_several(operation: Operation) -> bool:
    if operation.target != MATRIX_PRODUCT.target:
        return False
    x, weights = operation.tensors["self"], operation.tensors["other"]
    return x.batched and len(x.shape) == 2 and not weights.of_batch and len(weights.shape) > 2
