"""From sympy expressions to torch calls, on tensors or on torch.fx proxies alike.

The primitives here differentiate into themselves and are computed without overflow. Dtypes stay as they are: numbers
are python numbers, and a choice between two numbers is a mask of the tensor's own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from sympy import Expr, Piecewise, Symbol

from hbpcompiler.errors import RuleError
from hbpcompiler.rule.helpers import otherwise_called


class Attribute(Symbol):  # type: ignore[misc]  # sympy is untyped; sympy's functions below are lower-case classes
    """Stands for an attribute of an operation, a number: its value is no tensor."""


class sigmoid(sympy.Function):  # type: ignore[misc]  # as above
    """1 / (1 + exp(-x))."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return self * (1 - self)


class softplus(sympy.Function):  # type: ignore[misc]  # as above
    """log(1 + exp(x))."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return sigmoid(self.args[0])


class expm1(sympy.Function):  # type: ignore[misc]  # as above
    """exp(x) - 1."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return sympy.exp(self.args[0])


class log1p(sympy.Function):  # type: ignore[misc]  # as above
    """log(1 + x)."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return 1 / (1 + self.args[0])


class normal_pdf(sympy.Function):  # type: ignore[misc]  # as above
    """Density of the standard normal distribution."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return -self.args[0] * self


class normal_cdf(sympy.Function):  # type: ignore[misc]  # as above
    """Distribution function of the standard normal distribution."""

    def fdiff(self, argindex: int = 1) -> Expr:
        return normal_pdf(self.args[0])


def _normal_cdf(value: Any) -> Any:
    return otherwise_called("distribution", 0.5 * torch.erfc(-(0.5**0.5) * value))


def _softplus(value: Any) -> Any:
    return F.softplus(value, threshold=40)  # linear from where float64 cannot tell; torch's own 20 is 2e-9 early


def _normal_pdf(value: Any) -> Any:
    exponent = otherwise_called("exponent", -0.5 * value.square())
    return otherwise_called("density", (2 * torch.pi) ** -0.5 * torch.exp(exponent))


def _heaviside(value: Any, middle: Any = 0.5) -> Any:
    """0 below 0, 1 above; `middle` at 0."""
    if middle in (0, 1):
        return (value > 0 if middle == 0 else value >= 0).type_as(value)
    return (value > 0).type_as(value) + middle * (value == 0).type_as(value)


TORCH: dict[type, Callable[..., Any]] = {
    sigmoid: torch.sigmoid,
    softplus: _softplus,
    expm1: torch.expm1,
    log1p: torch.log1p,
    normal_pdf: _normal_pdf,
    normal_cdf: _normal_cdf,
    sympy.tanh: torch.tanh,
    sympy.exp: torch.exp,
    sympy.log: torch.log,
    sympy.Abs: torch.abs,
    sympy.sign: torch.sign,
    sympy.Heaviside: _heaviside,
    sympy.floor: torch.floor,
    sympy.ceiling: torch.ceil,
    sympy.sin: torch.sin,
    sympy.cos: torch.cos,
    sympy.tan: torch.tan,
    sympy.asin: torch.asin,
    sympy.acos: torch.acos,
    sympy.atan: torch.atan,
    sympy.sinh: torch.sinh,
    sympy.cosh: torch.cosh,
    sympy.asinh: torch.asinh,
    sympy.acosh: torch.acosh,
    sympy.atanh: torch.atanh,
    sympy.erf: torch.erf,
    sympy.erfinv: torch.erfinv,
}
"""sympy function -> torch function; a rule file may add its own."""

DEFINITIONS: dict[type, Callable[[Any], Expr]] = {
    sigmoid: lambda u: 1 / (1 + sympy.exp(-u)),
    softplus: lambda u: sympy.log(1 + sympy.exp(u)),
    expm1: lambda u: sympy.exp(u) - 1,
    log1p: lambda u: sympy.log(1 + u),
    normal_pdf: lambda u: sympy.exp(-u**2 / 2) / sympy.sqrt(2 * sympy.pi),
    normal_cdf: lambda u: (1 + sympy.erf(u / sympy.sqrt(2))) / 2,
}
"""What the primitives are, for whoever has digits enough."""

OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    sympy.StrictGreaterThan: lambda a, b: a > b,
    sympy.GreaterThan: lambda a, b: a >= b,
    sympy.StrictLessThan: lambda a, b: a < b,
    sympy.LessThan: lambda a, b: a <= b,
    sympy.Equality: lambda a, b: a == b,
    sympy.Unequality: lambda a, b: a != b,
    sympy.And: lambda a, b: a & b,
    sympy.Or: lambda a, b: a | b,
}


def exactly(number: Any) -> Any:
    """A number as a fraction that is that very float again: 0.1 as 1/10, so that it still cancels. True is 1."""
    if isinstance(number, bool):
        number = int(number)  # as torch has it; sympy's truth is no number
    if not isinstance(number, float) or not math.isfinite(number):
        return sympy.sympify(number)
    short = Fraction(number).limit_denominator(1000)
    return sympy.Rational(short) if float(short) == number else sympy.Rational(repr(number))


DIVIDED = (1, 2, 3)
"""What is over such a power is divided one by one: the power alone may be infinite."""


