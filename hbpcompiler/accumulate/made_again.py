"""What a loss makes of the batch alone, made again: labels that count, as torch.where(mask, y, -100), and divisors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hbpcompiler.compiler.match.losses.endings import slopes
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.again import FAILURES, Again, lengths, samples_axis
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.fx_graph.numbers import has_batchs_size
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.rule import LossRule

ADDS_UP = 1e-6
"""Relative: 1e-8 that is added to a mask's sum does not count."""


State = Callable[[], Mapping[str, Tensor]]
"""Tensors that a program reads beside the batch, by key."""


def made_of(matched: Matched, value: Value, batch: Batch, state: State) -> Tensor | None:
    """The value, by the operations that make it of inputs, targets and constants; None where something else enters:
    outputs, trained parameters, draws, or what torch cannot call by itself."""
    try:
        found = _again(matched, batch.tensors, batch.samples, state).value(value)
    except (*FAILURES, _ElseError):
        return None
    return found if found.numel() == math.prod(lengths(value, batch.samples)) else None


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
    again = _again(matched, laid, batch.samples * times, state)
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
    axis = samples_axis(value)
    return tensor if axis is None else torch.cat([tensor.detach()] * times, axis)


class _ElseError(Exception):
    """Something enters that is not of the batch."""


def _again(matched: Matched, tensors: Sequence[Tensor], samples: int, state: State) -> Again:
    """Values made of these inputs and targets and of constants. Raises _ElseError where more is needed."""
    of_batch = {value.name: tensor
                for value, tensor in zip((*matched.graph.inputs, *matched.graph.targets), tensors, strict=True)}

    def given(value: Value) -> Tensor | None:
        maker = matched.graph.makers.get(value.name)
        found = of_batch.get(value.name)
        if found is None and maker is None and value.name not in matched.active:
            found = state().get(value.key)
        if found is None and (maker is None or value.name in matched.active or not _callable(maker)):
            raise _ElseError
        return found

    return Again(matched.graph, samples, given)


def _callable(operation: Operation) -> bool:
    """Whether calling it again makes the same."""
    if not aten.is_torchs(operation) or aten.is_own(operation):
        return False
    overload = aten.overload_of(operation)
    return not overload._schema.is_mutable and torch.Tag.nondeterministic_seeded not in overload.tags

