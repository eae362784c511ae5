"""A `Tail` carried out: the rest of a piece's way in a loop over samples and, inside it, one over columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.begin import at_all_positions, birth
from hbpcompiler.compiler.derive.close import add
from hbpcompiler.compiler.derive.cross import born, matrix, over, root_of
from hbpcompiler.compiler.derive.edges import gradient_at
from hbpcompiler.compiler.plan.closings import shape_of_total
from hbpcompiler.compiler.plan.steps import (
    Birth,
    Close,
    Pull,
    Step,
    Tail,
    Widen,
)
from hbpcompiler.compiler.program.writer import Part, added_to
from hbpcompiler.rule import Op
from hbpcompiler.rule.position_columns import some_positionwise

ROOTS, SIGNS, GRADIENT, NUMBERS = "a diagonal's roots", "signs", "the gradient", "numbers"
"""What the loops cut besides columns, which go by their values' names."""


def walk_tail(backward: Backward, step: Tail) -> None:
    """Walk the rest of a piece's way in a loop over samples and, inside it, one over columns."""
    widens, bearer = [own for own in step.steps if isinstance(own, Widen)], step.steps[0]
    if isinstance(bearer, Birth):
        starts = {GRADIENT: gradient_at(backward, bearer)}
    elif widens:
        starts = {ROOTS: root_of(backward, widens[0])}
    else:
        starts = {value.name: backward.columns[value.name, step.piece.name] for value in step.values}
    by_position = [value for value in step.values if (value.name, step.piece.name) in backward.positions]
    sliced = {**starts, SIGNS: backward.signs.get(step.piece.name)}

    def body(part: Part) -> None:
        ops = {name: op.bound_again(part.read) for name, op in backward.ops.items()}
        if step.columns >= step.piece.columns:
            _inside(backward, step, widens, part, part, ops)
            return
        inner_sliced: dict[str, Any] = {name: part[name] for name in sliced}
        if isinstance(bearer, Birth):
            inner_sliced = {NUMBERS: _numbers(part, part[GRADIENT], step.piece.columns), SIGNS: None}
        elif by_position:
            (start,) = starts
            inner_sliced = {NUMBERS: _numbers(part, part[start], step.piece.columns), SIGNS: part[SIGNS]}
        elif widens:
            inner_sliced |= _basis(backward, widens, part, ops[widens[0].operation.name])

        def inner(piece: Part) -> None:
            again = {name: op.bound_again(lambda tensor, _: piece.outer(tensor)) for name, op in ops.items()}
            _inside(backward, step, widens, piece, part, again)

        part.writer.loop(inner, op=None, sliced=inner_sliced, chunk=step.columns, totals={}, axis=1)

    found = backward.writer.loop(body, op=None, sliced=sliced, chunk=step.samples, totals=totals_of(step))
    collect(backward, step, found)


def totals_of(step: Tail) -> dict[str, tuple[int, ...]]:
    """The name and shape of all that a tail's steps add to."""
    shapes = dict[str, tuple[int, ...]]()
    for own in step.steps:
        if isinstance(own, Close):
            shapes |= {f"{kind} {own.parameter.key}": shape_of_total(own, kind) for kind in own.kinds}
    return dict(sorted(shapes.items()))


def collect(backward: Backward, step: Tail, found: Mapping[str, Any]) -> None:
    """The totals of a tail's loop, to the other closings of their parameters."""
    for close in [own for own in step.steps if isinstance(own, Close)]:
        for kind in sorted(close.kinds):
            add(backward, close, kind, found[f"{kind} {close.parameter.key}"])


def _basis(backward: Backward, widens: Sequence[Widen], part: Part, op: Op) -> dict[str, Any]:
    """What the loop over columns cuts besides the roots: rows in memory, or the numbers of the unit vectors."""
    widen = widens[0]
    rows = matrix(backward, widen.operation, widen.slot, op) if len(widens) == 1 else None
    if rows is not None:
        return {"rows": rows.unsqueeze(0)}
    return {NUMBERS: _numbers(part, part[ROOTS], math.prod(widen.operation.output.sample_shape))}


def _numbers(part: Part, like: Any, count: int) -> Any:
    """[1, count]: the columns' numbers, for the loop over columns to cut."""
    return part.writer.call(torch.arange, count, device=like.device).unsqueeze(0)


def _inside(backward: Backward, step: Tail, widens: Sequence[Widen], part: Part, outer: Part,
            ops: Mapping[str, Op]) -> None:
    """The body of the innermost loop: the tail's steps on this chunk, added to the outer loop's totals."""
    bearer, whole = step.steps[0], outer is part
    places = [] if widens or isinstance(bearer, Birth) else _places(step)
    start = {place: _start(backward, place, part, outer) for place in places}
    into = part.outer if whole else lambda tensor: part.outer(outer.outer(tensor))
    sub = backward.inside(part.writer, ops, into, columns=start, signs={step.piece.name: part[SIGNS]},
                          keys=lambda every: part.read(every, True) if whole else part.outer(outer.read(every, True)))
    steps = [own for own in step.steps if not isinstance(own, Birth | Widen)]
    if isinstance(bearer, Birth):
        with part.writer.block(*backward.heading(bearer.operation)):
            gradient = part[GRADIENT] if whole else part.outer(outer[GRADIENT])
            birth(sub, bearer, None if whole else part[NUMBERS].squeeze(0), gradient)
    elif widens:
        with part.writer.block(*backward.heading(widens[0].operation)):
            _chunk_of_columns(sub, widens, part, whole)
    take_steps(sub, steps, lambda name: outer.totals[name] if whole else part.outer(outer.totals[name]))


def _places(step: Tail) -> list[tuple[str, str]]:
    """Where its piece is when the chunks are cut."""
    return [(value.name, step.piece.name) for value in step.values]


def _start(backward: Backward, place: tuple[str, str], part: Part, outer: Part) -> Any:
    """This chunk's columns at one of them."""
    name, _ = place
    if outer is part:
        return at_all_positions(backward, place, part[name])
    if place not in backward.positions:
        return part[name]
    return some_positionwise(part.outer(outer[name]), backward.positions[place], part[NUMBERS].squeeze(0))


def take_steps(sub: Backward, steps: Sequence[Step], total: Callable[[str], Any]) -> None:
    """The steps inside a loop; what they close is added to the loop's totals."""
    for own in steps:
        assert isinstance(own, Pull | Close)
        with sub.writer.block(*sub.heading(own.operation)):
            sub.carry_out(own)
            if isinstance(own, Close):
                for closing, value in sub.closed.pop(own.parameter.key).items():
                    added_to(total(f"{closing.kind} {own.parameter.key}"), value)


def _chunk_of_columns(backward: Backward, widens: Sequence[Widen], part: Part, whole: bool) -> None:
    """This chunk's columns, at the operands of the operation where they are born."""
    operation = widens[0].operation
    cut = {name: part[name] for name in ("rows", NUMBERS) if name in part}
    basis = _basis(backward, widens, part, backward.ops[operation.name]) if whole else cut
    if "rows" not in basis:
        size = math.prod(operation.output.sample_shape)
        unit = torch.nn.functional.one_hot(basis[NUMBERS].squeeze(0), size).type_as(part[ROOTS])
    for widen in widens:
        value = operation.tensors[widen.slot]
        columns = (over(part[ROOTS], value) * basis["rows"] if "rows" in basis
                   else born(backward, widen, part[ROOTS], unit))
        backward.arrive(value, widen.into, columns)
