"""The derivatives of joined operations by the chain rule, one operation after the other: as torch takes them.

For what sympy would write in a way that loses digits (see `digits`). The operations are still one, with one derivative
and one diagonal residual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from hbpcompiler.compiler.match.operation.bind import bind, static_op
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.elementwise import evaluate, slope_in
from hbpcompiler.rule import Diagonal, Op, Rule, Zero, operand_symbol
from hbpcompiler.rule.registry import AnyRule
from hbpcompiler.rule.rule import elementwise_jac_t

Derivatives = tuple[Any, Any]
"""The first one and the second one in what all come from: tensors, or numbers."""


class Chain:
    """Elementwise operations, in their order, that all come from one value."""

    def __init__(self, inner: Sequence[Operation], source: Value, rules: Mapping[str, AnyRule],
                 active: AbstractSet[str]) -> None:
        self.inner, self.source, self.rules, self.active = inner, source, rules, active

    def result(self, op: Op) -> Any:
        """Of the last operation."""
        return self.results(op.self)[self.inner[-1].name]

    def results(self, start: Any) -> dict[str, Any]:
        """Of each operation, by its name, as the user wrote them."""
        found: dict[str, Any] = {self.source.name: start}
        for operation in self.inner:
            forward = self.rule(operation).forward
            assert forward is not None
            found[operation.name] = forward(bind(operation, _reader(operation, found), self.active, False))
        return found

    def rule(self, operation: Operation) -> Rule:
        rule = self.rules[operation.name]
        assert isinstance(rule, Rule)
        return rule

    def derivatives(self, start: Any, second: bool) -> Derivatives:
        """Of the last operation; the second one only if it is asked for."""
        results = self.results(start)
        found: dict[str, Derivatives] = {self.source.name: (1, 0)}
        for operation in self.inner:
            own = {slot: found[value.name] for slot, value in operation.tensors.items()}
            if self.rule(operation).derivative is not None and len(own) == 1:
                step = self._of_one
            else:
                step = self._of_several if self._fraction(operation) is None else self._of_quotient
            found[operation.name] = step(operation, results, own, second)
        return found[self.inner[-1].name]

    def _of_one(self, operation: Operation, results: Mapping[str, Any], own: Mapping[str, Derivatives],
                second: bool) -> Derivatives:
        """By what the operation's rule says of its derivatives: f' u', and f'' u'^2 + f' u''."""
        rule = self.rule(operation)
        assert rule.derivative is not None
        op = bind(operation, _reader(operation, results), self.active)
        ((first, bend),) = own.values()
        slope = rule.derivative(op)
        residual = rule.residual_of(op)
        found = _product(slope, bend) if second else 0
        if second and isinstance(residual, Diagonal):
            if isinstance(first, int | float):
                curved = residual.diagonal(op, torch.full_like(op.output, first * first))
            else:
                curved = residual.diagonal(op, first) * first  # not by a square, which may be infinite
            found = _sum(found, curved)
        else:
            assert not second or isinstance(residual, Zero)
        return _product(slope, first), found

    def _fraction(self, operation: Operation) -> tuple[str, str] | None:
        """The operands above and below, of a quotient of two."""
        formula = self._formula(operation)
        for above, below in permutations(operation.tensors, 2):
            if formula == operand_symbol(above) / operand_symbol(below):
                return above, below
        return None

    def _formula(self, operation: Operation) -> Any:
        expression = self.rule(operation).expression
        assert expression is not None
        return expression(static_op(operation, self.active))

    def _of_quotient(self, operation: Operation, results: Mapping[str, Any], own: Mapping[str, Derivatives],
                     second: bool) -> Derivatives:
        """Of y = u / v, as torch goes: (u' - y v') / v, and (u'' - 2 y' v' - y v'') / v. v^2 may be infinite."""
        fraction = self._fraction(operation)
        assert fraction is not None
        (first, bend), (first_below, bend_below) = (own[slot] for slot in fraction)
        value, below = results[operation.name], _reader(operation, results)(fraction[1])
        slope = _quotient(_sum(first, _product(-value, first_below)), below)
        if not second:
            return slope, 0
        mixed = _product(_product(-2, slope), first_below)
        return slope, _quotient(_sum(_sum(bend, mixed), _product(-value, bend_below)), below)

    def _of_several(self, operation: Operation, results: Mapping[str, Any], own: Mapping[str, Derivatives],
                    second: bool) -> Derivatives:
        """By its expression: sum_i f_i u_i', and sum_ij f_ij u_i' u_j' + sum_i f_i u_i''."""
        formula, read = self._formula(operation), _reader(operation, results)
        values = {operand_symbol(slot): read(slot) for slot in own}

        def value_of(written: Any) -> Any:
            return evaluate(written, values)

        first: Any = 0
        bend: Any = 0
        for slot, (slope, curvature) in own.items():
            partial = slope_in(formula, operand_symbol(slot))
            first = _sum(first, _product(value_of(partial), slope))
            if not second:
                continue
            bend = _sum(bend, _product(value_of(partial), curvature))
            for other, (other_slope, _) in own.items():
                cross = value_of(slope_in(partial, operand_symbol(other)))
                bend = _sum(bend, _product(_product(cross, slope), other_slope))
        return first, bend


def chained(joined: Rule, chain: Chain) -> Rule:
    """The rule of joined operations with derivatives by the chain rule."""

    def derivative(op: Op) -> Any:
        return _filled(op, chain.derivatives(op.self, False)[0])

    def diagonal(op: Op, gradient: Tensor) -> Tensor:
        return gradient * _filled(op, chain.derivatives(op.self, True)[1])

    return replace(joined, derivative=derivative, jac_t={"self": elementwise_jac_t(derivative)},
                   residual=Diagonal(diagonal))


def _filled(op: Op, value: Any) -> Any:
    return torch.full_like(op.self, value) if isinstance(value, int | float) else value


def _reader(operation: Operation, results: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(slot: str) -> Any:
        return results[operation.name if slot == "output" else operation.tensors[slot].name]

    return read


def _product(value: Any, factor: Any) -> Any:
    """Short where one is 0 or 1."""
    for one, other in ((value, factor), (factor, value)):
        if isinstance(one, int | float) and one in (0, 1):
            return other if one == 1 else 0
    return value * factor


def _quotient(value: Any, below: Any) -> Any:
    return 0 if isinstance(value, int | float) and value == 0 else value / below


def _sum(value: Any, more: Any) -> Any:
    for one, other in ((value, more), (more, value)):
        if isinstance(one, int | float) and one == 0:
            return other
    return value + more
