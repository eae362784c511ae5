"""The plan in words: what travels backwards, and per parameter the route, its cost and its memory."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import sympy
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hbpcompiler.codegen.naming import comment, value_names
from hbpcompiler.cost import DEFAULT, Machine, number
from hbpcompiler.graph import Graph, N
from hbpcompiler.steps import Birth, Close, Piece, Plan, Pull, Seed, Step, Tail, Tied, Widen


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
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _stream(step: Close | Tied) -> str:
    return f"{step.piece.stream}: {_form(step.piece)}" if step.piece else "operand"


def header_table(graph: Graph, plan: Plan) -> Sequence[str]:
    """The plan in plain text for the head of the generated file."""
    rows = [("parameter", "from", "closing", "route", "multiply-adds")]
    for step in reversed(plan.closings()):
        for choice in step.choices:
            kinds = "+".join(sorted(choice.kinds))
            rows.append((comment(step.parameter.key), _stream(step), kinds, choice.route.name,
                         _polynomial(choice.cost.multiply_adds)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def machine_notes(machine: Machine) -> list[str]:
    """What the head of the file says about measured figures; nothing, where none were measured."""
    if machine == DEFAULT:
        return []
    return ["Routes chosen with figures that `hbp tune` measured on the machine that wrote this file:",
            f"{machine.multiply_adds_per_second:.2g} multiply-adds/s, {machine.batched_per_second:.2g} in small "
            f"products; {machine.bytes_per_second:.2g} bytes/s; {machine.seconds_per_call:.2g} s per call."]


def travellers(graph: Graph, plan: Plan) -> list[tuple[str, str, Any, str]]:
    """(value, form, numbers per stream, born by) in the order of the backward pass."""
    names = value_names(graph)
    rows = []
    for step in plan.flat():
        piece, values, how = _arrivals(step)
        for value in values:
            rows.append((names[value.name], f"{piece.stream}: {_form(piece)}", piece.elements(value), how))
    return rows


def _arrivals(step: Step) -> tuple[Any, list[Any], str]:
    if isinstance(step, Close | Tied):
        return None, [], ""
    if isinstance(step, Seed | Birth):
        carried = [value for value in step.operation.tensors.values() if value.role == "result"]
        return step.piece, carried, "seeded by the loss" if isinstance(step, Seed) else "residual"
    if isinstance(step, Widen):
        return step.into, [step.operation.tensors[step.slot]], "widened to columns"
    if isinstance(step, Pull):
        return step.piece, [step.operation.tensors[step.slot]], "pulled back"
    assert not isinstance(step, Tail)  # `flat` gives its steps instead
    return step.into, [step.value], type(step).__name__.lower()


def explain(graph: Graph, plan: Plan, batch_size: int = 64,
            saved: Sequence[tuple[str, tuple[str, ...]]] = ()) -> str:
    """The plan as tables: streams with their columns and saved numbers, then each parameter's routes and costs."""
    console = Console(file=io.StringIO(), width=140, record=False)
    streams = Table(title=f"What travels backwards ({', '.join(plan.quantities)})")
    for heading in ("at value", "stream and form", "numbers", f"at N={batch_size}", "how"):
        streams.add_column(heading)
    for value, form, elements, how in travellers(graph, plan):
        streams.add_row(value, form, _polynomial(elements), _short(number(elements, batch_size)), how)
    console.print(streams)
    kept = Table(title="What the forward pass keeps")
    for heading in ("tensor", "shape", "numbers", f"at N={batch_size}"):
        kept.add_column(heading)
    for name, shape in saved:
        numbers = math.prod(sympy.sympify(length, locals={"N": N}) for length in shape)
        shown = Text(f"[{', '.join(shape)}]")
        kept.add_row(Text(name), shown, _polynomial(numbers), _short(number(numbers, batch_size)))
    console.print(kept)
    routes = Table(title="How it ends at the parameters")
    for heading in ("parameter", "from", "closing", "route", "multiply-adds", f"at N={batch_size}", "memory (bytes)",
                    f"at N={batch_size}"):
        routes.add_column(heading)
    for step in plan.closings():
        for choice in step.choices:
            cost = choice.cost
            routes.add_row(Text(step.parameter.key), _stream(step), "+".join(sorted(choice.kinds)), choice.route.name,
                           _polynomial(cost.multiply_adds), _short(number(cost.multiply_adds, batch_size)),
                           _polynomial(cost.memory), _short(number(cost.memory, batch_size)))
    console.print(routes)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()
