"""The plan as a table in plain text, for the head of the generated file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sympy

from hbpcompiler.compiler.cost.figures import DEFAULTS, Machine
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Close, Piece, SumEach, Tied
from hbpcompiler.compiler.trace.graph import Graph, N, T
from hbpcompiler.limits import DEFAULT_LIMITS, Limits
from hbpcompiler.quantities import SUM


def _form(piece: Piece) -> str:
    if piece.form == "columns":
        return f"{piece.columns} {'signed ' if piece.signed else ''}column{'s' if piece.columns != 1 else ''}"
    return piece.form


@lru_cache(maxsize=4096)  # layers that are alike
def _polynomial(expression: Any) -> str:
    """A polynomial in N, and in T where lengths vary, with short coefficients."""
    expression = sympy.nsimplify(sympy.expand(expression)) if not isinstance(expression, int) else expression
    if not getattr(expression, "free_symbols", None):
        return _short(float(expression))
    symbols = (N, T) if T in expression.free_symbols else (N,)
    polynomial = sympy.Poly(expression, *symbols) if expression.is_polynomial(*symbols) else None
    if polynomial is None:
        return str(expression)
    parts = []
    for powers, coefficient in polynomial.terms():
        names = [f"{symbol}^{power}" if power > 1 else str(symbol)
                 for symbol, power in zip(symbols, powers, strict=True) if power]
        parts.append(" ".join([_short(float(coefficient)), *names]))
    return " + ".join(parts)


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def _stream(step: Close | Tied) -> str:
    pooled = ", pooled" if isinstance(step, Close) and step.pooled else ""
    return f"{step.piece.stream}: {_form(step.piece)}{pooled}" if step.piece else "operand"


FORMED = "per-sample gradients"
"""How the route is called that sums them once more, each times its weight."""
CLOSINGS_WIDTH, TABLE_WIDTH = 24, 120
"""Signs that closings may take in a row, unless one alone is longer, and that a row may take."""


def header_table(graph: Graph, plan: Plan, limits: Limits = DEFAULT_LIMITS) -> Sequence[str]:
    """The plan in plain text for the head of the generated file: of many parameters a row for each way to end."""
    rows: list[tuple[str, ...]] = [("parameter", "from", "closing", "route", "multiply-adds")]
    if len({step.parameter.key for step in plan.closings()}) > limits.listed_parameters:
        return _aligned([*rows, *_by_kind(plan)])
    by_parameter: dict[str, list[tuple[str, ...]]] = {}
    for step in reversed(plan.closings()):
        for choice in step.choices:
            first, *others = _lines(sorted(choice.kinds))
            own = by_parameter.setdefault(step.parameter.key, [])
            own.append((step.parameter.key * (not own), _stream(step), first, choice.route.name,
                        _polynomial(_of_batch(choice.cost.multiply_adds, step))))
            own += [("", "", other, "", "") for other in others]
    for each in plan.steps:
        if isinstance(each, SumEach):
            by_parameter[each.parameter.key].append(("", *_of_each(each)))
    for own in by_parameter.values():
        rows += own
    return _aligned(rows)


def _of_each(step: SumEach) -> tuple[str, ...]:
    """The row of per-sample gradients that end once more, behind the parameter's name."""
    return f"{step.piece.stream}: {_form(step.piece)}", SUM, FORMED, _polynomial(step.cost().multiply_adds)


def _by_kind(plan: Plan) -> list[tuple[str, ...]]:
    """Of many parameters, those that end alike in one row, their costs summed."""
    parameters: dict[tuple[str, ...], list[str]] = {}
    costs: dict[tuple[str, ...], list[Any]] = {}
    for step in reversed(plan.closings()):
        for choice in step.choices:
            kind: tuple[str, ...] = (_stream(step), "+".join(sorted(choice.kinds)), choice.route.name)
            parameters.setdefault(kind, []).append(step.parameter.key)
            costs.setdefault(kind, []).append(_of_batch(choice.cost.multiply_adds, step))
    for each in plan.steps:
        if isinstance(each, SumEach):
            kind = _of_each(each)[:-1]
            parameters.setdefault(kind, []).append(each.parameter.key)
            costs.setdefault(kind, []).append(each.cost().multiply_adds)
    rows: list[tuple[str, ...]] = []
    for kind, keys in parameters.items():
        who = keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"
        rows.append((who, *kind, _polynomial(sympy.Add(*costs[kind]))))
    return rows


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines, their cells below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if sum(widths) + 2 * len(widths) - 2 > TABLE_WIDTH:  # parameters get lines of their own
        split = list[tuple[str, ...]]()
        for parameter, *rest in rows:
            split += [(parameter,)] * bool(parameter)
            split.append(("", *rest))
        rows, widths = split, [0, *widths[1:]]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def _lines(kinds: Sequence[str]) -> list[str]:
    """Closings joined by +, as many to a line as fit."""
    lines: list[str] = []
    for kind in kinds:
        if lines and len(lines[-1]) + len(kind) < CLOSINGS_WIDTH:
            lines[-1] += f"+{kind}"
        else:
            lines.append(f"+{kind}" if lines else kind)
    return lines


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
