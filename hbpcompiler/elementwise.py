"""Elementwise rules from one sympy expression: derivatives are taken, simplified and evaluated as stable torch code.

`elementwise("aten.silu", x * sigmoid(x))` is a whole rule. y' and y'' are derived by sympy, written in terms of the
saved output y where that is possible, their common subexpressions are shared, and `evaluate` turns them into torch
calls on tensors or proxies. The primitives below differentiate into themselves and are computed without overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from sympy import Expr, Piecewise, Symbol

from hbpcompiler.rule import ZERO, Case, Diagonal, Forward, Op, Residual, Rule, Structure, elementwise_jac_t
from torch import Tensor

x = Symbol("x", real=True)
"""The operation's input."""
y = Symbol("y", real=True)
"""Its saved output, for derivatives that are written by hand."""


def attribute(name: str) -> Symbol:
    """An attribute of the operation (`negative_slope`), replaced by its number at each use."""
    return Symbol(name, real=True)


class sigmoid(sympy.Function):  # type: ignore[misc]  # sympy is untyped; sympy's functions are lower-case classes
    """1 / (1 + exp(-x))."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return self * (1 - self)


class softplus(sympy.Function):  # type: ignore[misc]  # as above
    """log(1 + exp(x))."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return sigmoid(self.args[0])


class normal_pdf(sympy.Function):  # type: ignore[misc]  # as above
    """Density of the standard normal distribution."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return -self.args[0] * self


class normal_cdf(sympy.Function):  # type: ignore[misc]  # as above
    """Distribution function of the standard normal distribution."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return normal_pdf(self.args[0])


def _normal_cdf(value: Any) -> Any:
    return 0.5 * torch.erfc(value * -(0.5**0.5))


def _normal_pdf(value: Any) -> Any:
    return torch.exp(value.square() * -0.5) * (2 * torch.pi) ** -0.5


TORCH: dict[type, Callable[..., Any]] = {
    sigmoid: torch.sigmoid,
    softplus: F.softplus,
    normal_pdf: _normal_pdf,
    normal_cdf: _normal_cdf,
    sympy.tanh: torch.tanh,
    sympy.exp: torch.exp,
    sympy.log: torch.log,
    sympy.Abs: torch.abs,
    sympy.sign: torch.sign,
    sympy.sin: torch.sin,
    sympy.cos: torch.cos,
    sympy.erf: torch.erf,
    sympy.sqrt: torch.sqrt,
}
"""sympy function -> torch function; a rule file may add its own."""

RELATIONS: dict[type, Callable[[Any, Any], Any]] = {
    sympy.StrictGreaterThan: lambda a, b: a > b,
    sympy.GreaterThan: lambda a, b: a >= b,
    sympy.StrictLessThan: lambda a, b: a < b,
    sympy.LessThan: lambda a, b: a <= b,
    sympy.Equality: lambda a, b: a == b,
    sympy.Unequality: lambda a, b: a != b,
}


def evaluate(expression: Expr, values: Mapping[Symbol, Any]) -> Any:
    """A sympy expression as torch operations on `values` (tensors, proxies or numbers)."""
    like = next(iter(values.values()))

    def walk(node: Any) -> Any:
        if node in values:
            return values[node]
        if node.is_Number or node.is_NumberSymbol:
            return int(node) if node.is_Integer else float(node)
        if isinstance(node, sympy.Add):
            # Constants last and with a minus where it reads better: 1 - y, x + 3.
            terms = sorted(node.args, key=lambda term: (_is_negative(term), sympy.default_sort_key(term)))
            return reduce(lambda total, term: total - walk(-term) if _is_negative(term) else total + walk(term),
                          terms[1:], walk(terms[0]))
        if isinstance(node, sympy.Mul):
            if node.args[0] == -1:
                return -walk(-node)
            factors = sorted(node.args, key=lambda factor: bool(factor.is_Number))
            top = [factor for factor in factors if not _is_reciprocal(factor)]
            bottom = [1 / factor for factor in factors if _is_reciprocal(factor)]
            product = reduce(lambda total, factor: total * factor, map(walk, top)) if top else 1
            return reduce(lambda total, factor: total / factor, map(walk, bottom), product)
        if isinstance(node, sympy.Pow):
            return _power(walk(node.base), node.exp, walk)
        if isinstance(node, Piecewise):
            return _piecewise([(walk(value), condition) for value, condition in node.args], walk, like)
        if isinstance(node, sympy.Max | sympy.Min):
            clamp = torch.maximum if isinstance(node, sympy.Max) else torch.minimum
            numbers = [float(a) for a in node.args if a.is_Number]
            tensors = [walk(a) for a in node.args if not a.is_Number]
            result = reduce(clamp, tensors)
            if numbers:
                result = result.clamp(min=max(numbers)) if clamp is torch.maximum else result.clamp(max=min(numbers))
            return result
        if isinstance(node, sympy.And):
            return reduce(lambda a, b: a & b, map(walk, node.args))
        if isinstance(node, sympy.Or):
            return reduce(lambda a, b: a | b, map(walk, node.args))
        if type(node) in RELATIONS:
            return RELATIONS[type(node)](walk(node.lhs), walk(node.rhs))
        if type(node) in TORCH:
            return TORCH[type(node)](*map(walk, node.args))
        raise TypeError(f"no torch function for {type(node).__name__} in {expression}: add one to TORCH")

    return walk(expression)


