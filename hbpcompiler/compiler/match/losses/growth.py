"""How the parts of a loss grow when the batch is laid twice: what stays the same is a mean, what doubles is a sum.

Most losses say it themselves: they end in a mean or a sum, times numbers. Where the batch's size or a number made of
the batch comes in (a mask's sum, weights over their sum), the loss's own last operations are carried out on stand-ins,
for a batch and for the same batch twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation import aten
from hbpcompiler.compiler.match.operation.again import FAILURES, Again, lengths, samples_axis
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.trace.fx_graph.numbers import has_batchs_size
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rule import LossRule, Op
from hbpcompiler.rule.registry import AnyRule
from hbpcompiler.rules.shared.torch_operations import COMPARES

SAMPLES, FEW, MANY_NUMBERS = 64, 4, 1_000_000
"""Of the stand-in batch; FEW where a value has so many numbers. 1e-8 added to a mask's sum, or a limit of 1 below it,
does not count beside so many samples."""
LABELS = (2, 3, 5)
"""How many labels the stand-ins have, as few as possible: no loss need take more."""
NEAR = 0.1

Slopes = Callable[[Callable[[Operation], Op]], Mapping[str, Any]]
"""(how an operation is bound) -> what each reduction is multiplied by in the loss."""


def growths(graph: Graph, rules: Mapping[str, AnyRule], slopes: Slopes,
            state: Mapping[str, Tensor]) -> dict[str, float | None]:
    """By the name of each reduction, the power of the number of times that the batch is laid with which its part of
    the loss grows: 0 for a mean, 1 for a sum; None where it follows no power. Parameters, buffers and constants are
    stand-ins, too, and those of `state`, by key, where that says nothing: not every matrix has a Cholesky factor."""
    reductions, tail = graph.ending
    dependent = _dependent(graph, rules)
    own = {operation.name: 1.0 if _summed(operation, rules, graph) else 0.0 for operation in reductions}
    if not dependent & {operation.name for operation in (*reductions, *tail)}:
        return dict(own)
    found: dict[str, float | None] = dict.fromkeys(own)
    for known, compared in product(({}, state), (frozenset[int](), _compared(graph))):
        for labels in LABELS:  # of so many a mask may pick none
            if None in found.values():
                found = _measured(graph, slopes, own, dependent, (*range(labels), *compared), known) or found
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
              labels: Sequence[int], state: Mapping[str, Tensor]) -> dict[str, float | None] | None:
    """On stand-ins with these labels, beside this state; None where the loss's operations do not take them."""
    found: dict[str, float | None] = {}
    try:
        once, twice = (_parts(_laid(graph, times, labels, state), slopes) for times in (1, 2))
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


def _laid(graph: Graph, times: int, labels: Sequence[int], state: Mapping[str, Tensor]) -> Again:
    """The end of the loss on a stand-in batch, laid so many times."""
    largest = max(math.prod(lengths(value, 1)) for value in graph.values())
    samples = SAMPLES if largest * SAMPLES <= MANY_NUMBERS else FEW

    def stand_in(value: Value) -> Tensor | None:
        """Numbers between 0 and 1, or labels: the same for each value at each number of times."""
        maker = graph.makers.get(value.name)
        if maker is not None and _carried_out(maker, graph.active):
            return None
        if value.key in state and value in graph.state:
            return state[value.key].cpu()
        generator = torch.Generator().manual_seed(len(value.name) + sum(map(ord, value.name)))
        shape, axis = lengths(value, samples), samples_axis(value)
        drawn = torch.rand(shape, generator=generator, device="cpu") * 0.6 + 0.2 if value.floating else \
            torch.tensor(labels, device="cpu")[torch.randint(len(labels), shape, generator=generator, device="cpu")]
        return (drawn if axis is None else torch.cat([drawn] * times, axis)).to(value.dtype)

    return Again(graph, samples * times, stand_in, torch.device("cpu"))


def _parts(again: Again, slopes: Slopes) -> dict[str, tuple[Any, Tensor]]:
    """By reduction, what it is multiplied by and its value."""
    found = slopes(again.bound)
    return {name: (multiple, again.value(again.graph.makers[name].output)) for name, multiple in found.items()}
