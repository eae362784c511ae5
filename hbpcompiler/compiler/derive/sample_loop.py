"""Curvature in chunks of samples: the loop of a `SampleChunks` step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.begin import at_all_positions
from hbpcompiler.compiler.derive.close import name_of, put
from hbpcompiler.compiler.plan.arrivals import reads
from hbpcompiler.compiler.plan.closings import shape_of_total
from hbpcompiler.compiler.plan.sample_chunks import BY_ROWS
from hbpcompiler.compiler.plan.steps import (
    Close,
    SampleChunks,
    Tied,
    flat,
    place_of,
)
from hbpcompiler.compiler.program.writer import Part, added_to, named
from hbpcompiler.quantities import COLUMN_SUM, VECTORS, Closing

Place = tuple[str, Closing]
"""A parameter, and what is closed there."""


def walk_sample_chunks(backward: Backward, step: SampleChunks) -> None:
    """Carry out the steps in a loop over samples and add up what they close."""
    needed = {(value.name, piece.name) for own in step.steps for value, piece in reads(own)}
    starts = {place: columns for place, columns in backward.columns.items() if place in needed}
    signs = {name: sign for name, sign in backward.signs.items() if any(piece == name for _, piece in starts)}
    closes = [own for outer in step.steps for own in flat(outer) if isinstance(own, Close | Tied)]
    shapes = _shapes(closes, starts)
    keys = {f"{closing.kind} {closing.stream} {key}": (key, closing) for key, closing in shapes}

    def body(part: Part) -> None:
        ops = {name: op.bound_again(part.read) for name, op in backward.ops.items()}
        columns = {place: at_all_positions(backward, place, part[f"columns {place}"]) for place in starts}
        own_signs = {name: part[f"signs {name}"] for name in signs}
        inside = backward.inside(part.writer, ops, part.outer, columns=columns, signs=own_signs,
                                 batch=next(iter(columns.values())).shape[0],
                                 keys=lambda whole: part.read(whole, True), steps=step.steps)
        for own in step.steps:
            with part.writer.block(*backward.heading(place_of(own, backward.matched.graph))):
                inside.carry_out(own)
        _put_into(part, inside, keys)

    sliced = {f"columns {place}": columns for place, columns in starts.items()}
    sliced |= {f"signs {name}": sign for name, sign in signs.items()}
    rows = {name: shapes[place] for name, place in keys.items() if place[1].kind in BY_ROWS}
    totals = {name: shapes[place] for name, place in keys.items() if name not in rows}
    found = backward.writer.loop(body, op=None, sliced=sliced, chunk=step.samples, totals=totals, rows=rows)
    _collect(backward, closes, {place: found[name] for name, place in keys.items()})


def _shapes(closes: Sequence[Close | Tied], starts: Mapping[tuple[str, str], Any]) -> dict[Place, tuple[Any, ...]]:
    """Of what the loop's steps close."""
    found = dict[Place, tuple[Any, ...]]()
    for own in closes:
        if own.piece is not None:
            for kind in sorted(own.kinds):
                found[own.parameter.key, Closing(own.piece.stream, kind)] = _shape(own, kind, starts)
    return found


def _put_into(part: Part, inside: Backward, keys: Mapping[str, Place]) -> None:
    """What a chunk has closed: its own rows, and what is added up."""
    for name, (key, closing) in keys.items():
        if closing.kind in BY_ROWS:
            part.rows[name].copy_(inside.closed[key][closing])
        else:
            added_to(part.totals[name], inside.closed[key][closing])


def _collect(backward: Backward, closes: Sequence[Close | Tied], found: Mapping[Place, Any]) -> None:
    """The loop's totals, to the other closings of their parameters."""
    parameters = {own.parameter.key: own.parameter for own in closes}
    for (key, closing), total in found.items():
        if closing in backward.closed.get(key, {}):  # what tails inside the loss have closed before
            put(backward, parameters[key], closing, total)
        else:
            name = name_of(backward, parameters[key], closing)
            backward.closed.setdefault(key, {})[closing] = named(total, name)


def _shape(close: Close | Tied, kind: str, starts: Mapping[tuple[str, str], Any]) -> tuple[Any, ...]:
    """Of a closing that is added up; of one that has a row for each sample, of its row."""
    piece, shape = close.piece, close.parameter.sample_shape
    assert piece is not None
    if kind == COLUMN_SUM:  # as many columns as the call gives vectors of weights
        return (next(columns for (_, name), columns in starts.items() if name == piece.name).shape[1], *shape)
    if kind == VECTORS:
        return (piece.columns, *shape)
    return shape_of_total(close, kind)
