"""The plan in words: what travels backwards, and per parameter the routes that were chosen and those that were not."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import sympy
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hbpcompiler.budget import Draft, size
from hbpcompiler.codegen.naming import comment, value_names
from hbpcompiler.cost import DEFAULTS, Machine, number
from hbpcompiler.graph import Graph, N
from hbpcompiler.passes import saved
from hbpcompiler.precision import notes
from hbpcompiler.program_cost import FORWARD, RESULTS
from hbpcompiler.routes import NEVER, alternatives
from hbpcompiler.steps import Birth, Close, Gather, Piece, Plan, Pull, SampleChunks, Seed, Step, Tail, Tied, Widen, flat

WIDTH = 170
"""Of the tables, in characters."""


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
            rows.append((comment(step.parameter.key), _stream(step), kinds, choice.route.name,
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


def travellers(graph: Graph, plan: Plan) -> list[tuple[int, str, str, Any, str]]:
    """(number of the step, value, form, numbers per stream, born by) in the order of the backward pass."""
    names = value_names(graph)
    rows = []
    for position, step in enumerate(plan.steps):
        for own in flat(step):
            piece, values, how = _arrivals(own)
            how += ", in chunks" if own is not step else ""
            for value in values:
                form = f"{piece.stream}: {_form(piece)}"
                rows.append((position, names[value.name], form, piece.elements(value), how))
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
    assert not isinstance(step, Tail | SampleChunks)  # `travellers` gives their steps instead
    how = "compressed" if isinstance(step, Gather) and step.compresses else type(step).__name__.lower()
    return step.into, [step.value], how


def explain(graph: Graph, draft: Draft, batch_size: int = 64) -> str:
    """The plan as tables: what travels, what is saved, each parameter's routes with the rejected ones, and the sums."""
    console = Console(file=io.StringIO(), width=WIDTH, record=False)
    for table in (_streams(graph, draft, batch_size), _kept(draft, batch_size), _routes(draft, batch_size)):
        console.print(table)
    console.print(Text("\n".join([*notes(draft.plan.curvature_dtype), *_sums(draft, batch_size)])))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    return table


def _streams(graph: Graph, draft: Draft, batch: int) -> Table:
    table = _table(f"What travels backwards ({', '.join(draft.plan.quantities)})", "at value", "stream and form",
                   "numbers", f"at N={batch}", "how", f"ms at N={batch}", "multiply-adds", "bytes moved")
    seconds, costs, shown = draft.cost.seconds(batch), draft.cost.costs(), set()
    for step, value, form, elements, how in travellers(graph, draft.plan):
        numbers = [""] * 3
        if step in costs and step not in shown:  # a step may arrive at several values, and costs once
            shown.add(step)
            numbers = [_milliseconds(seconds[step]), _polynomial(costs[step].multiply_adds),
                       _polynomial(costs[step].traffic)]
        table.add_row(value, form, _polynomial(elements), _short(number(elements, batch)), how, *numbers)
    return table


def _kept(draft: Draft, batch: int) -> Table:
    table = _table("What the forward pass keeps", "tensor", "shape", "numbers", f"at N={batch}")
    for name, shape in saved(draft.graph):
        numbers = math.prod(sympy.sympify(length, locals={"N": N}) for length in shape)
        shown = Text(f"[{', '.join(shape)}]")
        table.add_row(Text(name), shown, _polynomial(numbers), _short(number(numbers, batch)))
    return table


def _routes(draft: Draft, batch: int) -> Table:
    table = _table("How it ends at the parameters: routes chosen and rejected", "parameter", "from", "closing", "route",
                   "", f"ms at N={batch}", "multiply-adds", "bytes moved", "temporaries (bytes)")
    for step in draft.plan.closings():
        machine = step.site.resources.machine
        rejected = alternatives(step.site, step.choices)
        for choice in (*step.choices, *rejected):
            cost, start = choice.cost, (Text(step.parameter.key), _stream(step), "+".join(sorted(choice.kinds)))
            if cost == NEVER:
                table.add_row(*start, choice.route.name, "rejected: its memory grows with N times the parameter", "")
                continue
            parts, chunks = _chunks(step, batch)
            table.add_row(*start, choice.route.name, "rejected" if choice in rejected else "chosen",
                          _milliseconds(chunks * parts * cost.seconds(step.site.samples or batch, machine)),
                          _polynomial(parts * _of_batch(cost.multiply_adds, step)),
                          _polynomial(parts * _of_batch(cost.traffic, step)),
                          _polynomial(cost.memory))
    return table


def _chunks(step: Close | Tied, batch: int) -> tuple[int, int]:
    """How often a site inside a chunk loop (a `Tail`) is visited: for parts of the columns, for chunks of samples."""
    if step.site.samples is None or step.piece is None:
        return 1, 1
    samples = batch * step.site.pieces
    parts = math.ceil(step.piece.columns / step.site.columns) if step.site.columns else 1  # a diagonal has none
    return parts, math.ceil(samples / step.site.samples)


def _of_batch(expression: Any, step: Close | Tied) -> Any:
    """A cost in N samples of the site, in N samples of the batch."""
    return sympy.sympify(expression).subs(N, step.site.pieces * N)


def _sums(draft: Draft, batch: int) -> list[str]:
    seconds = draft.cost.seconds(batch)
    closing = {position for position, step in enumerate(draft.plan.steps) if isinstance(step, Close | Tied)}
    parts = {
        "forward": seconds.get(FORWARD, 0.0),
        "columns": sum(time for place, time in seconds.items() if isinstance(place, int) and place not in closing),
        "parameters": sum(time for place, time in seconds.items() if place in closing),
        "results": seconds.get(RESULTS, 0.0),
    }
    shares = ", ".join(f"{name} {_milliseconds(time)}" for name, time in parts.items())
    figures = "default figures" if draft.cost.machine in DEFAULTS else "figures that `hbp tune` measured"
    return [f"Predicted at N={batch}: {_milliseconds(sum(parts.values()))} ms ({shares}), with {figures}; "
            f"at most {size(draft.memory.peak(batch))} allocated at once."]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g}"
