"""How much a batch counts: its samples, the terms that its loss is a mean of, and each parameter's positions.

A data set's loss is that of all samples as one batch. A loss that is a sum adds up. One that is a mean is a mean over
terms: over samples, over all elements, or over the labels that are not ignored. The value of a batch of w_b terms then
enters with w_b / sum_b w_b, however the data were cut. Only ratios between batches matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import sympy
import torch
from torch import Tensor

from hbpcompiler.accumulate.made_again import (
    ADDS_UP,
    Divisors,
    State,
    divisors_of,
    is_constant,
    made_of,
    parts_of,
    written_out,
)
from hbpcompiler.compiled import Compiled
from hbpcompiler.compiler.built import Built
from hbpcompiler.compiler.match.losses.endings import unknown
from hbpcompiler.compiler.match.losses.targets import LossCheck
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.trace.batch import Batch
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.errors import InputError, UnsupportedOpError, listing
from hbpcompiler.quantities import FACTOR
from hbpcompiler.rule import LossRule

MEAN_LOSS = "mean"
COUNT = ("pass count=, a function from a batch, as the loader gives it, to the number of terms that its loss is a mean "
         "of, such as count=lambda batch: (batch[1] != -100).sum(), or with class weights weight[batch[1]].sum()")


class Weight(NamedTuple):
    """What one batch counts."""

    samples: int
    parts: tuple[float, ...]
    """For each part of a loss that is a sum of means, over how many terms it goes; what `count` said; or 1."""
    mean: bool
    """Whether the loss is a mean."""
    counted: bool
    """Whether `count` gave the terms: then a total is a mean over them, whatever the loss is."""
    positions: Mapping[str, int]
    """By parameter that has a factor B, the positions that this was divided by; 1 for none."""
    of_average: float
    """What it counts in an average over samples: their number, or the sum of their weights."""
    nothing: bool = False
    """Whether all samples have the weight zero: what was computed, without weights, counts as zeros."""
    known: tuple[float, ...] | None = None
    """Beside what `count` said: the terms of each part that the loss says itself, where it says them."""

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


class Weigher:
    """What batches count that one program serves.

    Raises UnsupportedOpError for a loss that is neither a mean nor a sum.
    """

    def __init__(self, compiled: Compiled, built: Built) -> None:
        ending = built.matched.ending
        if not ending.definite:
            raise UnsupportedOpError("the loss is neither a mean over the samples nor a sum: there is no way to add up "
                                     "batches. Divide by the number of samples, or by none")
        if ending.mixed:
            places = [f"{each.target} in {each.source}" for each in parts_of(built.matched)]
            raise UnsupportedOpError(listing(
                "one part of the loss is a mean over the samples and another one is a sum: no one number says what a "
                "batch counts in both.", places,
                "Make both means, (output ** 2).sum() / len(output) for (output ** 2).sum(), or both sums; or "
                "accumulate the parts of the loss one by one, and add their totals."))
        self._mean = ending.kind == MEAN_LOSS
        self._matched, self._losses = built.matched, built.losses
        self._state: State = lambda: compiled._tensors(compiled._state_now(), built)
        self._positions = positions_of(built)

    def weight(self, batch: Batch, counted: float | None, sample_weights: Tensor | None = None) -> Weight:
        """`counted` is what the caller's `count` said of the batch. Raises InputError where the number of terms cannot
        be known."""
        parts: tuple[float, ...] = (1.0,)
        known = None
        if counted is not None:
            if not (math.isfinite(counted) and counted >= 0):
                raise InputError(f"count gave {counted} for a batch; it must be the number of its terms")
            parts, known = (counted,), self._known(batch, counted)
        elif self._mean:
            divisors = self._divisors(batch)
            parts = tuple(part.of(batch, divisors if divisors and divisors.add_up else None) for part in self._parts)
        of_average = float(batch.samples) if sample_weights is None else float(sample_weights.double().sum())
        nothing = sample_weights is not None and not sample_weights.any()
        return Weight(batch.samples, parts, self._mean, counted is not None, self._positions, of_average, nothing,
                      known)

    def _known(self, batch: Batch, counted: float) -> tuple[float, ...] | None:
        """The terms that a mean says itself, where `count` said them, too. Raises InputError where parts do not, and
        nobody knows whether they go over the same terms."""
        if not self._mean:
            return None
        known, unknowable, divisors = list[float](), dict[Any, str](), self._divisors(batch)
        if divisors and not divisors.add_up and not counted:
            return None  # max(sum of a mask, 1) of a mask that picks none
        for part in self._parts:
            if divisors and counted:
                part.check(divisors)
            try:
                known.append(part.of(batch, divisors))
            except InputError:
                unknowable[part.key] = part.place
        if len(unknowable) > 1 or (known and unknowable):
            raise InputError(listing(
                "the loss is a sum of means, and over how many terms these go is not known, so that no one number, as "
                "count gives it, says what a batch counts:", list(unknowable.values()),
                "Accumulate the parts of the loss one by one, each with its own count."))
        return tuple(known) or None

    def _divisors(self, batch: Batch) -> Divisors | None:
        """None where they are not needed, or not known."""
        return divisors_of(self._matched, batch, self._state) if any(part.divided for part in self._parts) else None

    @cached_property
    def _parts(self) -> list[_Part]:
        """Those that the loss is a sum of."""
        return [_Part(self._matched, operation, self._losses, self._state) for operation in parts_of(self._matched)]


class _Part:
    """One mean or sum over the batch, in a loss that is a mean."""

    def __init__(self, matched: Matched, operation: Operation, losses: Sequence[LossCheck], state: State) -> None:
        rule = matched.rules[operation.name]
        assert isinstance(rule, LossRule)
        multiple = sympy.sympify(matched.ending.multiples[operation.name])
        self.place = f"{operation.target} in {operation.source}"
        self._has_sign = bool(multiple.is_positive or multiple.is_negative)
        made = {unknown(value.name).name: value for value in matched.graph.values()}
        self.divided = not all(symbol.name in made and is_constant(matched, made[symbol.name])
                               for symbol in multiple.free_symbols)
        """Whether it is multiplied by a number that depends on the batch."""
        self.key = _key(matched, operation, multiple, made)
        """What goes over other terms has another one."""
        self._op, self._terms, self._input = static_op(operation, matched.active), rule.terms, rule.input
        self._name, self._matched, self._state = operation.name, matched, state
        self._made = operation.tensors.get("target", operation.output)
        self._target = next((check.place for check in losses if check.operation == operation.name), None)
        self._summed = rule.reduction(self._op) != MEAN_LOSS
        self._of_sample = 1.0
        if self._summed and multiple.is_number and multiple != 0:
            self._of_sample = 1 / float(multiple)  # a sum over terms, divided by as many
        elif not self._summed and rule.terms is None:
            self._of_sample = float(math.prod(self._op.shape(rule.input)))

    def of(self, batch: Batch, divisors: Divisors | None) -> float:
        """Its terms in this batch; `divisors` of the batch are needed where it is `divided`."""
        if not self.divided:
            return self._undivided(batch)
        if divisors is None:
            raise InputError(f"{self.place} is divided by a number that depends on the batch; {COUNT}")
        self.check(divisors)
        return abs(divisors.of[self._name]) * (1.0 if self._summed else self._undivided(batch))

    def check(self, divisors: Divisors) -> None:
        """InputError for a divisor that serves no total: weights that cancel are no sum of weights. Only one of what is
        never negative may be zero."""
        if self.divided and not self._has_sign and not divisors.of[self._name] > 0:
            raise InputError(f"{self.place} is divided by {divisors.of[self._name]:g} in this batch, and a total needs "
                             "divisors above zero (or of what is never negative, as a mask or weights.abs() is)")

    def _undivided(self, batch: Batch) -> float:
        if self._summed or self._terms is None:
            return batch.samples * self._of_sample
        if self._target is None:
            terms = self._of_made(batch)
        else:
            terms = self._terms(self._op, batch.targets[self._target])
        if terms is None:
            raise InputError(f"{self.place} is a mean over weights or labels that depend on the batch; {COUNT}")
        return float(terms)

    def _of_made(self, batch: Batch) -> float | None:
        """The terms of targets that the loss makes: of labels of the batch, or of whatever it can ignore none of."""
        assert self._terms is not None
        if not self._made.floating:
            target = made_of(self._matched, self._made, batch, self._state)
            if target is not None:
                return self._terms(self._op, target)
            labels = torch.arange(self._op.shape(self._input)[0], device="cpu")
            if self._made.name not in self._matched.never_negative or self._terms(self._op, labels) != labels.numel():
                return None
        return batch.samples * math.prod(self._op.shape("target"))


def _key(matched: Matched, operation: Operation, multiple: sympy.Expr, made: Mapping[str, Value]) -> tuple[str, ...]:
    entering = sorted(written_out(matched, made[symbol.name]) if symbol.name in made else symbol.name
                      for symbol in multiple.free_symbols)
    form = multiple.subs({symbol: sympy.Symbol("value") for symbol in multiple.free_symbols})
    fixed = [written_out(matched, value) for value in operation.tensors.values() if value.name not in matched.active]
    return operation.target, str(sorted(operation.attributes.items())), str(form), *entering, *fixed


def not_ignored(batch: Batch) -> Batch:
    """The same inputs with zeros for labels, or with ones where zeros are what is ignored: for what labels do not
    matter to, in a batch that is ignored whole."""
    changed = []
    for target in batch.targets:
        label = 1 if bool((target == 0).all()) else 0
        changed.append(target if target.is_floating_point() else torch.full_like(target, label))
    return Batch((*batch.inputs, *changed), batch.layout)


def check_alike(first: Weight, other: Weight) -> None:
    """InputError where a sum of several means would weigh its parts differently in two batches, where `count` gave the
    terms of one of them alone, and where it contradicts the loss."""
    if first.counted != other.counted:
        raise InputError("count gave the terms of one part, and the other was added without it: with count a total is "
                         "a mean over terms, without it on the loss's own scale. Accumulate both with the same count")
    if first.known is not None and other.known is not None:
        _check_ratios(first.known, other.known)
        (own, *_), (theirs, *_) = first.known, other.known
        if not math.isclose(first.terms * theirs, other.terms * own, rel_tol=ADDS_UP):
            raise InputError(f"count gave {other.terms:g} for a batch whose loss is a mean over {theirs:g} terms, "
                             f"but {first.terms:g} for the first, whose loss is one over {own:g}. This loss "
                             "says its terms itself: leave count out")
    _check_ratios(first.parts, other.parts)


def _check_ratios(first: Sequence[float], other: Sequence[float]) -> None:
    for own, theirs in zip(first, other, strict=True):
        if not math.isclose(own * other[0], theirs * first[0], rel_tol=ADDS_UP):
            first_terms, other_terms = (" and ".join(f"{terms:g}" for terms in parts) for parts in (first, other))
            raise InputError("the loss is a sum of means over different numbers of terms, and their ratio is another "
                             f"in this batch ({other_terms}) than in the first ({first_terms}): no one number says "
                             "what the batch counts. Accumulate the parts of the loss one by one")


def check_scale(first: Weight, other: Weight, counts: Sequence[str]) -> None:
    """InputError where the gradients that are counted have another scale in one batch than in another, or than in all
    of them as one."""
    scaled = other.counted and not other.mean
    if scaled or other.nothing or not math.isclose(first.of_sample, other.of_sample, rel_tol=1e-9):
        reason = ("all weights of this batch are zero, so that no gradients were counted" if other.nothing else
                  "count makes a mean of a sum, whose l_n have another scale" if scaled else
                  "l_n is a sample's share of a mean over terms, and a sample has "
                  f"{other.of_sample:.6g} of them in this batch, {first.of_sample:.6g} in the first")
        raise InputError(f"{', '.join(counts)} cannot be added up: {reason}. Accumulate it with a loss that is a sum "
                         "(reduction=\"sum\"), without count")


def positions_of(built: Built) -> dict[str, int]:
    """By parameter that has a B: how many positions that was divided by (see FACTOR)."""
    found: dict[str, int] = {}
    for step in built.draft.plan.closings():
        if FACTOR in step.kinds:
            positions = step.site.size("p") if step.site.features and step.site.has_positions else 1
            found[step.parameter.key] = max(found.get(step.parameter.key, 1), positions)
    return found
