"""Running totals of quantities, and what they are on the scale of all samples as one batch.

A total keeps one tensor for each tensor of a result (a variance keeps two, a compensated total two), updated in place,
and is divided when it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbpcompiler.accumulate.weigh import Weight, check_alike
from hbpcompiler.errors import InputError, listing
from hbpcompiler.quantities import (
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


class Sums:
    """Totals of some quantities so far."""

    def __init__(self, quantities: tuple[str, ...], dtype: torch.dtype, compensated: bool) -> None:
        self.quantities, self.dtype, self.compensated = quantities, dtype, compensated
        self.totals: dict[Key, Tensor] = {}
        self.lost: dict[Key, Tensor] = {}
        """What additions have rounded off, where totals are compensated."""
        self.samples = 0
        self.terms = 0.0
        self.of_average = 0.0
        """The samples, or the sum of their weights."""
        self.positions: dict[str, int] = {}
        """Of the first batch, by parameter."""
        self.shared_positions: dict[str, float] = {}
        """Samples times their positions over those of the first batch."""
        self.first: Weight | None = None
        self.stored: dict[str, Stored] = {}
        """The parameters as the first result has them, for `hbp.curvature`."""

    # -- adding ------------------------------------------------------------------------------------------------------

    def add(self, result: Any, weight: Weight, in_place: Collection[Key] = ()) -> None:
        """The result of one more batch, of which these tensors are in the totals already."""
        if self.first is None:
            self.first, self.positions, self.stored = weight, dict(weight.positions), dict(result.stored)
        check_alike(self.first, weight)
        if not weight.samples:
            return
        self._add(Key(LOSS, "", ""), result.loss, self.factor(OF_LOSS, "", weight))
        for name in self.quantities:
            quantity = QUANTITIES[name]
            for parameter, value in result[name].items():
                if quantity.adds == (SPREAD,):
                    self._merge(parameter, value, result["grad"][parameter], weight)
                    continue
                for field, how, tensor in _parts(quantity, value):
                    if (key := Key(name, parameter, field)) not in in_place:
                        self._add(key, tensor, self.factor(how, parameter, weight))
        for parameter in self.positions:
            share = self.shared_positions.get(parameter, 0.0)
            self.shared_positions[parameter] = share + weight.samples * self._ratio(parameter, weight)
        self.samples += weight.samples
        self.terms += weight.terms
        self.of_average += weight.of_average

    def _ratio(self, parameter: str, weight: Weight) -> float:
        """This batch's positions over those of the first."""
        first = self.positions.get(parameter)
        return weight.positions.get(parameter, first) / first if first else 1.0

    def factor(self, how: str, parameter: str, weight: Weight) -> float:
        """What makes a batch's value one that adds up."""
        if weight.nothing:
            return 0.0
        if how == MEAN:
            return weight.of_average
        if how == SQUARES:
            return weight.samples * weight.of_sample**2
        factor = weight.of_loss * (weight.of_sample if how in GRADIENTS_TWICE else 1.0)
        return factor * (self._ratio(parameter, weight) if how in DIVIDED else 1.0)

    def _add(self, key: Key, value: Tensor, factor: float) -> None:
        value = value.detach()
        if key not in self.totals:
            self.totals[key] = torch.zeros_like(value, dtype=self.dtype, memory_format=torch.contiguous_format)
            if self.compensated:
                self.lost[key] = torch.zeros_like(self.totals[key])
        total = self.totals[key]
        if total.shape != value.shape:
            raise InputError(f"{key.quantity} of {key.parameter!r} has shape {list(value.shape)} in this batch and "
                             f"{list(total.shape)} in those before: it does not add up")
        if not self.compensated:
            total.add_(value, alpha=factor)
            return
        # Kahan (1965): what an addition rounds off enters with the next one.
        lost = self.lost[key]
        lost.add_(value, alpha=factor)
        before = total.clone()
        total.add_(lost)
        lost.sub_(total - before)

    def _merge(self, parameter: str, variance: Tensor, gradient: Tensor, weight: Weight) -> None:
        """Chan, Golub and LeVeque (1983): sums of squares about the mean, which cancel nothing."""
        scale, count = 0.0 if weight.nothing else weight.of_sample, weight.samples
        mean = gradient.detach().to(self.dtype) * (scale if weight.mean else scale / count)
        squares = variance.detach().to(self.dtype) * (count * scale**2)
        key, of_mean = Key("variance", parameter, ""), Key(MEANS, parameter, "")
        if key not in self.totals:
            self.totals[key], self.totals[of_mean] = squares.contiguous(), mean.contiguous()
            return
        merge_spread(self.totals[key], self.totals[of_mean], self.samples, squares, mean, count)

    # -- reading -----------------------------------------------------------------------------------------------------

    def value(self, quantity: str, parameter: str) -> Any:
        """On the scale of one batch; a new tensor, or its fields by name."""
        table = QUANTITIES[quantity]
        if not table.fields:
            return self._scaled(Key(quantity, parameter, ""), table.adds[0])
        return {field: self._scaled(Key(quantity, parameter, field), how)
                for field, how in zip(table.fields, table.adds, strict=True)}

    @property
    def loss(self) -> Tensor:
        loss = self._scaled(Key(LOSS, "", ""), OF_LOSS)
        assert loss is not None
        return loss

    @property
    def is_mean(self) -> bool:
        """Whether the loss is a mean over terms, or was made one by counting them."""
        return self.first is not None and (self.first.mean or self.first.counted)

    def parameters(self, quantity: str) -> list[str]:
        """Those that have it, in the result's order."""
        return list(dict.fromkeys(key.parameter for key in self.totals if key.quantity == quantity))

    def _scaled(self, key: Key, how: str) -> Tensor | None:
        total = self.totals.get(key)
        if total is None:
            return None  # as A of a bias
        divisor = self._divisor(how, key.parameter)
        return total / divisor if key not in self.lost else (total + self.lost[key]) / divisor

    def _divisor(self, how: str, parameter: str) -> float:
        assert self.first is not None
        over_terms = self.is_mean
        if how == MEAN:
            return self.of_average
        if how in (SQUARES, SPREAD):  # l_n of the whole is N over its terms times its sum
            return self.samples * ((self.terms / self.samples) ** 2 if over_terms else 1.0)
        whole = self.terms if over_terms else 1.0
        if how in GRADIENTS_TWICE and over_terms:
            whole *= self.terms / self.samples
        if how in DIVIDED and parameter in self.shared_positions:
            whole *= self.shared_positions[parameter] / self.samples
        return whole


