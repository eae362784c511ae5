"""Part of `check_rule`: whether a rule's expression is the operation, in value and in what fusing derives from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor

from hbpcompiler.elementwise import derivatives, x, y
from hbpcompiler.rule import Op, Rule, operand_symbol
from hbpcompiler.rule.symbolic import evaluate
from hbpcompiler.testing.setting import Setting

ROUNDING = 1e-12
"""How far float64 results may lie apart, relative to one plus their size."""
EXTREMES = (-1e4, -80.0, -18.0, -4.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 4.0, 6.0, 18.0, 80.0, 1e4)
"""Not 20, where torch's softplus is linear in its second derivative and not yet in its first: 2e-9 apart."""

Function = Callable[[Mapping[str, Tensor]], Tensor]


def check_expression(rule: Rule, setting: Setting, op: Op, where: str) -> None:
    """Compare the expression at this use with torch's operation, if operations of one module could be joined by it.

    The operands move along a line, a + x d, on which value, first and second derivative are compared: on the case's
    numbers in a random direction, and for one operand at extremes and likely kinks too, where torch's are finite.
    """
    stated = None if rule.expression is None else rule.expression(op)
    names = list(setting.case.shapes)
    alike = all(op.shape(name) == op.shape("output") and setting.batched(name) for name in names)
    if stated is None or not alike or set(names) != set(setting.active()):
        return
    drawn = {name: setting.tensor(name) for name in names}

    def operation(operands: Mapping[str, Tensor]) -> Tensor:
        return setting.reference(operands)

    if len(names) == 1:
        (name,) = names
        expression = stated.subs(operand_symbol(name), x)
        compare(expression, drawn[name], lambda value: operation({name: value}), where)
        extremes = torch.tensor(EXTREMES, dtype=torch.float64).expand(len(drawn[name]), -1)
        compare(expression, extremes, lambda value: operation({name: value}), f"{where}, at extremes")
        return
    starts = {name: sympy.Symbol(f"start_{name}", real=True) for name in names}
    ways = {name: sympy.Symbol(f"way_{name}", real=True) for name in names}
    directions = {name: torch.randn_like(value) for name, value in drawn.items()}
    lines = {operand_symbol(name): starts[name] + x * ways[name] for name in names}
    known = {starts[name]: drawn[name] for name in names} | {ways[name]: directions[name] for name in names}
    here = torch.zeros_like(op.output)
    compare(stated.subs(lines, simultaneous=True), here,
            lambda value: operation({name: drawn[name] + value * directions[name] for name in names}), where, known)


def compare(expression: Any, value: Tensor, operation: Callable[[Tensor], Tensor], where: str,
            known: Mapping[Any, Tensor] | None = None, rounding: float = ROUNDING) -> int:
    """Compare an expression in x and its derivatives, as fusing takes them, with an operation that acts number by
    number; `known` has the values of other symbols. At how many numbers: those where torch's results are finite."""
    point = value.clone().requires_grad_()
    output = operation(point)
    expected = [output.detach(), *by_double_backward(output, point)]
    finite = torch.stack([torch.isfinite(one) for one in expected]).all(0)
    values = {**(known or {}), x: value, y: expected[0]}
    for order, (wanted, written) in enumerate(zip(expected, (expression, *derivatives(expression)), strict=True)):
        found = torch.as_tensor(evaluate(written, values), dtype=value.dtype).expand_as(value)
        gap = ((found - wanted).abs() / (1 + wanted.abs()))[finite]
        what = "value" if order == 0 else f"derivative {order}"
        endless = value[finite][~torch.isfinite(gap)]
        assert not endless.numel(), (
            f"{where}: the expression's {what} is not finite at {endless[0]:.4g}, where the operation is: exp(x), say, "
            "is infinite there. State it in functions that are not (sigmoid, softplus of hbpcompiler.elementwise), or "
            "state none, with first= and second=: it counts when operations are joined")
        assert (gap <= rounding).all(), (
            f"{where}: the expression's {what} is off by {gap.max():.1e} at {value[finite][gap.argmax()]:.4g}; state "
            "it as it is, at kinks too (at 0 the slope of sympy.Max(x, 0) is 1/2, of x * sympy.Heaviside(x, 0) 0), "
            "or none: it counts when operations are joined")
    return int(finite.sum())


def by_double_backward(output: Tensor, point: Tensor) -> list[Tensor]:
    """First and second derivative, number by number; zeros where there is no way back."""
    found = []
    for _ in range(2):
        slope = None
        if output.requires_grad:
            (slope,) = torch.autograd.grad(output.sum(), point, create_graph=True, allow_unused=True)
        output = torch.zeros_like(point) if slope is None else slope
        found.append(output.detach())
    return found
