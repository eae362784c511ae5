"""Complex numbers on the way of derivatives: all between real values and real values is one operation.

So no rule meets a complex column. A complex value that the model returns to its loss goes there as pairs of real
numbers, so that the loss has a Hessian in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hbpcompiler.compiler.match.operation.writing import write
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rules.shared.written import AS_PAIRS, COPIED, OF_PAIRS, PHYSICAL, SHAPED_AS, WRITTEN_OVER, cast

REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True)
class Region:
    """Operations that make one real value of others by way of complex ones."""

    operations: Sequence[Operation]
    """In order; the last one makes the real value."""
    inputs: Mapping[str, Value]
    """By slot. Complex ones among them carry no derivatives."""

    @property
    def name(self) -> str:
        """After its first and last operation, as the user's code calls them."""
        first, last = (_called(operation) for operation in (self.operations[0], self.operations[-1]))
        return first if len(self.operations) == 1 or first == last else f"{first}_to_{last}"


def regions(graph: Graph) -> list[Region]:
    """A region for every real value that is made of complex ones which derivatives reach."""
    active = graph.active
    return [_region(operation, graph, active) for operation in graph.operations
            if operation.name in active and not operation.output.dtype.is_complex
            and any(_is_inside(value, active) for value in operation.tensors.values())]


def _is_inside(value: Value, active: frozenset[str]) -> bool:
    return value.dtype.is_complex and value.name in active


def _region(last: Operation, graph: Graph, active: frozenset[str]) -> Region:
    names, waiting = {last.name}, [last]
    while waiting:
        for value in waiting.pop().tensors.values():
            if _is_inside(value, active) and value.name in graph.makers and value.name not in names:
                names.add(value.name)
                waiting.append(graph.makers[value.name])
    inside = [operation for operation in graph.operations if operation.name in names]
    inputs = {value.name: value for operation in inside for value in operation.tensors.values()
              if value.name not in names}
    slots = ["x", *(f"x{number + 2}" for number in range(len(inputs)))]
    return Region(inside, dict(zip(slots, inputs.values(), strict=False)))


def in_pairs(graph: Graph) -> Graph:
    """The graph with every complex value that the loss reads of the model as a value of real and imaginary parts.

    Conjugates are numbers, and no flags of a tensor: what reads them was traced with such flags, which may be gone.
    What torch differentiates for real numbers alone is done to such parts, too.
    """
    active, operations, again = graph.active, list[Operation](), dict[str, Value]()
    for operation in graph.operations:
        operation = replace(operation, target=PHYSICAL.get(operation.target, operation.target))
        if operation.source.in_loss:
            for value in operation.tensors.values():
                maker = graph.makers.get(value.name)
                from_model = maker is not None and not maker.source.in_loss
                if maker is not None and from_model and _is_inside(value, active) and value.name not in again:
                    pieces = _pair(value, maker, operation)
                    operations += pieces
                    again[value.name] = pieces[-1].output
            tensors = {slot: again.get(value.name, value) for slot, value in operation.tensors.items()}
            operation = replace(operation, tensors=tensors)
        real_alone = operation.target in WRITTEN_OVER or operation.target == COPIED
        operations += _of_parts(operation) if real_alone and _is_inside(operation.output, active) else [operation]
    return replace(graph, operations=operations)


def _pair(value: Value, maker: Operation, reader: Operation) -> list[Operation]:
    whole = replace(value, name=f"{value.name}_again", role="result")
    pair = _as_pair(value, f"{value.name}_pair")
    return [write(AS_PAIRS, {"self": value}, pair, maker.source), write(OF_PAIRS, {"self": pair}, whole, reader.source)]


def _as_pair(value: Value, name: str) -> Value:
    return replace(value, name=name, role="result", shape=(*value.shape, 2), dtype=REAL[value.dtype])


def _of_parts(operation: Operation) -> list[Operation]:
    """The same complex value, made by what torch has a derivative of."""
    whole, source = operation.output, operation.source
    if operation.target == COPIED:
        value = operation.tensors["src"]
        number = replace(value, name=f"{whole.name}_number", role="result", dtype=whole.dtype)
        return [write(cast(whole.dtype), {"self": value}, number, source),
                write(SHAPED_AS, {"self": number, "other": operation.tensors["self"]}, whole, source)]
    pieces, pairs = list[Operation](), dict[str, Value]()
    for slot, value in operation.tensors.items():
        pairs[slot] = _as_pair(value, f"{whole.name}_{slot}_pair")
        pieces.append(write(AS_PAIRS, {"self": value}, pairs[slot], source))
    axis = operation.attributes["dim"] % len(whole.shape)  # counted from the front, where no axis is added
    pair = _as_pair(whole, f"{whole.name}_pair")
    return [*pieces, replace(operation, tensors=pairs, output=pair, attributes={**operation.attributes, "dim": axis}),
            write(OF_PAIRS, {"self": pair}, whole, source)]


def without_unread(graph: Graph) -> Graph:
    """The graph without complex values that nothing reads any more."""
    wanted = {graph.loss.name, *(output.name for output in graph.outputs)}
    kept: list[Operation] = []
    for operation in reversed(graph.operations):
        if operation.name in wanted or not operation.output.dtype.is_complex:
            kept.append(operation)
            wanted |= {value.name for value in operation.tensors.values()}
    return replace(graph, operations=kept[::-1])


def _called(operation: Operation) -> str:
    return (operation.source.whole or operation.target).rpartition(".")[2].strip("_")
