"""Numbers that a model or a loss makes of the batch's size: sympy expressions in N, and arithmetic of their kind."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import sympy

from hbpcompiler.compiler.trace.graph import N
from hbpcompiler.rule.symbolic import exactly

PLAIN: Mapping[str, Callable[..., Any]] = {
    "IntTrueDiv": lambda a, b: a / b,
    "FloatTrueDiv": lambda a, b: a / b,
    "FloatPow": lambda a, b: a**b,
    "PowByNatural": lambda a, b: a**b,
    "ToFloat": lambda a: a,
    "OpaqueUnaryFn_sqrt": sympy.sqrt, "FloorToInt": sympy.floor, "CeilToInt": sympy.ceiling,
    "Identity": lambda a: a,
    "Min": sympy.Min, "Max": sympy.Max,
}
"""torch's own functions of sizes that sympy has too, by name."""
CUT, NEAREST = {"TruncToInt"}, "RoundToInt"
"""Those that leave out what is behind the point, and the one that rounds as Python does, halves to even numbers."""
ROUNDING = {"FloorToInt", "CeilToInt", NEAREST, *CUT}
WHOLE: Mapping[str, Callable[[Any, Any], Any]] = {
    "FloorDiv": operator.floordiv, "Mod": operator.mod, "PythonMod": operator.mod}
"""Those that it has not, as Python has them."""


def plain(expression: Any) -> Any:
    """The expression in sympy's own functions where it has them, so that N / N cancels; numbers are exact fractions."""
    expression = sympy.sympify(expression)
    if not isinstance(expression, sympy.Expr):
        return expression  # a truth value
    expression = expression.replace(
        lambda part: type(part).__name__ in CUT and plain(part.args[0]).is_nonnegative,
        lambda part: sympy.floor(plain(part.args[0])))
    expression = expression.replace(lambda part: type(part).__name__ in PLAIN,
                                    lambda part: PLAIN[type(part).__name__](*part.args))
    return expression.xreplace({part: exactly(float(part)) for part in expression.atoms(sympy.Float)})


def depends_on_batch(item: Any) -> bool:
    """Whether this number is an expression in N."""
    return N in getattr(item, "free_symbols", ())


def has_batchs_size(attributes: Mapping[str, Any]) -> bool:
    """Whether one of an operation's attributes, or a number in one that is a list, is an expression in N."""
    return any(depends_on_batch(part) for item in attributes.values()
               for part in (item if isinstance(item, list | tuple) else [item]))


def rounds_apart(expression: Any) -> str:
    """The function in torch's own expression that makes another whole number of Python's floats than of exact
    fractions for some batches, as math.floor(0.29 * 100) is 28; "" if there is none."""
    for part in sympy.sympify(expression).atoms(sympy.Function):
        if type(part).__name__ not in ROUNDING or part.free_symbols != {N} or not part.has(sympy.Float):
            continue
        exact = plain(part)
        below = max((int(number.q) for number in exact.atoms(sympy.Rational)), default=1)
        for samples in {*range(1, TRIED), *range(below, TRIED * below, below)}:  # there the exact number is whole
            if part.subs(N, samples) != arithmetic(exact, samples):
                return str(part)
    return ""


TRIED = 130
"""Sizes at which a rounding is looked at, and as many at which what it rounds is whole."""


def arithmetic(expression: Any, batch: Any) -> Any:
    """The expression with `batch` for N, a number or a proxy; TypeError where Python has no such function."""
    polynomial = expression.as_poly(N) if isinstance(expression, sympy.Expr) else None
    if polynomial is not None and all(coefficient.is_Integer for coefficient in polynomial.all_coeffs()):
        return _polynomial([int(coefficient) for coefficient in reversed(polynomial.all_coeffs())], batch)
    if not isinstance(expression, sympy.Expr):  # a condition on N
        raise TypeError(f"no arithmetic for {type(expression).__name__}")
    above, below = expression.as_numer_denom()
    if below != 1:
        return arithmetic(above, batch) / arithmetic(below, batch)
    if expression == N:
        return batch
    if expression.is_number:
        return int(expression) if expression.is_Integer else float(expression)
    parts = [arithmetic(part, batch) for part in expression.args]
    if isinstance(expression, sympy.Add):
        return reduce(operator.add, parts)
    if isinstance(expression, sympy.Mul):
        return reduce(operator.mul, parts)
    if isinstance(expression, sympy.Pow):
        return parts[0] ** parts[1]
    if isinstance(expression, sympy.floor):
        return _floor(expression.args[0], batch)
    if isinstance(expression, sympy.ceiling):
        return 0 - _floor(-expression.args[0], batch)
    if isinstance(expression, sympy.Abs):
        return 0 - _smaller(parts[0], 0 - parts[0])
    if type(expression).__name__ == NEAREST:
        return _nearest(plain(expression.args[0]), batch)
    if isinstance(expression, sympy.Min):
        return reduce(_smaller, parts)
    if isinstance(expression, sympy.Max):
        return 0 - reduce(_smaller, [0 - part for part in parts])
    if type(expression).__name__ in WHOLE:
        return WHOLE[type(expression).__name__](*parts)
    raise TypeError(f"no arithmetic for {type(expression).__name__}")


def unknown(expression: Any) -> str:
    """The function in it of which there is no arithmetic, as torch calls it; "" if there is none."""
    try:
        arithmetic(expression, 7)
    except TypeError as error:
        return str(error).rpartition(" ")[2]
    except ArithmeticError:  # divides by zero for so many samples alone
        pass
    return ""


def _floor(expression: Any, batch: Any) -> Any:
    above, below = expression.as_numer_denom()
    return arithmetic(above, batch) // arithmetic(below, batch)


def _nearest(expression: Any, batch: Any) -> Any:
    """floor(x + 1 / 2), and one less where this is an odd whole number: halves become even."""
    above, below = (expression + sympy.Rational(1, 2)).as_numer_denom()
    whole, twice = arithmetic(above, batch), 2 * arithmetic(below, batch)
    return whole * 2 // twice - (whole % twice * 2 == twice)


def _smaller(a: Any, b: Any) -> Any:
    """In operators alone, which a proxy has."""
    return a - (a - b) * (a > b)


def _polynomial(coefficients: list[int], batch: Any) -> Any:
    """By rising powers, a negative number last: N - 1."""
    total: Any = 0
    for power, coefficient in enumerate(coefficients):
        if coefficient and (power or coefficient > 0):
            term = coefficient if power == 0 else batch**power if power > 1 else batch
            total = total + (term * coefficient if power and coefficient != 1 else term)
    return total - -coefficients[0] if coefficients[0] < 0 else total