def evaluate(expression: Expr, values: Mapping[Symbol, Any]) -> Any:
    """A sympy expression as torch operations on `values` (tensors, proxies or numbers)."""
    if expression in values:
        return values[expression]
    if expression.is_number:
        return _number(expression)
    if isinstance(expression, sympy.Add):
        return _sum(expression, values)
    if isinstance(expression, sympy.Mul):
        return _product(expression, values)
    if isinstance(expression, sympy.Pow):
        return _power(evaluate(expression.base, values), expression.exp, values)
    if isinstance(expression, Piecewise):
        return _piecewise(expression, values)
    if isinstance(expression, sympy.Max | sympy.Min):
        return _extremum(expression, values)
    arguments = [evaluate(argument, values) for argument in expression.args]
    if type(expression) in OPERATORS:
        return reduce(OPERATORS[type(expression)], arguments)
    if type(expression) in TORCH:
        return TORCH[type(expression)](*arguments)
    name = type(expression).__name__
    raise RuleError(f"no torch function is known for {name} in {expression}: state the derivatives in functions that "
                    "torch has, first= and second=, or write a Rule; where torch has it, say so in the rule file: "
                    f"hbpcompiler.rule.symbolic.TORCH[sympy.{name}] = torch.special....")


def _number(expression: Expr) -> int | float:
    """Tensors take no integers beyond 64 bits; from 2^53 on a double is as good."""
    if expression.is_Integer and abs(expression) < 2**53:
        return int(expression)
    for function, definition in DEFINITIONS.items():  # of whose numbers sympy knows nothing, as softplus(0)
        expression = expression.replace(function, definition)
    return float(expression)


def _sum(expression: Expr, values: Mapping[Symbol, Any]) -> Any:
    # Positive terms first, so that it reads 1 - y and not -y + 1.
    terms = sorted(expression.args, key=lambda term: (_is_negative(term), sympy.default_sort_key(term)))
    total = evaluate(terms[0], values)
    for term in terms[1:]:
        total = total - evaluate(-term, values) if _is_negative(term) else total + evaluate(term, values)
    return total


def _product(expression: Expr, values: Mapping[Symbol, Any]) -> Any:
    number, rest = expression.as_coeff_Mul()
    over: list[Any] = []
    factors = []
    for factor in sympy.Mul.make_args(rest):
        if isinstance(factor, sympy.Pow) and -factor.exp in DIVIDED:
            over += [evaluate(factor.base, values)] * int(-factor.exp)
        else:
            factors.append(evaluate(factor, values))
    if number == -1 and factors:
        factors[0] = -factors[0]
    elif number.is_Rational and number.p == 1 < number.q <= 12 and factors:
        over.append(int(number.q))  # x / 6 rather than x * 0.1666...
    elif number != 1:
        factors.insert(0, evaluate(number, values))
    product = reduce(lambda total, factor: total * factor, factors) if factors else 1
    return reduce(lambda total, factor: total / factor, over, product)


def _is_negative(term: Expr) -> bool:
    return bool(term.as_coeff_Mul()[0].is_negative)


def _power(base: Any, exponent: Expr, values: Mapping[Symbol, Any]) -> Any:
    if exponent == 2:
        return base.square()
    if exponent == sympy.Rational(1, 2):
        return base.sqrt()
    if exponent == sympy.Rational(-1, 2):
        return base.rsqrt()
    if exponent == -1:
        return base.reciprocal()
    return base ** evaluate(exponent, values)


def _extremum(expression: Expr, values: Mapping[Symbol, Any]) -> Any:
    numbers = [argument for argument in expression.args if argument.is_number]
    tensors = [evaluate(argument, values) for argument in expression.args if not argument.is_number]
    if isinstance(expression, sympy.Max):
        result = reduce(torch.maximum, tensors)
        return result.clamp(min=evaluate(max(numbers), values)) if numbers else result
    result = reduce(torch.minimum, tensors)
    return result.clamp(max=evaluate(min(numbers), values)) if numbers else result


def _piecewise(expression: Expr, values: Mapping[Symbol, Any]) -> Any:
    pieces = [(evaluate(value, values), condition) for value, condition in expression.args]
    result, _ = pieces[-1]
    for value, condition in reversed(pieces[:-1]):
        chosen = evaluate(condition, values)
        if isinstance(value, int | float) and isinstance(result, int | float):
            result = _choice(chosen.type_as(_tensor(condition, values)), value, result)
        else:
            result = torch.where(chosen, value, result)
    return result


def _choice(mask: Any, value: float, otherwise: float) -> Any:
    """value where mask is 1, otherwise where it is 0; torch.where of two numbers would have the default dtype."""
    if value == 1 and 0 <= otherwise < 1:
        return mask.clamp(min=otherwise) if otherwise else mask
    scaled = mask * (value - otherwise)
    return scaled + otherwise if otherwise else scaled


def _tensor(condition: Expr, values: Mapping[Symbol, Any]) -> Any:
    """A tensor of the right dtype among those that the condition reads."""
    symbols = [symbol for symbol in condition.free_symbols if not isinstance(symbol, Attribute)]
    return values[min(symbols, key=str)]
