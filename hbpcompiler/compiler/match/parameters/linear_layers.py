"""Linear layers written by hand: x @ W.T, torch.mm(x, W.t()), torch.addmm(b, x, W.T) of a parameter W: linear(x, W, b).

A function of a parameter, such as its transpose, has one block of curvature of all its numbers; a linear layer's weight
has Kronecker factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared.written import LINEAR, MATRIX_PRODUCTS, PERMUTED, TRANSPOSES


def with_linear_layers(graph: Graph) -> Graph:
    """The graph in which no values of samples are multiplied with a transposed parameter."""
    operations = [_as_linear(operation, graph) for operation in graph.operations]
    return without_dead(replace(graph, operations=operations)) if operations != list(graph.operations) else graph


def _as_linear(operation: Operation, graph: Graph) -> Operation:
    """A linear layer in place of the product, or the product itself."""
    if operation.target not in MATRIX_PRODUCTS:
        return operation
    first, second = MATRIX_PRODUCTS[operation.target]
    x, turned = operation.tensors[first], operation.tensors[second]
    maker = graph.makers.get(turned.name)
    if maker is None or not _swaps_axes(maker) or not x.of_batch or len(x.shape) < 2:
        return operation
    weight = maker.tensors["self"]
    added = _added(operation, (first, second), weight)
    if added is None or not all(value in graph.state for value in (weight, *added.values())):
        return operation
    return write(replace(LINEAR, attributes={} if added else {"bias": None}),
                 {"input": x, "weight": weight, **added}, operation.output, operation.source)


def _added(operation: Operation, multiplied: tuple[str, str], weight: Value) -> Mapping[str, Value] | None:
    """The layer's bias, if there is one; None if what is added to the product is none."""
    others = [value for slot, value in operation.tensors.items() if slot not in multiplied]
    if not others:
        return {}
    plain = operation.attributes.get("alpha") == operation.attributes.get("beta") == 1
    return {"bias": others[0]} if plain and others[0].shape == weight.shape[:1] else None


def _swaps_axes(operation: Operation) -> bool:
    """Whether it is the transpose of a matrix."""
    if operation.target not in TRANSPOSES or len(operation.output.shape) != 2:
        return False
    if operation.target == PERMUTED:
        return [axis % 2 for axis in operation.attributes["dims"]] == [1, 0]
    axes = [axis for axis in operation.attributes.values() if isinstance(axis, int)]
    return not axes or axes[0] % 2 != axes[1] % 2
