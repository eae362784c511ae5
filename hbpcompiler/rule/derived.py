"""Rules that nobody wrote: torch's own derivatives of an operation, first and second (see `derivatives`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.rule.composite import Composite, EachSample
from hbpcompiler.rule.crossing import masked
from hbpcompiler.rule.derivatives import bend_of, passing_of, pulled_back, residual_columns, slope_of
from hbpcompiler.rule.op import Op
from hbpcompiler.rule.residual import ZERO, Diagonal, Factor, Residual
from hbpcompiler.rule.rule import JacT, Rule
from hbpcompiler.rule.structure import Structure


@dataclass(frozen=True)
class DerivedRule(Rule):
    """A rule that was made of an operation by differentiating it."""

    whole: str = ""
    """The operation as the user's code calls it, and where it stands."""


@dataclass(frozen=True)
class Use:
    """An operation as a function of its tensors, and what has been seen of torch's derivatives of it."""

    function: Composite
    slots: Sequence[str]
    """Its tensor arguments, in the function's order."""
    active: Sequence[str]
    """Those that derivatives go to."""
    elementwise: bool
    linear: bool
    """Whether the first derivative depends on none of them."""
    one_by_one: bool
    """Whether torch cannot send many columns back at once."""
    second: str = ""
    """Why there is no second derivative; empty if there is one."""
    second_one_by_one: bool = False
    each: EachSample | None = None
    """The function sample by sample, where some active arguments have no sample axis."""


def derived_rule(operation: str, use: Use, whole: str, where: str) -> Rule:
    """The rule of one use of an operation, which is found under the name `operation`."""
    elementwise = use.elementwise
    names = dict.fromkeys(slot.split(".")[0] for slot in use.active)
    return DerivedRule(
        operations=[operation],
        jac_t={name: _jac_t(use, name) for name in names},
        residual=_residual(use, where),
        forward=lambda op: use.function(*_tensors(use, op)),
        structure=Structure.ELEMENTWISE if elementwise else Structure.GENERAL,
        derivative=_derivative(use) if elementwise else None,
        merged=elementwise,
        whole=whole,
    )


def _tensors(use: Use, op: Op) -> list[Any]:
    found = []
    for slot in use.slots:
        name, _, position = slot.partition(".")
        value = op.argument(name)
        found.append(value[int(position)] if position else value)
    return found


def _of_each(use: Use, op: Op, columns: Tensor) -> list[Any]:
    """The tensors, with a sample axis in each that derivatives go to."""
    assert use.each is not None
    found = []
    for slot, tensor, batched, own in zip(use.slots, _tensors(use, op), use.function.batched, use.each.batched,
                                          strict=True):
        found.append(tensor.expand(columns.shape[0], *op.shape(slot)) if own and not batched else tensor)
    return found


def _jac_t(use: Use, name: str) -> JacT:
    def jac_t(op: Op, columns: Tensor, position: int | None = None) -> Tensor:
        slot = name if position is None else f"{name}.{position}"
        at = use.slots.index(slot)
        more = {"one_by_one": True} if use.one_by_one else {}
        if use.function.batched[at]:
            result: Tensor = pulled_back(use.function, columns, _tensors(use, op), at, **more)
        else:
            assert use.each is not None
            result = pulled_back(use.each, columns, _of_each(use, op, columns), at, **more)
        return result

    return jac_t


def _derivative(use: Use) -> Callable[[Op], Tensor]:
    at = use.slots.index(use.active[0])

    def derivative(op: Op) -> Tensor:
        found: Tensor = slope_of(use.function, _tensors(use, op), at)
        return masked(found, passing_of(use.function, _tensors(use, op), at))

    return derivative


def _residual(use: Use, where: str) -> Residual:
    if use.linear:
        return ZERO
    places = [use.slots.index(slot) for slot in use.active]

    def count(op: Op) -> int:
        if use.second:
            raise UnsupportedOpError(f"{where}: {use.second}; ask for first-order quantities, or write a rule")
        return sum(prod(op.shape(slot)) for slot in use.active)

    def diagonal(op: Op, gradient: Tensor) -> Tensor:
        found: Tensor = bend_of(use.function, gradient, _tensors(use, op), places[0])
        return found

    def factor(op: Op, gradient: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        more = {"one_by_one": True} if use.second_one_by_one else {}
        function = use.function if use.each is None else use.each
        tensors = _tensors(use, op) if use.each is None else _of_each(use, op, gradient)
        joined, signs = residual_columns(function, gradient, tensors, places, **more)
        parts, start = {}, 0
        for slot in use.active:
            size = prod(op.shape(slot))
            part = joined if len(use.active) == 1 else joined[:, :, start : start + size]
            parts[slot] = part.reshape(joined.shape[0], joined.shape[1], *op.shape(slot))
            start += size
        return parts, signs

    if use.elementwise and not use.second:
        return Diagonal(diagonal)
    return Factor(count, factor)
