"""Elementwise rules from one sympy expression: derivatives are taken, simplified and evaluated as stable torch code.

`elementwise("aten.silu", x * sigmoid(x))` is a whole rule. y' and y'' are derived by sympy, written in terms of the
saved output y where that is possible, and their common subexpressions are shared. Where another form is shorter or
more stable, a rule writes y' (in x and y) and y'' (in x, y and dy = y') itself; the tests prove it. `evaluate` turns
expressions into torch calls on tensors or proxies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sympy
import torch
from sympy import Expr, Piecewise, Symbol
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction
from torch import Tensor

from hbpcompiler.errors import RuleError
from hbpcompiler.rule import ZERO, Case, Diagonal, Forward, Op, Residual, Rule, Structure, flat, operand_symbol
from hbpcompiler.rule.crossing import masked, times_slope
from hbpcompiler.rule.formula import Written, attribute, bound, dy, heading, in_words, x, y
from hbpcompiler.rule.idioms import passed
from hbpcompiler.rule.rule import Backward
from hbpcompiler.rule.simpler import tidy
from hbpcompiler.rule.symbolic import evaluate, expm1, normal_cdf, normal_pdf, sigmoid, softplus


def elementwise(
    operation: str | Sequence[str],
    expression: Written,
    *,
    first: Written = None,
    second: Written = None,
    forward: Forward | None = None,
    backward: Backward | None = None,
    cases: Sequence[Case] | None = None,
    formula: str = "",
    curvature: str = "",
) -> Rule:
    """The rule of an elementwise operation y = expression(x), with attributes of the operation where it has them.

    `first` and `second` replace sympy's derivatives where another form is more stable or needs less saved. `forward`
    defaults to the ATen operation; `backward` is torch's kernel for one cotangent, if it has one that is faster.
    `formula` and `curvature` say y' and y'' in words, for the heading above what is generated: "s (1 - s),
    s = sigmoid(x)"; left out, it says what `first` and `second` state, where that is short.
    """

    if expression is None and (first is None or second is None):
        raise TypeError(f"elementwise({operation!r}, None): without a formula both derivatives have to be stated, "
                        "first= and second=")

    def pair(op: Op) -> tuple[Expr, Expr]:
        return _stated_or_derived(bound(op, expression), bound(op, first), bound(op, second))

    def derivative(op: Op) -> Any:
        value = _write(op, pair(op), 0)
        if isinstance(value, int | float):
            return torch.full_like(op.self, value)
        alive = _alive(op, pair(op), 0, value)
        return value if alive is None else masked(value, alive)

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        value = _write(op, pair(op), 0)
        if isinstance(value, int | float):
            return _times(columns, value)
        return times_slope(columns, value, _alive(op, pair(op), 0, value))

    def diagonal(op: Op, gradient: Tensor) -> Tensor:
        number, power = pair(op)[1].as_coeff_Mul()
        if isinstance(power, sympy.Pow) and power.base in (y, dy) and power.exp in STEPWISE:
            slope = op.output if power.base == y else _write(op, pair(op), 0)
            return _times(_times_power(gradient, slope, power.exp), evaluate(number, {}))
        value = _write(op, pair(op), 1)
        alive = _alive(op, pair(op), 1, value)
        return _times(gradient, value) if alive is None else passed(_times(gradient, value), alive)

    def residual(op: Op) -> Residual:
        return ZERO if pair(op)[1] == 0 else Diagonal(diagonal)

    def stated(op: Op) -> Any:
        own = bound(op, expression)
        return None if own is None else own.subs(x, operand_symbol("self"))

    return Rule(
        operations=[operation] if isinstance(operation, str) else list(operation),
        forward=forward,
        jac_t={"self": jac_t},
        backward={} if backward is None else {"self": backward},
        residual=residual,
        structure=Structure.ELEMENTWISE,
        derivative=flat if isinstance(first, sympy.Integer) and first == 0 else derivative,
        merged=True,
        formula=heading(formula or in_words(first), curvature or in_words(second)),
        expression=stated,
        cases=settings({}, {}) if cases is None else cases,
    )


STEPWISE = (2, 3, 5)
"""Powers of which a curvature is taken factor by factor."""


def _stated_or_derived(formula: Expr | None, first: Expr | None, second: Expr | None) -> tuple[Expr, Expr]:
    """(y', y'') of a use: what the rule states, or else what sympy derives of the formula."""
    if first is not None and second is not None:
        return first, second
    if formula is None:
        raise RuleError("at this use there is no formula, so both derivatives have to be stated, first= and second=")
    derived = derivatives(formula)
    return derived[0] if first is None else first, derived[1] if second is None else second


def _times_power(gradient: Tensor, slope: Any, exponent: int) -> Tensor:
    """One by one: the gradient may be as small as 1 / slope, whose power alone is beyond the dtype's range."""
    for _ in range(exponent):
        gradient = gradient * slope
    return gradient


def settings(*attributes: Mapping[str, Any]) -> list[Case]:
    """A case for each setting of an operation's attributes, on inputs that reach +-6 or so."""
    wide = {"self": lambda shape: 2 * torch.randn(*shape, dtype=torch.float64)}
    shapes = ((4, 3), (2, 2, 3))
    return [Case({"self": shapes[i % 2]}, given, make=wide) for i, given in enumerate(attributes)]


@lru_cache(maxsize=512)
def derivatives(expression: Expr) -> tuple[Expr, Expr]:
    """(y', y'') of an expression in x, in terms of y where the expression itself occurs in them."""
    first = tidy(_slope(expression))
    second = tidy(_slope(first))
    return _in_output(first, expression), _in_output(second, expression)


STEPS = (sympy.sign, sympy.floor, sympy.ceiling, sympy.Heaviside)


class _step(sympy.Function):  # type: ignore[misc]  # sympy is untyped
    """One of STEPS, by its number, of the other arguments: flat, as torch has it, where sympy has delta functions."""

    is_extended_real = True

    def fdiff(self, argindex: int = 1) -> Expr:
        return sympy.Integer(0)


class _size(sympy.Function):  # type: ignore[misc]  # sympy is untyped
    """|u| of what sympy does not know to be real, as log(x) for a real x: its own derivative has complex parts."""

    is_extended_real = True

    def fdiff(self, argindex: int = 1) -> Expr:
        return sympy.sign(self.args[0])


def _slope(expression: Expr) -> Expr:
    """The derivative in x, at a kink or step what torch has there."""
    if not expression.has(*STEPS, sympy.frac, sympy.Abs):
        return _known(sympy.diff(expression, x))
    hidden = expression.replace(sympy.frac, lambda value: value - sympy.floor(value))
    for number, step in enumerate(STEPS):
        hidden = hidden.replace(step, lambda *values, number=number: _step(number, *values))
    hidden = hidden.replace(sympy.Abs, lambda value: (sympy.Abs if value.is_extended_real else _size)(value))
    slope = sympy.diff(hidden, x).replace(_size, sympy.Abs)
    return _known(slope.replace(_step, lambda number, *values: STEPS[int(number)](*values)))


def slope_in(expression: Expr, symbol: Symbol) -> Expr:
    """The derivative in one of several symbols, likewise."""
    return _slope(expression.subs(symbol, x)).subs(x, symbol)


def _known(slope: Expr) -> Expr:
    for left in slope.atoms(sympy.Derivative):
        raise RuleError(f"sympy has no derivative of {left.expr}; a rule can state it: "
                        "elementwise(..., first=, second=)")
    return slope


def _in_output(derivative: Expr, expression: Expr) -> Expr:
    if not expression.has(x):
        return derivative  # a constant's own number must not be taken for the output
    written = derivative.subs(expression, y)
    if written == derivative or isinstance(expression, Piecewise) or written.has(x):
        return derivative  # y would be kept beside x, not instead of it
    return tidy(written)


@lru_cache(maxsize=512)
def _shared(pair: tuple[Expr, Expr]) -> tuple[list[tuple[Symbol, Expr]], list[Expr]]:
    """Common subexpressions of y' and y'', taken together so that a graph's own sharing can merge the two."""
    found, reduced = sympy.cse(pair, symbols=sympy.numbered_symbols("t"), optimizations=None)
    kept: dict[Symbol, Any] = {}
    parts = []
    for symbol, part in found:
        part = part.xreplace(kept)
        if isinstance(part, Relational | BooleanFunction) or not part.free_symbols:
            kept[symbol] = part  # where it was: a choice takes its dtype from what it compares, log(2) is a number
        else:
            parts.append((symbol, part))
    return parts, [expression.xreplace(kept) for expression in reduced]


def _write(op: Op, pair: tuple[Expr, Expr], which: int) -> Any:
    """y' or y'', a tensor or a number. Nothing is read but what it needs, and so nothing else is kept."""
    parts, reduced = _shared(pair)
    readers: Mapping[Symbol, Callable[[], Any]] = {
        x: lambda: op.self,
        y: lambda: op.output,
        dy: lambda: _write(op, pair, 0),
    }
    shared = dict(parts)
    values: dict[Symbol, Any] = {}

    def value_of(expression: Expr) -> Any:
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol in shared and symbol not in values:
                values[symbol] = value_of(shared[symbol])
            elif symbol not in values:
                values[symbol] = readers[symbol]() if symbol in readers else op.argument(symbol.name)
        return evaluate(expression, values)

    return value_of(reduced[which])


def _alive(op: Op, pair: tuple[Expr, Expr], which: int, value: Any) -> Any | None:
    """Where y' or y'', whose value is this, is not of a piece that is 0; None if it has no such piece."""
    derivative = pair[which]
    if not isinstance(derivative, Piecewise) or all(piece != 0 for piece, _ in derivative.args):
        return None
    alive = Piecewise(*((int(piece != 0), condition) for piece, condition in derivative.args))
    return value if alive == derivative else _write(op, (alive, alive), 0)


def _times(value: Tensor, factor: Any) -> Tensor:
    """value * factor, a tensor of its shape or a number; a factor 1 or -1 is no product."""
    if isinstance(factor, int | float) and abs(factor) == 1:
        return value if factor == 1 else -value
    return value * factor


__all__ = [
    "Case",
    "Piecewise",
    "Tensor",
    "attribute",
    "bound",
    "derivatives",
    "dy",
    "elementwise",
    "evaluate",
    "expm1",
    "normal_cdf",
    "normal_pdf",
    "settings",
    "sigmoid",
    "slope_in",
    "softplus",
    "sympy",
    "x",
    "y",
]
