"""How the parts of a loss grow when the batch is laid twice: what stays the same is a mean, what doubles is a sum.

Most losses say it themselves: they end in a mean or a sum, times numbers. Where the batch's size or a number made of
the batch comes in (a mask's sum, weights over their sum), the loss's own last operations are carried out on stand-ins,
for a batch and for the same batch twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.bind import bind, static_op
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch, has_batchs_size
from hbpcompiler.compiler.trace.graph import Graph, N, Operation, Value
from hbpcompiler.rule import LossRule, Op
from hbpcompiler.rule.registry import AnyRule
from hbpcompiler.rules.shared.torch_operations import COMPARES

SAMPLES, FEW, MANY_NUMBERS = 64, 4, 1_000_000
"""Of the stand-in batch; FEW where a value has so many numbers. 1e-8 added to a mask's sum, or a limit of 1 below it,
does not count beside so many samples."""
LABELS = (2, 3, 5)
"""How many labels the stand-ins have, as few as possible: no loss need take more."""
NEAR = 0.1
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError)

Slopes = Callable[[Callable[[Operation], Op]], Mapping[str, Any]]
"""(how an operation is bound) -> what each reduction is multiplied by in the loss."""


def growths(graph: Graph, rules: Mapping[str, AnyRule], slopes: Slopes) -> dict[str, float | None]:
    """By the name of each reduction, the power of the number of times that the batch is laid with which its part of
    the loss grows: 0 for a mean, 1 for a sum; None where it follows no power."""
    reductions, tail = graph.ending
    dependent = _dependent(graph, rules)
    own = {operation.name: 1.0 if _summed(operation, rules, graph) else 0.0 for operation in reductions}
    if not dependent & {operation.name for operation in (*reductions, *tail)}:
        return dict(own)
    found: dict[str, float | None] = dict.fromkeys(own)
    for compared in (frozenset[int](), _compared(graph)):
        for labels in LABELS:  # of so many a mask may pick none
            if None in found.values():
                found = _measured(graph, slopes, own, dependent, (*range(labels), *compared)) or found
    return found


def _compared(graph: Graph) -> frozenset[int]:
    """Whole numbers that the loss compares its labels with, as -100, which a mask may pick by."""
    found = set()
    for operation in graph.operations:
        compares = aten.is_torchs(operation) and aten.packet_of(operation) in COMPARES
        number = operation.attributes.get("other") if compares and operation.source.in_loss else None
        if isinstance(number, int | float) and int(number) == number:
            found.add(int(number))
    return frozenset(found)


def _measured(graph: Graph, slopes: Slopes, own: Mapping[str, float], dependent: AbstractSet[str],
              labels: Sequence[int]) -> dict[str, float | None] | None:
    """On stand-ins with these labels; None where the loss's operations do not take them."""
    found: dict[str, float | None] = {}
    try:
        once, twice = (_Laid(graph, times, labels).parts(slopes) for times in (1, 2))
    except FAILURES:
        return None
    for name, (multiple, value) in once.items():
        growth = _power(multiple, twice[name][0])
        known = name not in dependent or float(value) == 0  # stand-ins that make no loss at all say nothing
        reduced = own[name] if known else _power(value, twice[name][1])
        found[name] = None if growth is None or reduced is None else growth + reduced
    return found


def _summed(operation: Operation, rules: Mapping[str, AnyRule], graph: Graph) -> bool:
    rule = rules[operation.name]
    assert isinstance(rule, LossRule)
    return rule.reduction(static_op(operation, graph.active)) == "sum"


def _dependent(graph: Graph, rules: Mapping[str, AnyRule]) -> AbstractSet[str]:
    """Names of the loss's values that may change for a sample when other samples join the batch."""
    active, found = graph.active, set[str]()
    for operation in graph.operations:
        if _carried_out(operation, active):
            given = operation.tensors.values()
            numbers = has_batchs_size(operation.attributes)
            inherited = any(value.name in found for value in given)
            met = operation.name not in active and any(value.of_batch for value in given)
            if numbers or inherited or (met and _mixes(operation, rules.get(operation.name), active)):
                found.add(operation.name)
    return found


