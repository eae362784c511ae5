"""Running totals of quantities, and what they are on the scale of all samples as one batch.

A total keeps one tensor for each tensor of a result (a variance keeps two, a compensated total two), updated in place,
and is divided when it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.accumulate.counts import check_counted, counts_among
from hbpcompiler.accumulate.partial import Partials
from hbpcompiler.accumulate.pieces import SMALL, add_compensated, merge_spread, mirrored
from hbpcompiler.accumulate.weigh import Weight, check_alike, check_scale
from hbpcompiler.compiler.program.sums import added_
from hbpcompiler.errors import InputError
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.quantities import (
    COUNTS,
    MEAN,
    OF_LOSS,
    OVER_POSITIONS,
    PRODUCTS,
    PRODUCTS_OVER_POSITIONS,
    QUANTITIES,
    SPREAD,
    SQUARES,
    Quantity,
)
from hbpcompiler.values import Stored

GRADIENTS_TWICE = (PRODUCTS, PRODUCTS_OVER_POSITIONS)
DIVIDED = (OVER_POSITIONS, PRODUCTS_OVER_POSITIONS)
LOSS = "loss"
MEANS = "gradients of the variance"
"""Where the mean gradients are kept that variances are merged with."""


class Key(NamedTuple):
    """Which tensor of a result: quantity, parameter ("" for the loss), field ("" for a plain tensor)."""

    quantity: str
    parameter: str
    field: str


class Field(NamedTuple):
    """A tensor of a quantity's value."""

    name: str
    """"" where the value is the tensor itself."""
    how: str
    """It adds up."""


def fields_of(quantity: Quantity) -> tuple[Field, ...]:
    """Of one that adds up."""
    names = quantity.fields or ("",)
    return tuple(Field(name, how) for name, how in zip(names, quantity.adds, strict=True))


