"""Diagonals of products in which samples meet: trace(e.T @ e), (a @ b.T).diagonal(). On the diagonal they do not.

Entry i of the diagonal of a @ b is the sum of a[i] times column i of b.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value
from hbpcompiler.rules.shared.written import (
    DIAGONAL,
    MATRIX_PRODUCTS,
    PRODUCT,
    RESHAPED,
    SUM,
    TRANSPOSES,
    multiple,
    permuted,
    reduced,
)


def with_diagonals_of_products(graph: Graph) -> Graph:
    """The graph that makes the diagonal alone of a product of two matrices, if the samples meet in that product."""
    operations = list[Operation]()
    for operation in graph.operations:
        operations += _alone(operation, graph)
    return without_dead(replace(graph, operations=operations)) if len(operations) > len(graph.operations) else graph


def _alone(operation: Operation, graph: Graph) -> Sequence[Operation]:
    """The diagonal by products of its own, or the operation itself."""
    product = _maker(operation.tensors["self"], graph) if operation.target == DIAGONAL else None
    if product is None or product.target not in MATRIX_PRODUCTS or operation.attributes["offset"] or (
            len(product.tensors) > 2):
        return [operation]
    left, right = (product.tensors[slot] for slot in MATRIX_PRODUCTS[product.target])
    meet = left.of_batch and right.of_batch and len(left.shape) == len(right.shape) == 2
    if not meet or left.shape[0] != right.shape[1] or product.output.dtype.is_complex:
        return [operation]
    # Samples stay in front: along the diagonal, or, where they are summed, along the sum.
    summed = 1 if N in _symbols(left.shape[0]) else 0
    kept, other = (left, right) if summed else (right, left)
    name, source = operation.name, operation.source
    turned, pieces = _turned(other, graph, name), list[Operation]()
    if turned.name not in graph.makers and turned not in graph.batch:
        pieces.append(write(permuted([1, 0]), {"self": other}, turned, source))
    each = Value(f"{name}_each", kept.shape, operation.output.dtype, "result")
    return [*pieces, write(multiple(PRODUCT), {"self": kept, "other": turned}, each, source),
            write(reduced(SUM, [summed]), {"self": each}, operation.output, source)]


def _maker(value: Value, graph: Graph) -> Operation | None:
    """What makes the numbers of this value, in its shape."""
    maker = graph.makers.get(value.name)
    while maker is not None and maker.target in RESHAPED and maker.tensors["self"].shape == value.shape:
        maker = graph.makers.get(maker.tensors["self"].name)
    return maker


def _symbols(length: Any) -> AbstractSet[Any]:
    found: AbstractSet[Any] = getattr(length, "free_symbols", frozenset())
    return found


def _turned(value: Value, graph: Graph, name: str) -> Value:
    """The matrix with its axes the other way round: that of which it is made so, if there is one."""
    maker = graph.makers.get(value.name)
    if maker is not None and maker.target in TRANSPOSES and len(maker.tensors["self"].shape) == 2:
        said = maker.attributes  # t says nothing; of an axis with itself, transpose(0, 0), nothing is turned
        first, second = said.get("dims", (said.get("dim0", 0), said.get("dim1", 1)))
        if first % 2 != second % 2 and (first % 2 or "dims" not in said):
            return maker.tensors["self"]
    return Value(f"{name}_turned", value.shape[::-1], value.dtype, "result")
