"""The graph's values on a few samples of the first batch, for what cannot be known without numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rule import Rule, computed
from hbpcompiler.rule.registry import AnyRule

SAMPLES = 3
"""So many of the batch, or two that are one sample."""


class Examples:
    """Where a graph's values come from: the batch's tensors in the graph's order, and the state by key."""

    def __init__(self, batch: Sequence[Tensor], state: Mapping[str, Tensor], most: int = SAMPLES) -> None:
        samples = min(len(batch[0]), most)
        self.batch = [tensor[:samples].detach() if samples > 1 else tensor[:1].detach().repeat_interleave(2, 0)
                      for tensor in batch]
        self.state = state
        self.samples = len(self.batch[0])

    @property
    def alike(self) -> bool:
        """Whether all samples are one."""
        return bool(all(torch.equal(tensor[:1].expand_as(tensor), tensor) for tensor in self.batch))

    def of(self, graph: Graph, rule_of: Callable[[Operation], AnyRule | None]) -> Mapping[str, Tensor]:
        """Every value by its name; random draws are made aside."""
        values: dict[str, Any] = {value.name: tensor for value, tensor in zip(graph.batch, self.batch, strict=True)}
        values |= {value.name: self.state[value.key].detach() for value in graph.state}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for operation in graph.operations:
                values[operation.name] = self.result(operation, rule_of(operation), values)
        return values

    def result(self, operation: Operation, rule: AnyRule | None, values: Mapping[str, Any]) -> Any:
        """Of one operation on these values: torch's own; the rule's where torch knows no such operation, where it asks
        for another layout in memory (a view), or where the operation's attributes are still those of a batch whose
        samples were not in front (a rule that counts no axis from the front does not read them)."""
        def tensor(slot: str) -> Any:
            return values[operation.tensors[slot].name]

        def of_part(slot: str) -> Any:
            return of_parts(tensor(slot), operation, operation.tensors[slot])

        has_forward = isinstance(rule, Rule) and rule.forward is not None
        if aten.is_torchs(operation):
            try:
                found = aten.call(operation, aten.overload_of(operation), of_part, self._other)
                if operation.parts:
                    found = found.unflatten(0, (1 if operation.output.shared else self.samples, -1))
                if not has_forward or self._has_its_shape(found, operation.output):
                    return found
            except RuntimeError:
                if not has_forward:
                    raise
        assert rule is not None
        output, _ = computed(rule, bind(operation, tensor, set(), False, lambda _, item: self._other(item)))
        return output

    def _has_its_shape(self, found: Any, value: Value) -> bool:
        if not isinstance(found, Tensor) or value.shared:
            return True
        if found.dim() != len(value.shape):
            return False
        lengths = [arithmetic(length, self.samples) if depends_on_batch(length) else length for length in value.shape]
        return all(own == length for own, length in zip(found.shape, lengths, strict=True)
                   if not getattr(length, "free_symbols", ()))

    def _other(self, item: Any) -> Any:
        if isinstance(item, torch.device):
            return self.batch[0].device
        return arithmetic(item, self.samples) if depends_on_batch(item) else item


def of_parts(tensor: Tensor, operation: Operation, value: Value) -> Tensor:
    """What the operation acts on: the parts of samples as samples, if it takes any."""
    return tensor.flatten(0, 1) if operation.parts and (value.shared or value.batched) else tensor
