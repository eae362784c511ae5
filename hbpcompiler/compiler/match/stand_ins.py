"""Tensors without memory that stand for a graph's values, where only the shapes of what rules return are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hbpcompiler.compiler.match.bind import bind
from hbpcompiler.compiler.trace.graph import Operation, Value, meta
from hbpcompiler.rule import computed
from hbpcompiler.rule.registry import AnyRule


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
                _, self.saved = computed(self.rule, bind(self.operation, self, set(), True))
        return self.saved[name]