def _mixes(operation: Operation, rule: AnyRule | None, active: AbstractSet[str]) -> bool:
    """Whether a sample's part of the result may depend on others; what has no rule is a comparison or the like."""
    reduced = not operation.output.of_batch
    return reduced or (rule is not None and rule.refuse(static_op(operation, active)) is not None)


def _carried_out(operation: Operation, active: AbstractSet[str]) -> bool:
    """What the loss does, and numbers that the model makes of the batch."""
    number = operation.name not in active and not operation.output.of_batch
    return operation.target.startswith("aten.") and (operation.source.in_loss or number)


def _power(once: Any, twice: Any) -> float | None:
    before, after = float(once), float(twice)
    if before == 0 or not math.isfinite(before) or after / before <= 0:
        return None
    return math.log2(after / before)


@dataclass
class _Laid:
    """The end of the loss on a stand-in batch, laid so many times."""

    graph: Graph
    times: int
    labels: Sequence[int] = (0, 1)

    def __post_init__(self) -> None:
        largest = max(math.prod(map(int, self._shape(value, 1))) for value in self.graph.values())
        self.samples = SAMPLES if largest * SAMPLES <= MANY_NUMBERS else FEW
        self.batch = self.samples * self.times
        self.known: dict[str, Tensor] = {}

    def parts(self, slopes: Slopes) -> dict[str, tuple[Any, Any]]:
        """By reduction, what it is multiplied by and its value."""
        found = slopes(self._bound)
        return {name: (multiple, self._value(self.graph.makers[name].output)) for name, multiple in found.items()}

    def _bound(self, operation: Operation) -> Op:
        def tensors(name: str) -> Any:
            return self._value(operation.output if name == "output" else operation.tensors[name])

        return bind(operation, tensors, self.graph.active, number=lambda name, item: arithmetic(item, self.batch))

    def _shape(self, value: Value, batch: int) -> list[int]:
        lengths = [arithmetic(length, batch) if depends_on_batch(length) else int(length) for length in value.shape]
        return [1, *lengths[1:]] if value.shared else lengths

    def _value(self, value: Value) -> Tensor:
        if value.name not in self.known:
            maker = self.graph.makers.get(value.name)
            made = maker is not None and _carried_out(maker, self.graph.active)
            self.known[value.name] = self._made(maker) if maker is not None and made else self._stand_in(value)
        return self.known[value.name]

    def _made(self, operation: Operation) -> Tensor:
        def other(item: Any) -> Any:
            if isinstance(item, torch.device):
                return torch.device("cpu")
            return arithmetic(item, self.batch) if depends_on_batch(item) else item

        result: Tensor = aten.call(operation, aten.overload_of(operation),
                                   lambda slot: self._value(operation.tensors[slot]), other)
        # view(-1, C) of positions that were taken apart from the samples still says [p*N, C]; its value is [N, p, C].
        return result.reshape(self._shape(operation.output, self.batch))

    def _stand_in(self, value: Value) -> Tensor:
        """Numbers between 0 and 1, or labels: the same for each value at each number of times."""
        generator = torch.Generator().manual_seed(len(value.name) + sum(map(ord, value.name)))
        shape = self._shape(value, self.samples)
        drawn = torch.rand(shape, generator=generator, device="cpu") * 0.6 + 0.2 if value.floating else \
            torch.tensor(self.labels, device="cpu")[
                torch.randint(len(self.labels), shape, generator=generator, device="cpu")]
        for axis, length in enumerate(value.shape):
            if N in getattr(length, "free_symbols", ()):
                return torch.cat([drawn] * self.times, axis).to(value.dtype)
        return drawn.to(value.dtype)
