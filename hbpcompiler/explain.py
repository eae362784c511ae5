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
from torch import fx

from hbpcompiler.compiler.budget import Draft, size
from hbpcompiler.compiler.cost.figures import DEFAULTS, number
from hbpcompiler.compiler.cost.program_cost import FORWARD, RESULTS
from hbpcompiler.compiler.match import written_out
from hbpcompiler.compiler.match.made import derived
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan import exact, second_phase
from hbpcompiler.compiler.plan.decided import limits_met
from hbpcompiler.compiler.plan.phases import AGAIN, KEPT
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.precision import notes
from hbpcompiler.compiler.plan.steps import (
    Birth,
    Close,
    Gather,
    Pull,
    SampleChunks,
    Seed,
    SeedOutput,
    Step,
    SumEach,
    Tail,
    Tied,
    Weigh,
    Weights,
    Widen,
    flat,
)
from hbpcompiler.compiler.plan.table import _form, _of_batch, _of_each, _polynomial, _short, _stream
from hbpcompiler.compiler.program import meta
from hbpcompiler.compiler.program.lengths import shown
from hbpcompiler.compiler.program.writer import INPUTS
from hbpcompiler.compiler.routes import NEVER, alternatives
from hbpcompiler.compiler.stages import Seconds
from hbpcompiler.compiler.trace.graph import N, T

WIDTH = 170
"""Of the tables, in characters."""


def travellers(matched: Matched, plan: Plan) -> list[tuple[int, str, str, Any, str]]:
    """(number of the step, value, form, numbers per stream, born by) in the order of the backward pass."""
    names = matched.names
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
    if isinstance(step, Close | Tied | Weights | SumEach):
        return None, [], ""
    if isinstance(step, Seed | Birth):
        carried = [value for value in step.operation.tensors.values() if value.role == "result"]
        return step.piece, carried, "seeded by the loss" if isinstance(step, Seed) else "residual"
    if isinstance(step, SeedOutput):
        return step.piece, [step.value], "begins at the output"
    if isinstance(step, Widen):
        return step.into, [step.operation.tensors[step.slot]], "widened to columns"
    if isinstance(step, Pull):
        return step.piece, [step.operation.tensors[step.slot]], "pulled back"
    assert not isinstance(step, Tail | SampleChunks)  # `travellers` gives their steps instead
    if isinstance(step, Weigh):
        return step.into, [step.value], "weighted"
    how = "compressed" if isinstance(step, Gather) and step.compresses else type(step).__name__.lower()
    return step.into, [step.value], how


def explain(matched: Matched, draft: Draft, batch_size: int, seconds: Seconds, more: Sequence[str] = ()) -> str:
    """The plan as tables: what travels, what is saved, each parameter's routes with the rejected ones, and the sums;
    `more` are lines about lengths."""
    console = Console(file=io.StringIO(), width=WIDTH, record=False)
    for table in (_streams(matched, draft, batch_size), _kept(draft, batch_size), _routes(draft, batch_size),
                  _second(draft, batch_size), _limits(draft)):
        if table.row_count:
            console.print(table)
    remarks = [*more, *exact.notes(draft.plan), *second_phase.notes(draft.plan), *notes(draft.plan.curvature_dtype),
               *draft.plan.chosen.notes(), *draft.plan.joint.notes(),
               *derived.notes(matched.rules, matched.graph.makers), *written_out.notes(matched.graph)]
    console.print(Text("\n".join([*remarks, *_sums(draft, batch_size), str(seconds)])))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    return table


def _streams(matched: Matched, draft: Draft, batch: int) -> Table:
    table = _table(f"What travels backwards ({', '.join(draft.plan.quantities)})", "at value", "stream and form",
                   "numbers", f"at N={batch}", "how", f"ms at N={batch}", "multiply-adds", "bytes moved")
    seconds, costs, shown = draft.cost.seconds(batch), draft.cost.costs(), set()
    for step, value, form, elements, how in travellers(matched, draft.plan):
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
        numbers = math.prod(sympy.sympify(length, locals={"N": N, "T": T}) for length in shape)
        here = number(numbers if draft.length is None else numbers.subs(T, draft.length), batch)
        table.add_row(Text(name), Text(f"[{', '.join(shape)}]"), _polynomial(numbers), _short(here))
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
    for each in draft.plan.steps:
        if isinstance(each, SumEach):
            cost = each.cost()
            table.add_row(Text(each.parameter.key), *_of_each(each)[:-1], "chosen",
                          _milliseconds(cost.seconds(batch, each.site.resources.machine)),
                          _polynomial(cost.multiply_adds), _polynomial(cost.traffic), _polynomial(cost.memory))
    return table


def _second(draft: Draft, batch: int) -> Table:
    """The ways to a second phase's columns, the rejected one too; what ends at the parameters is the same for both."""
    table = _table("How columns come to the second phase", "way", "", f"ms at N={batch}", f"kept at N={batch}", "what")
    phase, seconds = draft.plan.second, draft.cost.seconds(batch)
    if phase is None or not phase.kept_bytes:
        return table
    kept = batch * phase.kept_bytes
    weighed = sum(seconds.get(number, 0.0) for number, step in enumerate(draft.plan.steps) if isinstance(step, Weigh))
    if phase.way == AGAIN:
        weighed = 2 * kept / draft.cost.machine.bytes_per_second
    repeated = sum(seconds.get(number, 0.0) for number in phase.repeated)
    known = "at once" if phase.at_once else KEPT
    rows = [(known, weighed, 0 if phase.at_once else kept, "the gradient's columns at the parameters, weighted there"),
            (AGAIN, repeated, 0, f"a second backward pass from weighted seeds, {len(phase.repeated)} steps")]
    for way, time, held, what in rows:
        chosen = "chosen" if (way == AGAIN) == (phase.way == AGAIN) else "rejected"
        table.add_row(way, chosen, _milliseconds(time), size(held), what)
    return table


def _limits(draft: Draft) -> Table:
    """The thresholds that decided something here, and those that are not the default ones."""
    limits, met = draft.cost.limits, limits_met(draft.plan)
    if "onednn_linear(" in draft.code:
        met["onednn_multiply_adds"] = ["products by oneDNN"]
    changed = limits.changed()
    table = _table("Limits that decided something, or are not the default ones (`hbp tune --show` lists all)", "limit",
                   "in force", "default", "unit", "what followed")
    for name, value, unit, _ in limits.rows():
        if name in met or name in changed:
            table.add_row(name, str(value), str(getattr(limits.nearest(), name)) if name in changed else "", unit,
                          ", ".join(met.get(name, [])))
    return table


def _chunks(step: Close | Tied, batch: int) -> tuple[int, int]:
    """How often a site inside a chunk loop (a `Tail`) is visited: for parts of the columns, for chunks of samples."""
    if step.site.samples is None or step.piece is None:
        return 1, 1
    samples = batch * step.site.pieces
    parts = math.ceil(step.piece.columns / step.site.columns) if step.site.columns else 1  # a diagonal has none
    return parts, math.ceil(samples / step.site.samples)


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


def saved(graph: fx.Graph) -> list[tuple[str, tuple[str, ...]]]:
    """Names and shapes of what the forward pass makes and the backward pass reads; parameters and data not counted."""
    found = []
    for node in graph.nodes:
        block, shape = meta.block(node), meta.shape(node)
        made = block is not None and block.part == "forward" and block.title != INPUTS
        later = [user for user in node.users if (own := meta.block(user)) is not None and own.part == "backward"]
        if made and later and shape is not None:
            found.append((meta.hint(node) or node.name, tuple(map(shown, shape))))
    return found
