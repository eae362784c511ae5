"""What a loss makes of the batch alone, made again: labels that count, as torch.where(mask, y, -100), and divisors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hbpcompiler.compiler.match.losses.endings import slopes
from hbpcompiler.compiler.match.losses.growth import FAILURES
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.bind import bind, static_op
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.fx_graph.numbers import arithmetic, depends_on_batch, has_batchs_size
from hbpcompiler.compiler.trace.graph import N, Operation, Value
from hbpcompiler.rule import LossRule, Op

ADDS_UP = 1e-6
"""Relative: 1e-8 that is added to a mask's sum does not count."""


State = Callable[[], Mapping[str, Tensor]]
"""Tensors that a program reads beside the batch, by key."""


def made_of(matched: Matched, value: Value, batch: Batch, state: State) -> Tensor | None:
    """The value, by the operations that make it of inputs, targets and constants; None where something else enters:
    outputs, trained parameters, draws, or what torch cannot call by itself."""
    try:
        found = _Again(matched, batch.tensors, batch.samples, state).value(value)
    except (*FAILURES, _ElseError):
        return None
    return found if found.numel() == math.prod(_shape(value, batch.samples)) else None


class Divisors(NamedTuple):
    """What the parts of a loss are divided by in one batch."""

    of: Mapping[str, float]
    """By the name of each reduction, 1 / c_i, where L = sum_i c_i L_i."""
    add_up: bool
    """Whether that of each sum is twice as much of the batch laid twice, and that of each mean the same: those of
    batches then add up to that of all, as max(sum of a mask, 1) does not."""


def divisors_of(matched: Matched, batch: Batch, state: State) -> Divisors | None:
    """None where something else than the batch and constants enters."""
    try:
        once, twice = (_divisors(matched, batch, times, state) for times in (1, 2))
    except (*FAILURES, _ElseError):
        return None
    add_up = True
    for reduction in parts_of(matched):
        rule, divisor = matched.rules[reduction.name], once[reduction.name]
        assert isinstance(rule, LossRule)
        grows = 2 if rule.reduction(static_op(reduction, matched.active)) == "sum" else 1
        add_up &= math.isfinite(divisor) and math.isclose(twice[reduction.name], grows * divisor, rel_tol=ADDS_UP)
    return Divisors(once, add_up)


def parts_of(matched: Matched) -> Sequence[Operation]:
    """The reductions that the loss is a sum of; what is multiplied by zero is none of them."""
    ending = matched.ending
    return [each for each in ending.reductions if ending.multiples[each.name] != 0] or ending.reductions


def _divisors(matched: Matched, batch: Batch, times: int, state: State) -> dict[str, float]:
    given = (*matched.graph.inputs, *matched.graph.targets)
    laid = [_laid(value, tensor, times) for value, tensor in zip(given, batch.tensors, strict=True)]
    again = _Again(matched, laid, batch.samples * times, state)
    one = torch.ones((), dtype=torch.float64, device="cpu")  # a zero-dimensional tensor meets those of any device
    found = slopes(matched.graph, matched.rules, again.bound, one)
    return {name: math.inf if float(slope) == 0 else 1 / float(slope) for name, slope in found.items()}


def written_out(matched: Matched, value: Value) -> str:
    """The operations that make a value: the same for two that are made alike. What parameters enter has its name."""
    maker = matched.graph.makers.get(value.name)
    if maker is None or value.name in matched.active or not _callable(maker):
        return value.name
    given = [f"{slot}={written_out(matched, above)}" for slot, above in maker.tensors.items()]
    given += [f"{name}={item}" for name, item in maker.attributes.items()]
    return f"{maker.target}({', '.join(given)})"


def is_constant(matched: Matched, value: Value) -> bool:
    """Whether it is the same for every batch: made of the model's and the loss's own tensors alone."""
    maker = matched.graph.makers.get(value.name)
    if maker is None:
        return value in matched.graph.state
    return _callable(maker) and not has_batchs_size(maker.attributes) and all(
        is_constant(matched, above) for above in maker.tensors.values())


def _laid(value: Value, tensor: Tensor, times: int) -> Tensor:
    """The samples so many times."""
    for axis, length in enumerate(value.shape):
        if N in getattr(length, "free_symbols", ()):
            return torch.cat([tensor.detach()] * times, axis)
    return tensor


class _ElseError(Exception):
    """Something enters that is not of the batch."""


class _Again:
    """Values of the graph, made of these inputs and targets and of constants. Raises _ElseError where more is needed.
    """

    def __init__(self, matched: Matched, tensors: Sequence[Tensor], samples: int, state: State) -> None:
        self.matched, self.samples, self.state = matched, samples, state
        given = zip((*matched.graph.inputs, *matched.graph.targets), tensors, strict=True)
        self.known = {value.name: tensor.detach() for value, tensor in given}

    def value(self, value: Value) -> Tensor:
        if value.name not in self.known:
            self.known[value.name] = self._made(value)
        return self.known[value.name]

    def _made(self, value: Value) -> Tensor:
        maker = self.matched.graph.makers.get(value.name)
        if value.name in self.matched.active or (maker is not None and not _callable(maker)):
            raise _ElseError
        if maker is None:
            found = self.state().get(value.key)
            if found is None:
                raise _ElseError
            return found.detach()
        given = {slot: self.value(above) for slot, above in maker.tensors.items()}
        with torch.no_grad():
            result: Tensor = aten.call(maker, aten.overload_of(maker), given.__getitem__, self._number)
        return result.reshape(_shape(value, self.samples))

    def bound(self, operation: Operation) -> Op:
        """An operation of the loss's end, as its rule sees it."""
        def tensors(name: str) -> Tensor:
            return self.value(operation.output if name == "output" else operation.tensors[name])

        return bind(operation, tensors, self.matched.active, number=lambda name, item: self._number(item))

    def _number(self, item: object) -> object:
        return arithmetic(item, self.samples) if depends_on_batch(item) else item


def _callable(operation: Operation) -> bool:
    """Whether calling it again makes the same."""
    if not aten.is_torchs(operation) or aten.is_own(operation):
        return False
    overload = aten.overload_of(operation)
    return not overload._schema.is_mutable and torch.Tag.nondeterministic_seeded not in overload.tags


def _shape(value: Value, samples: int) -> list[int]:
    return [arithmetic(length, samples) if depends_on_batch(length) else int(length) for length in value.shape]