def merge_spread(squares: Tensor, mean: Tensor, count: int, new_squares: Tensor, new_mean: Tensor, new: int) -> None:
    """Add a second group's squares about its mean to those of a first, in place."""
    away = new_mean - mean
    squares.add_(new_squares).addcmul_(away, away, value=count * new / (count + new))
    mean.add_(away, alpha=new / (count + new))


def is_divided(key: Key) -> bool:
    """Whether this tensor was divided by numbers of positions, batch by batch."""
    quantity = QUANTITIES.get(key.quantity)
    if quantity is None or not quantity.fields:
        return False
    return dict(zip(quantity.fields, quantity.adds, strict=True)).get(key.field) in DIVIDED


def _parts(quantity: Quantity, value: Any) -> list[tuple[str, str, Tensor]]:
    """(field, how it adds up, tensor) of a result's value."""
    if not quantity.fields:
        return [("", quantity.adds[0], value)]
    found = []
    for field, how in zip(quantity.fields, quantity.adds, strict=True):
        if getattr(value, field) is not None:
            found.append((field, how, getattr(value, field)))
    return found


def check_adds(quantities: Mapping[str, Any] | tuple[str, ...]) -> None:
    """InputError that lists all that do not add up."""
    findings = [f"{name}: {QUANTITIES[name].instead or 'it is not a sum over samples'}" for name in quantities
                if not QUANTITIES[name].adds]
    if findings:
        raise InputError(listing("These quantities do not add up over batches:", findings))


def check_has_average(sums: Sums) -> None:
    """InputError where all samples have the weight zero, and something is an average over them."""
    averages = [name for name in sums.quantities if QUANTITIES[name].averages]
    if averages and not sums.of_average:
        raise InputError(f"all weights of the data set are zero, so that {', '.join(averages)} has no value: it has "
                         "averages over the samples")