def _is_negative(term: Expr) -> bool:
    return bool(term.could_extract_minus_sign())


def _is_reciprocal(factor: Expr) -> bool:
    return isinstance(factor, sympy.Pow) and bool(factor.exp.is_negative)


def _power(base: Any, exponent: Expr, walk: Callable[[Any], Any]) -> Any:
    if exponent == 2:
        return base.square()
    if exponent == -1:
        return base.reciprocal()
    if exponent == sympy.Rational(1, 2):
        return base.sqrt()
    if exponent.is_negative:
        return _power(base, -exponent, walk).reciprocal()
    return base ** walk(exponent)


def _piecewise(pieces: Sequence[tuple[Any, Any]], walk: Callable[[Any], Any], like: Any) -> Any:
    result, _ = pieces[-1]
    for value, condition in reversed(pieces[:-1]):
        chosen = walk(condition)
        if isinstance(value, int | float) and isinstance(result, int | float):
            # torch.where of two numbers would have the default dtype, so use a mask of the tensor's own.
            mask = chosen.to(like.dtype)
            difference = value - result
            result = mask if difference == 1 and result == 0 else mask * difference + result
        else:
            result = torch.where(chosen, value, result)
    return result


@lru_cache(maxsize=512)
def derivatives(expression: Expr) -> tuple[Expr, Expr]:
    """(y', y'') of an expression in x, in terms of y where the expression itself occurs in them."""
    first = _tidy(sympy.diff(expression, x))
    second = _tidy(sympy.diff(first, x))
    return _in_output(first, expression), _in_output(second, expression)


def _tidy(expression: Expr) -> Expr:
    if isinstance(expression, Piecewise):
        return Piecewise(*[(_tidy(value), condition) for value, condition in expression.args])
    # sign and |x| stay: away from the kink their derivatives are 0 and sign.
    expression = expression.replace(sympy.DiracDelta, lambda *_: sympy.Integer(0))
    expression = expression.replace(sympy.Derivative, lambda *_: sympy.Integer(0))
    return min((expression, sympy.factor(expression)), key=sympy.count_ops)


def _in_output(derivative: Expr, expression: Expr) -> Expr:
    written = derivative.subs(expression, y)
    if isinstance(expression, Piecewise) or written.has(x):
        return derivative  # y would be kept beside x, not instead of it
    return _tidy(written)


def _values(op: Op, expression: Expr, input: str) -> dict[Symbol, Any]:
    """Only what the expression reads: the planner keeps nothing else for the backward pass."""
    values: dict[Symbol, Any] = {}
    if expression.has(x):
        values[x] = getattr(op, input)
    if expression.has(y):
        values[y] = op.output
    return values or {y: op.output}


def _write(op: Op, expression: Expr, input: str) -> Any:
    """Evaluate with common subexpressions shared."""
    values = _values(op, expression, input)
    replacements, (reduced,) = sympy.cse([expression], symbols=sympy.numbered_symbols("t"), optimizations=None)
    for symbol, part in replacements:
        values[symbol] = evaluate(part, values)
    result = evaluate(reduced, values)
    if isinstance(result, int | float):
        return torch.full_like(getattr(op, input), result)
    return result


def elementwise(
    operation: str | Sequence[str],
    expression: Expr | Callable[[Op], Expr],
    *,
    first: Expr | None = None,
    second: Expr | None = None,
    forward: Forward | None = None,
    input: str = "self",
    cases: Sequence[Case] | None = None,
) -> Rule:
    """The rule of an elementwise operation y = expression(x).

    `expression` may contain attributes of the operation (see `attribute`), or be a function of op where an attribute
    chooses between expressions. `first` and `second` replace sympy's derivatives where another form is more stable or
    needs less saved (they may use both x and y). `forward` defaults to the ATen operation.
    """

    def bound(op: Op, which: int) -> Expr:
        chosen = expression(op) if callable(expression) and not isinstance(expression, sympy.Basic) else expression
        given = (first, second)[which]
        result = derivatives(_numbers(op, chosen))[which] if given is None else given
        return _numbers(op, sympy.sympify(result))

    def derivative(op: Op) -> Any:
        return _write(op, bound(op, 0), input)

    def residual(op: Op) -> Residual:
        if bound(op, 1) == 0:
            return ZERO
        return Diagonal(lambda op, gradient: gradient * _write(op, bound(op, 1), input))

    return Rule(
        operations=[operation] if isinstance(operation, str) else list(operation),
        forward=forward,
        jac_t={input: elementwise_jac_t(derivative)},
        residual=residual,
        structure=Structure.ELEMENTWISE,
        derivative=derivative,
        cases=[Case({input: (4, 3)}), Case({input: (2, 2, 3)})] if cases is None else cases,
    )


def _numbers(op: Op, expression: Expr) -> Expr:
    """Attributes replaced by this use's numbers, exactly where they are simple fractions."""
    symbols = [symbol for symbol in expression.free_symbols if symbol not in (x, y)]
    return expression.subs({symbol: sympy.nsimplify(getattr(op, symbol.name), rational=True) for symbol in symbols})


__all__ = [
    "Piecewise",
    "Tensor",
    "attribute",
    "derivatives",
    "elementwise",
    "evaluate",
    "normal_cdf",
    "normal_pdf",
    "sigmoid",
    "softplus",
    "sympy",
    "x",
    "y",
]
