"""Which values of a graph are never negative: truth values, what is counted of them, squares, exponentials."""

from __future__ import annotations

from numbers import Real

import torch

from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared.signs import AT_LEAST, EVEN, NEVER_NEGATIVE, NUMBERS, WITHOUT_NEGATIVE


def never_negative(graph: Graph) -> frozenset[str]:
    """Their names. What is not known to be one may be negative."""
    found = {value.name for value in (*graph.batch, *graph.state) if value.dtype == torch.bool}
    for operation in graph.operations:
        if operation.output.dtype == torch.bool or _is_known(operation, found):
            found.add(operation.name)
    return frozenset(found)


def _is_known(operation: Operation, found: set[str]) -> bool:
    if operation.target in NEVER_NEGATIVE or operation.output.dtype.is_complex:
        return not operation.output.dtype.is_complex
    if (name := AT_LEAST.get(operation.target)) is not None and _at_least_zero(operation.attributes.get(name)):
        return True
    if (name := EVEN.get(operation.target)) is not None and _is_even(operation.attributes.get(name)):
        return True
    if operation.target not in WITHOUT_NEGATIVE:
        return False
    numbers = [number for name, number in operation.attributes.items() if name in NUMBERS]
    tensors = [value for value in operation.tensors.values() if _enters(value)]
    return all(value.name in found for value in tensors) and all(map(_at_least_zero, numbers))


def _enters(value: Value) -> bool:
    """Whether its numbers enter the result. A condition's do not; indices count as if they did, which errs on the safe
    side."""
    return value.dtype != torch.bool


def _at_least_zero(number: object) -> bool:
    return isinstance(number, Real) and float(number) >= 0


def _is_even(number: object) -> bool:
    return isinstance(number, Real) and float(number) % 2 == 0