class Sums:
    """Totals of some quantities so far."""

    def __init__(self, quantities: tuple[str, ...], dtype: torch.dtype, compensated: bool, *,
                 limits: Limits = DEFAULT_LIMITS) -> None:
        self.quantities, self.dtype, self.compensated = quantities, dtype, compensated
        self.totals: dict[Key, Tensor] = {}
        self.lost: dict[Key, Tensor] = {}
        """What additions have rounded off, where totals are compensated."""
        self.partials = Partials(most=limits.partial_bytes)
        """What is not in the totals yet, see `finish`."""
        self.limits = limits
        self.samples = 0
        self.terms = 0.0
        self.of_average = 0.0
        """The samples, or the sum of their weights."""
        self.positions: dict[str, int] = {}
        """By parameter, of the first batch that reaches it."""
        self.shared_positions: dict[str, float] = {}
        """Samples times their positions over those of that batch."""
        self.samples_with: dict[str, int] = {}
        """By parameter, the samples of batches that reach it: with other batches, a forward may take another way."""
        self.first: Weight | None = None
        self.stored: dict[str, Stored] = {}
        """The parameters as the first result that has them has them, for `hbp.curvature`."""
        self._fields = {name: fields_of(QUANTITIES[name]) for name in quantities if QUANTITIES[name].adds}
        self._of_all = [name for name in self._fields if {SPREAD, COUNTS} & {*QUANTITIES[name].adds}]
        """What samples count for whose gradients are zero."""

    @cached_property
    def grow_in_place(self) -> bool:
        """Whether a program is to add to them while it runs: not to a few numbers, where that takes longer."""
        size = sum(total.numel() * total.element_size() for total in self.totals.values())
        return not self.compensated and size >= self.limits.grown_bytes

    # -- adding ------------------------------------------------------------------------------------------------------

    def add(self, result: Any, stored: Mapping[str, Stored], weight: Weight, in_place: Collection[Key] = ()) -> None:
        """What a program returned for one more batch, of which these tensors are in the totals already; `stored` says
        how it has the parameters."""
        if self.first is None:
            self.first = weight
        if not stored.keys() <= self.stored.keys():
            self.stored = {**stored, **self.stored}
        check_together(self.quantities, self.first, weight)
        if not weight.samples:
            return
        for name in self._of_all:
            self._add_unreached(name, getattr(result, name, {}), weight)
        factors = {how: self._factor(how, weight) for fields in self._fields.values() for _, how in fields}
        self._add(Key(LOSS, "", ""), result.loss, self._factor(OF_LOSS, weight))
        for name, fields in self._fields.items():
            for parameter, value in getattr(result, name, {}).items():  # none, where the batch reaches none of them
                for field in fields:
                    tensor = getattr(value, field.name) if field.name else value
                    if field.how == SPREAD:
                        self._merge(parameter, tensor, result.grad[parameter], weight)
                    elif tensor is not None and (key := Key(name, parameter, field.name)) not in in_place:
                        ratio = self._ratio(parameter, weight) if field.how in DIVIDED else 1.0
                        self._add(key, tensor, factors[field.how] * ratio)
        self._count(weight)
        self.partials.count(self.totals)

    def finish(self) -> None:
        """All that was added is in the totals."""
        self.partials.add_to(self.totals)

    def count(self, weight: Weight) -> None:
        """What one more batch counts, without a result: for `factor` and `divisor`."""
        if self.first is None:
            self.first = weight
        check_together(self.quantities, self.first, weight)
        if weight.samples:
            self._count(weight)

    def share(self, how: str, parameter: str, weight: Weight) -> float:
        """What a value of one batch that was counted enters with in that of all of them."""
        return self.factor(how, parameter, weight) / self.divisor(how, parameter) if weight.samples else 0.0

    def _count(self, weight: Weight) -> None:
        for parameter, positions in weight.positions.items():
            share = weight.samples * positions / self.positions.setdefault(parameter, positions)
            self.shared_positions[parameter] = self.shared_positions.get(parameter, 0.0) + share
            self.samples_with[parameter] = self.samples_with.get(parameter, 0) + weight.samples
        self.samples += weight.samples
        self.terms += weight.terms
        self.of_average += weight.of_average

    def _ratio(self, parameter: str, weight: Weight) -> float:
        """This batch's positions over those of the first that reaches the parameter."""
        own = weight.positions.get(parameter, 1)
        return own / self.positions.get(parameter, own)

    def factor(self, how: str, parameter: str, weight: Weight) -> float:
        """What makes a batch's value one that adds up."""
        return self._factor(how, weight) * (self._ratio(parameter, weight) if how in DIVIDED else 1.0)

    def _factor(self, how: str, weight: Weight) -> float:
        """The same of values that are not divided by positions."""
        if how == COUNTS:
            return 1.0
        if weight.nothing:
            return 0.0
        if how == MEAN:
            return weight.of_average
        if how == SQUARES:
            return weight.samples * weight.of_sample**2
        return weight.of_loss * (weight.of_sample if how in GRADIENTS_TWICE else 1.0)

    def _add(self, key: Key, value: Tensor, factor: float) -> None:
        value = _counting(value.detach(), factor)
        total = self.totals.get(key)
        if total is None:
            total = torch.zeros_like(value, dtype=dtype_of(key, self.dtype), memory_format=torch.contiguous_format)
            self.totals[key] = total
            if self.compensated:
                self.lost[key] = torch.zeros_like(total)
        if total.shape != value.shape:
            raise InputError(f"{key.quantity} of {key.parameter!r} has shape {list(value.shape)} in this batch and "
                             f"{list(total.shape)} in those before: it does not add up")
        if self.compensated:
            add_compensated(total, self.lost[key], value, factor)
        elif total.numel() < SMALL:
            total.add_(value, alpha=factor)
        else:
            added_(total, value, 1.0, factor)

    def _add_unreached(self, name: str, values: Mapping[str, Any], weight: Weight) -> None:
        """The zero gradients of parameters that this batch does not reach, and batches before did. Raises InputError
        for counts, whose bin of zeros is not known here."""
        known = self._known(name)
        if not self.samples or known == values.keys():
            return
        if name in counts_among((name,)):
            check_counted(name, [known, values])
        for parameter in sorted(known - values.keys()):
            total = self.totals[Key(name, parameter, "")]
            nothing = total.new_zeros(()).expand(total.shape)
            self._merge(parameter, nothing, nothing, weight)

    def _known(self, name: str) -> set[str]:
        """The parameters that some batch before reached."""
        return {key.parameter for key in self.totals if key.quantity == name}

    def _merge(self, parameter: str, variance: Tensor, gradient: Tensor, weight: Weight) -> None:
        """Sums of squares about the mean, and that mean (see `merge_spread`)."""
        scale, count = 0.0 if weight.nothing else weight.of_sample, weight.samples
        key, of_mean = Key("variance", parameter, ""), Key(MEANS, parameter, "")
        if key not in self.totals:
            for new in (key, of_mean):
                self.totals[new] = torch.zeros_like(variance, dtype=self.dtype, memory_format=torch.contiguous_format)
        variance, gradient = (_counting(value.detach(), scale) for value in (variance, gradient))
        merge_spread(self.totals[key], self.totals[of_mean], self.samples, variance, gradient, count,
                     count * scale**2, scale if weight.mean else scale / count)

    # -- reading -----------------------------------------------------------------------------------------------------

    def value(self, quantity: str, parameter: str) -> Any:
        """On the scale of one batch; a new tensor, or its fields by name."""
        table, found = QUANTITIES[quantity], dict[str, Any]()
        for name, how in self._fields[quantity]:
            tensor = self._scaled(Key(quantity, parameter, name), how)
            if how == COUNTS and tensor is not None:
                tensor = tensor.long()
            # Of a symmetric matrix programs may have added the upper triangle alone.
            found[name] = mirrored(tensor) if tensor is not None and name in table.symmetric else tensor
        return found if table.fields else found[""]

    @property
    def loss(self) -> Tensor:
        loss = self._scaled(Key(LOSS, "", ""), OF_LOSS)
        assert loss is not None
        return loss

    @property
    def is_mean(self) -> bool:
        """Whether the loss is a mean over terms, or was made one by counting them."""
        return self.first is not None and (self.first.mean or self.first.counted)

    def put_in_order(self, names: Iterable[str]) -> None:
        """Parameters as the model has them: batches that reach others may have come first."""
        place = {name: number for number, name in enumerate(["", *names])}
        for held in (self.totals, self.lost):
            inside = sorted(held.items(), key=lambda item: place.get(item[0].parameter, len(place)))
            held.clear()
            held.update(inside)
        self.stored = dict(sorted(self.stored.items(), key=lambda item: place.get(item[0], len(place))))

    def parameters(self, quantity: str) -> list[str]:
        """Those that have it, in the model's order once all is in."""
        return list(dict.fromkeys(key.parameter for key in self.totals if key.quantity == quantity))

    def _scaled(self, key: Key, how: str) -> Tensor | None:
        total = self.totals.get(key)
        if total is None:
            return None  # as A of a bias
        divisor = self.divisor(how, key.parameter)
        return total / divisor if key not in self.lost else (total + self.lost[key]) / divisor

    def divisor(self, how: str, parameter: str) -> float:
        """What makes a total a value on the scale of one batch."""
        assert self.first is not None
        if how == COUNTS:
            return 1.0
        over_terms = self.is_mean
        if how == MEAN:
            return self.of_average
        if how in (SQUARES, SPREAD):  # l_n of the whole is N over its terms times its sum
            return self.samples * ((self.terms / self.samples) ** 2 if over_terms else 1.0)
        whole = self.terms if over_terms else 1.0
        if how in GRADIENTS_TWICE and over_terms:
            whole *= self.terms / self.samples
        if how in DIVIDED and parameter in self.shared_positions:
            whole *= self.shared_positions[parameter] / self.samples_with[parameter]
        return whole


def _counting(value: Tensor, factor: float) -> Tensor:
    """Zeros where a batch counts for nothing: a mean over no terms is NaN."""
    return value if factor else value.new_zeros(()).expand(value.shape)


def dtype_of(key: Key, dtype: torch.dtype) -> torch.dtype:
    """That of a total where others have this one: single precision has no whole numbers beyond 2^24."""
    return torch.float64 if counts_among((key.quantity,)) else dtype


def check_together(quantities: tuple[str, ...], first: Weight, other: Weight) -> None:
    """InputError where two batches', or parts', values of these quantities do not add up."""
    check_alike(first, other)
    if counts := counts_among(quantities):
        check_scale(first, other, counts)
