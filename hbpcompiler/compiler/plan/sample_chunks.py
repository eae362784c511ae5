"""Where the columns of a batch together are many, all curvature goes its way in chunks of samples (`SampleChunks`).

A `Tail` takes the end of one piece's way. Where pieces branch, join and are born at many places (a transformer), none
of them may be large and all together fill the memory. Then the gradient goes first, for the whole batch, and everything
else from the model's output on in a loop over samples, so that memory does not grow with the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.arrivals import Arrival, live, makes, reads
from hbpcompiler.compiler.plan.steps import (
    Birth,
    Close,
    LocalTail,
    SampleChunks,
    SamplePairs,
    Seed,
    Step,
    Tail,
    Tied,
    flat,
    kinds,
)
from hbpcompiler.compiler.routes import COLUMNS, MATRIX, choose
from hbpcompiler.quantities import (
    BATCH_DIAGONAL,
    COLUMN_SUM,
    CROSS,
    GRADIENT,
    GRAM,
    OUTPUT,
    UNDIVIDED,
    VECTORS,
)

PAIRED = frozenset({CROSS, GRAM})
"""Closings of two samples at a time."""
BY_ROWS = frozenset({BATCH_DIAGONAL, VECTORS})
"""Closings of which each sample has a row of its own."""
UNDER_A_BUDGET = PAIRED | BY_ROWS | {COLUMN_SUM}
"""Those that go in loops only where the memory is limited: their results are large themselves."""


def with_sample_chunks(steps: Sequence[Step], itemsize: int, resources: Resources) -> list[Step]:
    """The steps, those of curvature outside the loss in loops over samples if a whole batch of them is large.

    Inner products of columns take a loop of their own, over pairs of blocks of samples, and only where the memory is
    limited: the columns of a block go back as often as there are others.
    """
    first = next((index for index, step in enumerate(steps) if _in_model(step)), len(steps))
    inside = [step for step in steps[first:] if _travels(step)]
    limits, allowed = resources.limits, resources.temporaries
    kept = UNDIVIDED & kinds(own for step in steps for own in flat(step) if _of_curvature(own))
    if not inside or kept - (frozenset() if allowed is None else UNDER_A_BUDGET):
        return list(steps)  # what keeps samples or columns apart is as large as they are
    held, of_one_column = _held(inside)
    each = itemsize * held
    batch = limits.typical_batch if allowed is None else resources.batch
    if allowed is None and decided("few columns", lambda: held <= limits.few_columns * of_one_column):
        return list(steps)
    if decided("all columns", lambda: each * batch <= (limits.all_columns_bytes if allowed is None else allowed)):
        return list(steps)
    chunk = limits.all_columns_chunk_bytes
    samples = decided("chunk", lambda: max(1, (chunk if allowed is None else min(chunk, allowed)) // each))
    limit = "all_columns_bytes" if allowed is None else ""
    outside = [step for step in steps[first:] if not _travels(step)]
    if not kept & PAIRED:
        return [*steps[:first], *outside, _chunked(inside, samples, limit)]
    added, paired = (_only(inside, which) for which in (lambda every: every - PAIRED, lambda every: every & PAIRED))
    block = decided("chunk", lambda: max(1, (allowed or 0) // (2 * each)))
    pairs = SamplePairs(tuple(_of_chunk(step, 2 * block) for step in paired), 2 * block)
    return [*steps[:first], *outside, *([_chunked(added, samples, limit)] if added else []), pairs]


def _chunked(steps: Sequence[Step], samples: int, limit: str) -> SampleChunks:
    return SampleChunks(tuple(_of_chunk(step, samples) for step in steps), samples, limit=limit)


def _of_curvature(step: Step) -> bool:
    """Whether the step closes a piece of curvature."""
    return isinstance(step, Close | Tied) and step.piece is not None and step.piece.stream != GRADIENT


def _only(steps: Sequence[Step], which: Callable[[frozenset[str]], frozenset[str]]) -> list[Step]:
    """The steps that some closings of curvature need."""
    found: list[Step] = []
    for step in steps:
        if isinstance(step, Tail):
            if which(kinds(own for own in step.steps if _of_curvature(own))):
                found.append(step)
        elif not isinstance(step, Close | Tied):
            found.append(step)
        elif chosen := which(step.kinds):
            found.append(replace(step, choices=choose(step.site, chosen)))
    return live(found)


def _in_model(step: Step) -> bool:
    return hasattr(step, "operation") and not step.operation.source.in_loss


def _travels(step: Step) -> bool:
    """Whether this is a step of curvature that samples take one by one: no first derivative's, not KFRA's."""
    pieces = {piece for own in flat(step) for _, piece in (*_read(own), *makes(own))}
    return bool(pieces) and not any(piece.stream in (GRADIENT, OUTPUT) or piece.form == MATRIX for piece in pieces)


def _read(step: Step) -> list[Arrival]:
    """What it takes of curvature's pieces, and of the gradient's where it takes no other."""
    if isinstance(step, Birth | Seed):
        return []
    other = step.other if isinstance(step, Close | Tied) else None
    return [(value, piece) for value, piece in reads(step) if piece != other]


def _held(steps: Sequence[Step]) -> tuple[int, int]:
    """Numbers per sample that the pieces have together where these are the most; and one column at each value would."""
    last: dict[tuple[str, str], int] = {}
    for index, step in enumerate(steps):
        last |= {(value.name, piece.name): index for value, piece in (*_read(step), *makes(step))}
    held: dict[tuple[str, str], tuple[int, int]] = {}
    most = most_of_one = 0
    for index, step in enumerate(steps):
        for value, piece in (*_read(step), *makes(step)):
            held[value.name, piece.name] = piece.columns if piece.form == COLUMNS else 1, math.prod(value.sample_shape)
        most = max(most, sum(columns * numbers for columns, numbers in held.values()))
        each_value = {name: numbers for (name, _), (_, numbers) in held.items()}
        most_of_one = max(most_of_one, sum(each_value.values()))
        held = {place: numbers for place, numbers in held.items() if last[place] > index}
    return most, most_of_one


def _of_chunk(step: Step, samples: int) -> Step:
    """The step, its closings by the routes that are cheapest for so many samples."""
    if isinstance(step, LocalTail):
        return step  # one sample at a time already
    if isinstance(step, Tail):
        own = [_of_chunk(part, min(samples, step.samples)) for part in step.steps]
        return replace(step, steps=tuple(own), samples=min(samples, step.samples))  # type: ignore[arg-type]  # replace() keeps their kinds
    if isinstance(step, Close | Tied):
        site = replace(step.site, samples=samples)
        return replace(step, site=site, choices=choose(site, step.kinds))
    return step
