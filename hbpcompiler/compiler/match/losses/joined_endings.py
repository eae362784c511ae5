"""Losses that lay samples' values end to end before they reduce them: torch.cat([a, b.flatten()]).mean().

The sum is that of the parts' sums; the mean that of their means, each times its share of the numbers, which is the same
for every batch size where all parts grow with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import sympy

from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.fx_graph.reader import without_dead
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value
from hbpcompiler.rules.shared.written import (
    END_TO_END,
    MEAN,
    MULTIPLES,
    PRODUCT,
    SUM,
    Written,
    added,
    multiple,
    reduced,
)

Kind: TypeAlias = str
"""SUM or MEAN."""


def with_joined_endings(graph: Graph) -> Graph:
    """The graph in which no whole sum or mean reads samples laid end to end, where their shares are numbers."""
    operations = list[Operation]()
    for operation in graph.operations:
        operations += _apart(operation, graph)
    return without_dead(replace(graph, operations=operations)) if len(operations) > len(graph.operations) else graph


def kind_of(operation: Operation) -> Kind | None:
    """Whether it sums or takes the mean of all that it reduces, in the dtype that it has."""
    if operation.attributes.get("dtype") is not None:
        return None
    return operation.target if operation.target in (SUM, MEAN) else None


def _apart(operation: Operation, graph: Graph) -> Sequence[Operation]:
    """The reduction as a sum of multiples of the parts' own, or itself."""
    kind, value = kind_of(operation), operation.tensors.get("self")
    ends = operation.source.in_loss and operation.name in graph.active and not operation.output.shape
    if not ends or value is None or kind is None:
        return [operation]
    factors = list[Operation]()
    while (maker := graph.makers.get(value.name)) is not None and _is_multiple(maker):
        factors.append(maker)
        value = maker.tensors["self"]
    if maker is None or maker.target != END_TO_END or maker.attributes["dim"] % len(value.shape):
        return [operation]
    parts, size = list(maker.tensors.values()), sympy.prod(value.shape)
    shares = [sympy.cancel(sympy.prod(part.shape) / size) if kind == MEAN else 1 for part in parts]
    if not all(part.of_batch and part.name in graph.active for part in parts):
        return [operation]
    if any(N in sympy.sympify(share).free_symbols for share in shares):
        return [operation]
    return _Writing(operation, kind).run(parts, [float(share) for share in shares], factors[::-1])


def _is_multiple(operation: Operation) -> bool:
    """Whether it is its input times or divided by a number."""
    other = operation.attributes.get("other")
    return operation.target in MULTIPLES and isinstance(other, int | float) and "self" in operation.tensors \
        and not operation.attributes.get("rounding_mode")


class _Writing:
    def __init__(self, reduction: Operation, kind: Kind) -> None:
        self.reduction, self.kind = reduction, kind
        self.operations: list[Operation] = []

    def run(self, parts: Sequence[Value], shares: Sequence[float], factors: Sequence[Operation]) -> list[Operation]:
        total: Value | None = None
        for part, share in zip(parts, shares, strict=True):
            number = self._add(reduced(self.kind), {"self": part})
            for factor in factors:
                number = self._add(Written(factor.target, factor.overload, factor.attributes), {"self": number})
            if share != 1:
                number = self._add(multiple(PRODUCT, share), {"self": number})
            total = number if total is None else self._add(added(), {"self": total, "other": number})
        self.operations[-1] = replace(self.operations[-1], output=self.reduction.output)
        return self.operations

    def _add(self, call: Written, tensors: dict[str, Value]) -> Value:
        name = f"{self.reduction.name}_of_{len(self.operations) + 1}"
        output = Value(name, (), self.reduction.output.dtype, "result")
        self.operations.append(write(call, tensors, output, self.reduction.source))
        return output
