"""The plan as a table in plain text, for the head of the generated file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

from hbpcompiler.compiler.cost.figures import DEFAULTS, Machine
from hbpcompiler.compiler.plan.steps import (
    Close,
    Piece,
    Plan,
    Tied,
)
from hbpcompiler.compiler.trace.graph import Graph, N
from hbpcompiler.limits import Limits


def _form(piece: Piece) -> str:
    if piece.form == "columns":
        return f"{piece.columns} {'signed ' if piece.signed else ''}column{'s' if piece.columns != 1 else ''}"
    return piece.form


def _polynomial(expression: Any) -> str:
    """A polynomial in N with short coefficients."""
    expression = sympy.nsimplify(sympy.expand(expression)) if not isinstance(expression, int) else expression
    if not getattr(expression, "free_symbols", None):
        return _short(float(expression))
    polynomial = sympy.Poly(expression, N) if expression.is_polynomial(N) else None
    if polynomial is None:
        return str(expression)
    parts = []
    for (power,), coefficient in polynomial.terms():
        symbol = "" if power == 0 else "N" if power == 1 else f"N^{power}"
        parts.append(f"{_short(float(coefficient))} {symbol}".strip())
    return " + ".join(parts)


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _stream(step: Close | Tied) -> str:
    pooled = ", pooled" if isinstance(step, Close) and step.pooled else ""
    return f"{step.piece.stream}: {_form(step.piece)}{pooled}" if step.piece else "operand"


def header_table(graph: Graph, plan: Plan) -> Sequence[str]:
    """The plan in plain text for the head of the generated file."""
    rows = [("parameter", "from", "closing", "route", "multiply-adds")]
    for step in reversed(plan.closings()):
        for choice in step.choices:
            kinds = "+".join(sorted(choice.kinds))
            rows.append((step.parameter.key, _stream(step), kinds, choice.route.name,
                         _polynomial(_of_batch(choice.cost.multiply_adds, step))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def machine_notes(machine: Machine, autotuned: bool) -> list[str]:
    """What the head of the file says about measurements that decided something; nothing, where none did."""
    raced = ["Near ties among the routes were decided by timing them (autotune) on the machine that wrote this file."]
    if machine in DEFAULTS:
        return raced * autotuned
    return [*raced * autotuned,
            "Routes chosen with figures that `hbp tune` measured on the machine that wrote this file:",
            f"{machine.products_per_second:.2g} multiply-adds/s, {machine.batched_per_second:.2g} in small "
            f"products; {machine.bytes_per_second:.2g} bytes/s; {machine.seconds_per_call:.2g} s per call."]


def limits_notes(limits: Limits) -> list[str]:
    """What the head of the file says about thresholds that are not the default ones."""
    changed = [f"{name} {value}" for name, value in limits.changed().items()]
    return [f"Limits other than the default ones: {', '.join(changed)}."] if changed else []


def _of_batch(expression: Any, step: Close | Tied) -> Any:
    """A cost in N samples of the site, in N samples of the batch."""
    return sympy.sympify(expression).subs(N, step.site.pieces * N)
