"""Tensors without memory that stand for a graph's values, where only the shapes of what rules return are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hbpcompiler.compiler.match.operation.aten import overload_of
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic
from hbpcompiler.compiler.trace.graph import SAMPLES, Operation, Value, meta
from hbpcompiler.rule import computed
from hbpcompiler.rule.registry import AnyRule


def meta_number(operation: Operation, batch: int = SAMPLES) -> Callable[[str, Any], Any]:
    """What stands for an attribute that depends on the batch's size: a length for so many samples, or a number of
    which nothing is known, as a tensor without axes."""
    types = {}
    if operation.target.startswith("aten."):
        types = {argument.name: str(argument.type) for argument in overload_of(operation)._schema.arguments}

    def number(name: str, expression: Any) -> Any:
        if types.get(name, "int") in ("int", "SymInt", "Optional[int]", "Optional[SymInt]"):
            return arithmetic(expression, batch)
        return torch.empty((), dtype=operation.output.dtype, device="meta")

    return number


class StandIns:
    """Tensors for an operation's arguments, its result and whatever its forward saves: meta ones, or as `make` says."""

    def __init__(self, operation: Operation, rule: AnyRule | None,
                 make: Callable[[Value], torch.Tensor] | None = None) -> None:
        self.operation, self.rule, self.make = operation, rule, make or meta
        self.saved: Mapping[str, Any] | None = None

    def __call__(self, name: str) -> Any:
        value = self.operation.output if name == "output" else self.operation.tensors.get(name)
        if value is not None:
            return self.make(value)
        if self.saved is None:
            self.saved = {}
            if self.rule is not None and self.rule.forward is not None:
                op = bind(self.operation, self, set(), True, meta_number(self.operation))
                _, self.saved = computed(self.rule, op)
        return self.saved[name]
