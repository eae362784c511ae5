"""The matched graph at any length, of the graphs at a few: what proofs and checks of targets ask of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import sympy

from hbpcompiler.compiler.lengths.numbers import Polynomial, Power
from hbpcompiler.compiler.lengths.walk import LengthsDifferError, Numbers
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value

AnyLength = Callable[[int], Matched]


def matched_at(every: Sequence[Matched], numbers: Numbers) -> AnyLength:
    """What makes the graph of a length. Raises LengthsDifferError where the graphs differ in more than numbers."""
    first = every[0]
    graphs = [matched.graph for matched in every]
    forms: dict[str, Any] = {}
    for name, values in _by_name([[*graph.values()] for graph in graphs]).items():
        facts = [(value.dtype, value.role, value.key, value.trainable, value.shared, value.numbering)
                 for value in values]
        _same(name, facts)
        forms[name] = _item(name, [value.shape for value in values], numbers)
    attributes: dict[str, Any] = {}
    for operations in zip(*(graph.operations for graph in graphs), strict=True):
        name = operations[0].name
        _same(name, [(own.name, own.target, own.overload, own.index, own.parts, own.source.module,
                      [(slot, value.name) for slot, value in own.tensors.items()]) for own in operations])
        attributes[name] = _item(name, [dict(own.attributes) for own in operations], numbers)
    _same("the loss", [(own.active, own.ending.kind, own.ending.definite, sorted(own.rules), own.names,
                        own.graph.loss.name, [value.name for value in own.graph.outputs]) for own in every])
    multiples = _item("the loss", [dict(own.ending.multiples) for own in every], numbers)

    def at(length: int) -> Matched:
        made = {value.name: replace(value, shape=_at(forms[value.name], length)) for value in first.graph.values()}
        operations = {own.name: replace(
            own, output=made[own.name], tensors={slot: made[value.name] for slot, value in own.tensors.items()},
            attributes=_at(attributes[own.name], length)) for own in first.graph.operations}
        graph = _graph(first.graph, made, operations)
        ending = replace(first.ending, reductions=tuple(operations[own.name] for own in first.ending.reductions),
                         tail=tuple(operations[own.name] for own in first.ending.tail),
                         multiples=_at(multiples, length))
        return Matched(graph, first.rules, first.active, ending, first.names)

    return at


def _graph(graph: Graph, made: Mapping[str, Value], operations: Mapping[str, Operation]) -> Graph:
    def again(values: Sequence[Value]) -> list[Value]:
        return [made[value.name] for value in values]

    return replace(graph, inputs=again(graph.inputs), targets=again(graph.targets), state=again(graph.state),
                   operations=[operations[own.name] for own in graph.operations], outputs=again(graph.outputs),
                   loss=made[graph.loss.name])


def _by_name(every: Sequence[Sequence[Value]]) -> dict[str, list[Value]]:
    _same("the traced model", [[value.name for value in values] for values in every])
    return {values[0].name: list(values) for values in zip(*every, strict=True)}


def _same(where: str, found: Sequence[Any]) -> None:
    if any(other != found[0] for other in found[1:]):
        raise LengthsDifferError(f"{where}: the traced model is not the same at every length")


def _item(where: str, items: Sequence[Any], numbers: Numbers) -> Any:
    """One template of several items, with what stands for numbers."""
    first = items[0]
    if all(isinstance(item, sympy.Basic) for item in items):
        return _of_batch(where, items, numbers)
    _same(where, [type(item) for item in items])
    if isinstance(first, list | tuple):
        _same(where, [len(item) for item in items])
        return type(first)(_item(where, parts, numbers) for parts in zip(*items, strict=True))
    if isinstance(first, dict):
        _same(where, [tuple(item) for item in items])
        return {name: _item(where, [item[name] for item in items], numbers) for name in first}
    if isinstance(first, int | float) and not isinstance(first, bool):
        return numbers(items)
    _same(where, [str(item) for item in items])
    return first


class _OfBatch:
    """A polynomial in N, by rising powers."""

    def __init__(self, coefficients: Sequence[Any]) -> None:
        self.coefficients = coefficients


def _of_batch(where: str, items: Sequence[Any], numbers: Numbers) -> Any:
    """Of expressions in N."""
    if all(item == items[0] for item in items):
        return items[0]
    polynomials = [item.as_poly(N) for item in items]
    if any(own is None or not all(part.is_Integer for part in own.all_coeffs()) for own in polynomials):
        raise LengthsDifferError(f"{where}: {', '.join(map(str, items))}")
    rows = [[int(part) for part in reversed(own.all_coeffs())] for own in polynomials]
    _same(where, [len(row) for row in rows])
    return _OfBatch([numbers(column) for column in zip(*rows, strict=True)])


def _at(item: Any, length: int) -> Any:
    if isinstance(item, Polynomial | Power):
        return item.at(length)
    if isinstance(item, _OfBatch):
        return sum(_at(part, length) * N**power for power, part in enumerate(item.coefficients))
    if isinstance(item, list | tuple):
        return type(item)(_at(part, length) for part in item)
    if isinstance(item, dict):
        return {name: _at(part, length) for name, part in item.items()}
    return item
