"""Where the columns of a batch together are many, all curvature goes its way in chunks of samples (`SampleChunks`).

A `Tail` takes the end of one piece's way. Where pieces branch, join and are born at many places (a transformer), none
of them may be large and all together fill the memory. Then the gradient goes first, for the whole batch, and everything
else from the model's output on in a loop over samples, so that memory does not grow with the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.arrivals import makes, reads
from hbpcompiler.compiler.plan.steps import (
    Birth,
    Close,
    LocalTail,
    SampleChunks,
    Seed,
    Step,
    Tail,
    Tied,
    flat,
)
from hbpcompiler.compiler.routes import COLUMNS, MATRIX, choose
from hbpcompiler.quantities import GRADIENT, OUTPUT, UNDIVIDED


def with_sample_chunks(steps: Sequence[Step], itemsize: int, resources: Resources) -> list[Step]:
    """The steps, those of curvature outside the loss in one loop over samples if a whole batch of them is large."""
    first = next((index for index, step in enumerate(steps) if _in_model(step)), len(steps))
    inside = [step for step in steps[first:] if _travels(step)]
    kept = {kind for step in steps for own in flat(step) if isinstance(own, Close | Tied) and own.piece is not None
            and own.piece.stream != GRADIENT for kind in own.kinds}
    if not inside or kept & UNDIVIDED:
        return list(steps)  # what keeps samples or columns apart is as large as they are
    each = itemsize * _held(inside)
    limits, allowed = resources.limits, resources.temporaries
    batch = limits.typical_batch if allowed is None else resources.batch
    if each * batch <= (limits.all_columns_bytes if allowed is None else allowed):
        return list(steps)
    chunk = limits.all_columns_chunk_bytes
    samples = max(1, (chunk if allowed is None else min(chunk, allowed)) // each)
    outside = [step for step in steps[first:] if not _travels(step)]
    limit = "all_columns_bytes" if allowed is None else ""
    chunked = SampleChunks(tuple(_of_chunk(step, samples) for step in inside), samples, limit=limit)
    return [*steps[:first], *outside, chunked]


def _in_model(step: Step) -> bool:
    return hasattr(step, "operation") and not step.operation.source.in_loss


def _travels(step: Step) -> bool:
    """Whether this is a step of curvature that samples take one by one: no first derivative's, not KFRA's."""
    pieces = {piece for own in flat(step) for _, piece in (*_read(own), *makes(own))}
    return bool(pieces) and not any(piece.stream in (GRADIENT, OUTPUT) or piece.form == MATRIX for piece in pieces)


def _read(step: Step) -> list[Any]:
    return [] if isinstance(step, Birth | Seed) else reads(step)


def _held(steps: Sequence[Step]) -> int:
    """Numbers per sample that the pieces have together where these are the most."""
    last: dict[tuple[str, str], int] = {}
    for index, step in enumerate(steps):
        last |= {(value.name, piece.name): index for value, piece in (*_read(step), *makes(step))}
    held: dict[tuple[str, str], int] = {}
    most = 0
    for index, step in enumerate(steps):
        for value, piece in (*_read(step), *makes(step)):
            columns = piece.columns if piece.form == COLUMNS else 1
            held[value.name, piece.name] = columns * math.prod(value.sample_shape)
        most = max(most, sum(held.values()))
        held = {place: numbers for place, numbers in held.items() if last[place] > index}
    return most


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
