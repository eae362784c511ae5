"""What a plan promises to those who carry it out, checked step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.arrivals import makes, reads
from hbpcompiler.compiler.plan.planned import Plan
from hbpcompiler.compiler.plan.steps import Close, Pull, SampleChunks, Step, SumEach, Tail, Tied
from hbpcompiler.quantities import FIRST_ORDER, GGN, GGN_MC, KFRA, NEGATIVE, OUTPUT, SUM, Closing, closings_of

EVERYWHERE = FIRST_ORDER | {GGN, GGN_MC, KFRA, OUTPUT}
"""The streams that reach every parameter; residuals reach those below a curved operation."""

Place = tuple[str, str]
"""Names of a value and of a piece there."""


def check_plan(plan: Plan, matched: Matched, closings: frozenset[Closing]) -> Iterator[str]:
    """What is wrong with a plan for these closings, if anything."""
    yield from _in_order(plan.steps, set())
    yield from _closed(plan, matched, closings)
    yield from _pooled(plan)


def _in_order(steps: Iterable[Step], arrived: set[Place]) -> Iterator[str]:
    """Each piece has arrived, and completely, where a step reads it; what a tail reads is made in it."""
    taken: set[Place] = set()
    for step in steps:
        own = [(value.name, piece.name) for value, piece in reads(step)]
        for value, piece in own:
            if (value, piece) not in arrived:
                yield f"a {type(step).__name__} reads piece {piece} at {value}, where nothing has brought it"
        taken.update(own)
        for value, piece in [(value.name, piece.name) for value, piece in makes(step)]:
            if (value, piece) in taken:
                yield f"a {type(step).__name__} brings piece {piece} to {value}, which was read before"
            arrived.add((value, piece))
        if isinstance(step, Tail):
            yield from _left_out(step, arrived - set(own))
            yield from _in_order(step.steps, set(own))
        elif isinstance(step, SampleChunks):
            yield from _in_order(step.steps, arrived)


def _left_out(tail: Tail, others: set[Place]) -> Iterator[str]:
    """What of the tail's piece was brought to a value where the tail goes on with what its own steps make."""
    for step in tail.steps:
        for value, piece in (*reads(step), *makes(step)):
            if (value.name, piece.name) in others:
                yield f"a Tail of piece {piece.name} leaves out what was brought to {value.name} before it"


def _closed(plan: Plan, matched: Matched, closings: frozenset[Closing]) -> Iterator[str]:
    """Each parameter has every closing, and no use of it closes one piece twice."""
    seen: Counter[tuple[str, ...]] = Counter()
    found: set[tuple[str, Closing]] = set()
    for step in plan.closings():
        uses = step.closed if isinstance(step, Tied) else (step,)
        stream, name = (step.piece.stream, step.piece.name) if step.piece is not None else ("", "")
        for kind in [kind for choice in step.choices for kind in choice.kinds]:
            found.add((step.parameter.key, Closing(stream, kind)))
            seen.update((step.parameter.key, use.operation.name, use.slot, name, kind) for use in uses)
    for each in [step for step in plan.flat() if isinstance(step, SumEach)]:
        found.add((each.parameter.key, Closing(each.piece.stream, SUM)))
        seen.update([(each.parameter.key, each.operation.name, "", each.piece.name, SUM)])
    for (key, operation, slot, piece, kind), count in seen.items():
        if count > 1:
            what = f"{kind} of {piece or 'its operand'}"
            yield f"parameter {key!r}, as {slot} of {operation}, closes {what} {count} times"
    for closing in sorted(closings, key=lambda closing: (closing.stream, closing.kind)):
        for parameter in matched.trainable if closing.stream in EVERYWHERE and closing.kind != NEGATIVE else []:
            own = plan.joint.own(parameter.key, frozenset({closing.kind}))
            if own and closing in closings_of(closings, parameter.key) and (parameter.key, closing) not in found:
                yield f"parameter {parameter.key!r} has no {closing.kind} of {closing.stream}"


def _pooled(plan: Plan) -> Iterator[str]:
    """Pooled columns are read where a pool's are kept, and kept where they are read."""
    reached = {(step.operation.tensors[step.slot].name, step.piece.name) for step in plan.flat()
               if isinstance(step, Pull)}
    read = {(step.operation.name, step.piece.name) for step in plan.closings()
            if isinstance(step, Close) and step.pooled and step.piece is not None}
    for value, piece in sorted(read - set(plan.pools)):
        yield f"piece {piece} is closed pooled at {value}, where no pool's columns are kept"
    for value, piece in sorted(set(plan.pools) - reached):
        yield f"columns of piece {piece} are kept pooled at {value}, which it does not reach"
    for piece in sorted({piece for _, piece in plan.pools} - {piece for _, piece in read}):
        yield f"columns of piece {piece} are kept pooled, and no closing takes them so"
