"""How much a batch counts: its samples, the terms that its loss is a mean of, and each parameter's positions.

A data set's loss is that of all samples as one batch. A loss that is a sum adds up. One that is a mean is a mean over
terms: over samples, over all elements, or over the labels that are not ignored. The value of a batch of w_b terms then
enters with w_b / sum_b w_b, however the data were cut. Only ratios between batches matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
from torch import Tensor

from hbpcompiler.compiler.match.bind import static_op
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.targets import LossCheck
from hbpcompiler.compiler.pipeline import Built
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.errors import InputError, UnsupportedOpError
from hbpcompiler.quantities import FACTOR
from hbpcompiler.rule import LossRule

MEAN_LOSS = "mean"
COUNT = ("pass count=, a function from a batch, as the loader gives it, to the number of terms that its loss is a mean "
         "of, such as count=lambda batch: (batch[1] != -100).sum()")


@dataclass(frozen=True)
class Weight:
    """What one batch counts."""

    samples: int
    parts: tuple[float, ...]
    """For each part of a loss that is a sum of means, over how many terms it goes; what `count` said; or 1."""
    mean: bool
    """Whether the loss is a mean."""
    counted: bool
    """Whether `count` gave the terms: then a total is a mean over them, whatever the loss is."""
    positions: Mapping[str, int]
    """By parameter, the positions that its factor B was divided by."""

    @property
    def terms(self) -> float:
        """Of the first part, which stands for all."""
        return self.parts[0]

    @property
    def of_loss(self) -> float:
        """What makes a batch's value on the scale of L one that adds up."""
        return self.terms if self.mean else 1.0

    @property
    def of_sample(self) -> float:
        """What makes l_n one that adds up."""
        return self.terms / self.samples if self.mean else 1.0


def weight_of(built: Built, batch: Batch, counted: float | None) -> Weight:
    """Of a batch that this program has served; `counted` is what the caller's `count` said of it.

    Raises UnsupportedOpError for a loss that is neither a mean nor a sum, and InputError where the number of terms
    cannot be known.
    """
    ending = built.matched.ending
    if not ending.definite:
        raise UnsupportedOpError("the loss is neither a mean over the samples nor a sum: there is no way to add up "
                                 "batches. Divide by the number of samples, or by none")
    mean = ending.kind == MEAN_LOSS
    parts: tuple[float, ...] = (1.0,)
    if counted is not None:
        parts = (float(counted),)
        if not (math.isfinite(parts[0]) and parts[0] >= 0):
            raise InputError(f"count gave {counted} for a batch; it must be the number of its terms")
    elif mean:
        parts = tuple(_terms_of(built.matched, operation, built.losses, batch) for operation in ending.reductions)
    return Weight(batch.samples, parts, mean, counted is not None, _positions(built))


def check_alike(first: Weight, other: Weight) -> None:
    """InputError where a sum of several means would weigh its parts differently in two batches."""
    for own, theirs in zip(first.parts, other.parts, strict=True):
        if not math.isclose(own * other.terms, theirs * first.terms, rel_tol=1e-9):
            raise InputError("the loss is a sum of means over different numbers of terms, and their ratio is another "
                             f"in this batch ({other.parts}) than in the first ({first.parts}): no one number says "
                             "what the batch counts. Accumulate the parts of the loss one by one")


def _terms_of(matched: Matched, operation: Operation, losses: Sequence[LossCheck], batch: Batch) -> float:
    rule, op = matched.rules[operation.name], static_op(operation, matched.active)
    assert isinstance(rule, LossRule)
    multiple = sympy.sympify(matched.ending.multiples[operation.name])
    if not multiple.is_number:
        raise InputError(f"{operation.target} in {operation.source} is divided by a number that depends on the batch; "
                         f"{COUNT}")
    if rule.reduction(op) != MEAN_LOSS:
        return batch.samples / float(multiple)  # a sum over terms of samples, divided by as many
    if rule.terms is None:
        return float(batch.samples * math.prod(op.shape(rule.input)))
    target = _target(operation, losses, batch)
    terms = rule.terms(op, target) if target is not None else _none_ignored(rule, operation, matched, batch)
    if terms is None:
        raise InputError(f"{operation.target} in {operation.source} is a mean over weights or labels that depend on "
                         f"the batch; {COUNT}")
    return float(terms)


def _target(operation: Operation, losses: Sequence[LossCheck], batch: Batch) -> Tensor | None:
    """What the operation reads as its target, if it is one of the batch's."""
    return next((batch.targets[check.place] for check in losses if check.operation == operation.name), None)


def _none_ignored(rule: LossRule, operation: Operation, matched: Matched, batch: Batch) -> int | None:
    """The terms of targets that the loss makes of the batch's, if none of those is one that it ignores."""
    assert rule.terms is not None
    op = static_op(operation, matched.active)
    for tensor in (*batch.targets, *batch.inputs):
        if not tensor.is_floating_point() and rule.terms(op, tensor) != tensor.numel():
            return None
    return batch.samples * math.prod(op.shape("target"))


def _positions(built: Built) -> dict[str, int]:
    """By parameter: how many positions B was divided by (see FACTOR)."""
    found: dict[str, int] = {}
    for step in built.draft.plan.closings():
        if FACTOR in step.kinds and step.site.features and step.site.has_positions:
            key = step.parameter.key
            found[key] = max(found.get(key, 1), step.site.size("p"))
    return found
