"""Values of a graph, made again: its operations called on tensors that are given, for so many samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rule import Op

FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError)
"""What operations raise on tensors that they do not take."""


class Again:
    """Values by what `given` says of them, or, where it says nothing, by the operation that makes them."""

    def __init__(self, graph: Graph, samples: int, given: Callable[[Value], Tensor | None],
                 device: torch.device | None = None) -> None:
        """On the device that the operations name, or on this one."""
        self.graph, self.samples, self.given, self.device = graph, samples, given, device
        self.known: dict[str, Tensor] = {}

    def value(self, value: Value) -> Tensor:
        if value.name not in self.known:
            given = self.given(value)
            self.known[value.name] = self._made(self.graph.makers[value.name]) if given is None else given.detach()
        return self.known[value.name]

    def bound(self, operation: Operation) -> Op:
        """An operation, as its rule sees it."""
        def tensors(name: str) -> Tensor:
            return self.value(operation.output if name == "output" else operation.tensors[name])

        return bind(operation, tensors, self.graph.active, number=lambda _, item: arithmetic(item, self.samples))

    def _made(self, operation: Operation) -> Tensor:
        with torch.no_grad():
            result: Tensor = aten.call(operation, aten.overload_of(operation),
                                       lambda slot: self.value(operation.tensors[slot]), self._argument)
        # view(-1, C) of positions that were taken apart from the samples still says [p*N, C]; its value is [N, p, C].
        return result.reshape(lengths(operation.output, self.samples))

    def _argument(self, item: Any) -> Any:
        if isinstance(item, torch.device):
            return self.device or item
        return arithmetic(item, self.samples) if depends_on_batch(item) else item


def lengths(value: Value, samples: int) -> list[int]:
    """Of a value's axes, for so many samples."""
    found = [arithmetic(length, samples) if depends_on_batch(length) else int(length) for length in value.shape]
    return [1, *found[1:]] if value.shared else found


def samples_axis(value: Value) -> int | None:
    """The axis of which the length depends on the batch's size."""
    return next((axis for axis, length in enumerate(value.shape) if depends_on_batch(length)), None)
