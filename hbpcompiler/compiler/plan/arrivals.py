"""Which pieces a step of the plan takes, and which it brings, and where: the flow that the steps' order follows."""

from __future__ import annotations

from hbpcompiler.compiler.plan.steps import (
    Average,
    Birth,
    Close,
    Gather,
    Piece,
    Pull,
    Sample,
    Seed,
    SeedOutput,
    Step,
    Tail,
    Tied,
    Weigh,
    Widen,
)
from hbpcompiler.compiler.trace.graph import Value
from hbpcompiler.quantities import CROSS

Arrival = tuple[Value, Piece]
"""A piece at a value."""


def reads(step: Step) -> list[Arrival]:
    """The pieces that a step takes, each from where it has arrived."""
    if isinstance(step, Tied):
        return [(use.operation.output, piece) for piece in ended(step) for use in step.uses]
    if isinstance(step, Birth):
        return [(step.operation.output, step.gradient)]
    if isinstance(step, Gather | Average | Sample):
        return [(step.value, piece) for piece in step.pieces]
    if isinstance(step, Weigh):
        return [(step.value, step.piece)]
    if isinstance(step, Close):
        return [(step.operation.output, piece) for piece in ended(step)]
    if isinstance(step, Pull | Widen):
        return [(step.operation.output, step.piece)]
    if isinstance(step, Tail):
        first = step.steps[0]
        return reads(first) if isinstance(first, Birth | Widen) else [(value, step.piece) for value in step.values]
    return []


def ended(step: Close | Tied) -> list[Piece]:
    """The pieces that meet a parameter: none for an operand alone, two for inner products with the gradient."""
    pieces = [] if step.piece is None else [step.piece]
    return [*pieces, step.other] if step.other is not None and CROSS in step.kinds else pieces


def makes(step: Step) -> list[Arrival]:
    """The pieces that arrive by a step, and where."""
    if isinstance(step, Seed):
        return [(value, step.piece) for value in step.operation.tensors.values()]
    if isinstance(step, SeedOutput):
        return [(step.value, step.piece)]
    if isinstance(step, Birth):
        return [(step.operation.tensors[slot], step.piece) for slot in step.slots]
    if isinstance(step, Gather | Average | Sample | Weigh):
        return [(step.value, step.into)]
    if isinstance(step, Pull):
        return [(step.operation.tensors[step.slot], step.piece)]
    if isinstance(step, Widen):
        return [(step.operation.tensors[step.slot], step.into)]
    return []


def live(steps: list[Step]) -> list[Step]:
    """Drop every step whose result nothing reads: what was not asked for is not computed."""
    wanted: set[tuple[str, str]] = set()
    kept: list[Step] = []
    for step in reversed(steps):
        read = any((value.name, piece.name) in wanted for value, piece in makes(step))
        if read or isinstance(step, Close | Tied | Tail):
            wanted |= {(value.name, piece.name) for value, piece in reads(step)}
            kept.append(step)
    return kept[::-1]
