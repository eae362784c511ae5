"""Squares of Euclidean norms are sums of squares: smooth at zero, where the norm itself has an edge.

Where a row is zero, the curvature of the square is 2 I, which the norm's rule cannot know: its slope is 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared import written


def with_sums_of_squares(graph: Graph) -> Graph:
    """The graph in which the square of a norm over axes of a sample, or over all of a batch, is a sum of squares."""
    norms = {operation.name: operation for operation in graph.operations if _is_norm(operation, graph)}
    operations: list[Operation] = []
    for operation in graph.operations:
        norm = norms.get(next((value.name for value in operation.tensors.values()), ""))
        # Of a norm that the model returns the loss's square is of the loss: a GGN knows the model by its outputs.
        if norm is None or not _is_square(operation, norms) or norm.source.in_loss != operation.source.in_loss:
            operations.append(operation)
        else:
            operations += _sum_of_squares(norm, operation)
    return without_dead(replace(graph, operations=operations)) if len(operations) > len(graph.operations) else graph


def _is_norm(operation: Operation, graph: Graph) -> bool:
    """Whether it is a Euclidean norm that keeps samples to themselves, or takes all numbers of the batch."""
    value = operation.tensors.get("self")
    if value is None or operation.name not in graph.active or not value.of_batch:
        return False
    axes = written.axes_of_root_of_squares(operation.target, operation.attributes, len(value.shape))
    return axes is not None and (len(axes) == len(value.shape) or 0 not in axes)


def _is_square(operation: Operation, norms: dict[str, Operation]) -> bool:
    """Whether it is a norm times itself, which may be written twice."""
    factors = list(operation.tensors.values())
    if len(factors) == 1:
        return written.is_square(operation.target, operation.attributes)
    if operation.target != written.PRODUCT or any(factor.name not in norms for factor in factors):
        return False
    one, other = (norms[factor.name] for factor in factors)
    return one.tensors == other.tensors and one.attributes == other.attributes


def _sum_of_squares(norm: Operation, square: Operation) -> Sequence[Operation]:
    value, attributes = norm.tensors["self"], norm.attributes
    each = Value(f"{square.name}_each", value.shape, square.output.dtype, "result")
    axes = written.axes_of_root_of_squares(norm.target, attributes, len(value.shape))
    all_axes = axes is None or (len(axes) == len(value.shape) and not square.output.shape)
    added = written.reduced(written.SUM, None if all_axes else axes, bool(attributes.get("keepdim")))
    return [write(written.squared(), {"self": value}, each, square.source),
            write(added, {"self": each}, square.output, square.source)]
