"""Formulas of elementwise operations: the symbols that they are written in, and what they are at one use."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import sympy
from sympy import Expr, Symbol

from hbpcompiler.errors import RuleError
from hbpcompiler.rule.op import Op
from hbpcompiler.rule.symbolic import (
    Attribute,
    exactly,
    expm1,
    log1p,
    normal_cdf,
    normal_pdf,
    sigmoid,
    softplus,
)

x = Symbol("x", real=True)
"""The operation's input."""
y = Symbol("y", real=True)
"""Its saved output, for derivatives that are written by hand."""
dy = Symbol("dy", real=True)
"""Its first derivative, for second derivatives that are written by hand."""

Written: TypeAlias = "Expr | str | Callable[[Op], Expr | str | None] | None"
"""An expression, also as a text; or a function of op where an attribute chooses between expressions; None: sympy's."""


def attribute(name: str) -> Symbol:
    """An attribute of the operation (`negative_slope`), replaced by its number at each use."""
    return Attribute(name, real=True)

OURS = {"x": x, "y": y, "dy": dy}
KNOWN = {**OURS, **{function.__name__: function for function in (
    expm1, log1p, normal_cdf, normal_pdf, sigmoid, softplus)}}
"""What stands for the names in a formula that is a text."""


def bound(op: Op, written: Written) -> Any:
    """The expression of this use, attributes replaced by numbers: exactly, as fractions, so that they still cancel.

    One that is known only when the program runs, as the batch's size is, stays a symbol.
    """
    if callable(written) and not isinstance(written, sympy.Basic):
        written = written(op)
    if written is None:
        return None
    expression = _read(op, written)
    symbols = [symbol for symbol in expression.free_symbols if symbol not in (x, y, dy)]
    numbers = {symbol: _number(op, symbol) for symbol in symbols}
    return expression.subs({symbol: exactly(number) for symbol, number in numbers.items()
                            if isinstance(number, int | float)})


def _read(op: Op, written: Any) -> Any:
    """What was written, in our symbols: sympy.Symbol("x") and the x of a text are the input too.

    In a text the operation's own attributes come before what sympy calls the same (its function beta, its number E).
    """
    names = set(re.findall(r"[A-Za-z_]\w*", written)) - KNOWN.keys() if isinstance(written, str) else set()
    own = {name: attribute(name) for name in names if _is_attribute(op, name)}
    try:
        expression = sympy.sympify(written, locals={**KNOWN, **own})
    except (sympy.SympifyError, TypeError, AttributeError, SyntaxError) as error:
        raise RuleError(f"{written!r} is no formula that sympy can read; write one in x, as x / sympy.sqrt(1 + x**2)"
                        ) from error
    if not isinstance(expression, Expr):
        raise RuleError(f"{written!r} is no formula but a {type(expression).__name__}; write one in x")
    others = [symbol for symbol in expression.free_symbols if symbol.name in OURS and symbol not in OURS.values()]
    return expression.subs({symbol: OURS[symbol.name] for symbol in others if not isinstance(symbol, Attribute)})


def _is_attribute(op: Op, name: str) -> bool:
    """Whether the operation has an argument of this name that is no tensor."""
    try:
        return op.argument(name) is not None and not op.has(name)
    except AttributeError:
        return False


def _number(op: Op, symbol: Symbol) -> Any:
    """The value of an attribute of the operation."""
    try:
        return op.argument(symbol.name)
    except AttributeError as error:
        raise RuleError(f"the formula reads '{symbol.name}', and {error}; its symbols are x, y, dy and "
                        "attribute(name) for an argument of the operation") from error


LONGEST = 32
"""Signs of a derivative that a heading says as it was written."""


def in_words(written: Written) -> str:
    """A derivative as headings write it, y (1 - y); nothing of one that is long, in pieces or differs between uses."""
    if not isinstance(written, Expr) or written.has(sympy.Piecewise):
        return ""
    if not written.free_symbols or not written.free_symbols <= {x, y, dy}:
        return ""
    text = str(written).replace("**", "^").replace("*", " ").replace("/", " / ").replace("dy", "d")
    return text if len(text) <= LONGEST else ""


def heading(first: str, second: str) -> str:
    """An elementwise rule's formula, of y' and y'' in words; nothing if neither is said."""
    parts = [f"{sign} = {derivative}" + f" = {words}" * bool(words)
             for sign, derivative, words in (("d", "y'(x)", first), ("dd", "y''(x)", second))]
    return f"d S,  {parts[0]};  residual: R = g dd,  {parts[1]}" if first or second else ""
