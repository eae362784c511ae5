"""Which residuals inside a loss are known to be positive: those of convex operations on which the loss depends rising.

A loss written out, ((output - target)**2).mean(), then has a positive GGN as torch.nn.MSELoss has. The composition
rules are those of Boyd and Vandenberghe 2004, section 3.2.4. What is not known to be positive counts as signed.
"""

from __future__ import annotations

from collections.abc import Collection

import sympy

from hbpcompiler.rule.helpers import operand_symbol
from hbpcompiler.rule.op import Op
from hbpcompiler.rule.rule import LossRule, Rule
from hbpcompiler.rule.simpler import factored
from hbpcompiler.rule.structure import Structure
from hbpcompiler.rule.symbolic import sigmoid


def slope_sign(rule: Rule, op: Op, slot: str, never_negative: Collection[str] = ()) -> int | None:
    """1 if no result falls when this input rises, -1 if none rises, None if that is unknown; `never_negative` are
    inputs that are known to be so."""
    if rule.structure_of(op) is Structure.SELECTION:
        return 1
    return order_sign(rule) or _sign(_derivative(rule, op, slot, 1, never_negative))


def order_sign(rule: Rule | LossRule) -> int | None:
    """What the rule says of its slopes by itself."""
    return 1 if "increasing" in rule.order else -1 if "decreasing" in rule.order else None


def curvature_sign(rule: Rule, op: Op, never_negative: Collection[str] = ()) -> int | None:
    """1 if all results are convex in the inputs that carry derivatives, -1 if concave, None if that is unknown."""
    varying = op.varying() or frozenset()
    if "convex" in rule.order:
        return 1
    if "concave" in rule.order:
        return -1
    if len(varying) != 1:
        return None
    return _sign(_derivative(rule, op, next(iter(varying)), 2, never_negative))


def _derivative(rule: Rule, op: Op, slot: str, order: int, never_negative: Collection[str]) -> sympy.Expr | None:
    expression = None if rule.expression is None else rule.expression(op)
    if expression is None:
        return None
    # Positive, of which sympy knows the sign of 1 / x, too; at 0 a derivative is a limit of these, or there is none.
    known = {operand_symbol(name): sympy.Symbol(f"known_{name}", positive=True) for name in never_negative}
    return sympy.diff(expression, operand_symbol(slot), order).subs(known)


def _sign(derivative: sympy.Expr | None) -> int | None:
    if derivative is None:
        return None
    if isinstance(derivative, sympy.Piecewise):
        signs = {_sign(part) for part, _ in derivative.args}
        return signs.pop() if len(signs) == 1 else None
    # sympy does not know that sigmoid lies between 0 and 1, but knows that exp is positive.
    written = derivative.replace(sigmoid, lambda inner: 1 / (1 + sympy.exp(-inner)))
    for form in (written, factored(written)):  # of a difference, 1 / sqrt(1 + x^2) - x^2 / (1 + x^2)^(3/2), by factors
        if form.is_nonnegative or form.is_nonpositive:
            return 1 if form.is_nonnegative else -1
    return None
