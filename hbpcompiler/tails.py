"""Which pieces have so many columns that the rest of their way is walked in chunks (`steps.Tail`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hbpcompiler.cost import Resources
from hbpcompiler.graph import Value
from hbpcompiler.quantities import BATCH_DIAGONAL, BLOCK, EIGEN, GRADIENT, VECTORS
from hbpcompiler.routes import COLUMNS, choose
from hbpcompiler.steps import Average, Birth, Close, Gather, Piece, Pull, Sample, Seed, Step, Tail, Tied, Widen

LARGE_BYTES = 2**23
"""A piece with more than this per sample, at its largest value, goes in chunks."""
CHUNK_BYTES = 2**24
"""The largest tensor of a chunk: small enough for the allocator to hand the same memory out again and again."""


def with_tails(steps: Sequence[Step], itemsize: int, resources: Resources) -> list[Step]:
    """The steps, with those of each large piece folded into one `Tail` at the place of its first."""
    result = list(steps)
    for piece in _pieces(steps):
        tail = _tail(piece, steps, itemsize, resources)
        if tail is not None:
            first = next(index for index, step in enumerate(result) if any(step is own for own in tail[1]))
            result[first] = tail[0]
            result = [step for step in result if not any(step is own for own in tail[1])]
    return result


def _pieces(steps: Sequence[Step]) -> list[Piece]:
    found: dict[str, Piece] = {}
    for step in steps:
        piece = step.into if isinstance(step, Widen | Gather) else getattr(step, "piece", None)
        if piece is not None and piece.form == COLUMNS and piece.stream != GRADIENT:
            found.setdefault(piece.name, piece)
    return list(found.values())


def _tail(piece: Piece, steps: Sequence[Step], itemsize: int,
          resources: Resources) -> tuple[Tail, Sequence[Step]] | None:
    """The piece's tail and the steps that it replaces; None if it is small or goes on into another piece."""
    if any(piece in step.pieces for step in steps if isinstance(step, Gather | Average | Sample)):
        return None
    if any(step.piece == piece for step in steps if isinstance(step, Tied)):
        return None
    own = [step for step in steps if (isinstance(step, Widen) and step.into == piece)
           or (isinstance(step, Pull | Close) and step.piece == piece)]
    kept = {kind for step in own if isinstance(step, Close) for choice in step.choices for kind in choice.kinds}
    if kept & {BATCH_DIAGONAL, VECTORS, BLOCK, EIGEN}:
        return None  # what keeps samples or columns apart is as large as they are
    starts = _starts(piece, steps)
    if len(starts) != 1 or not own:
        return None
    values = [*starts, *(step.operation.tensors[step.slot] for step in own if isinstance(step, Pull | Widen))]
    each = max(math.prod(value.sample_shape) for value in values) * itemsize
    allowed = resources.temporaries
    fits = allowed is None or each * piece.columns * resources.batch <= allowed
    if each * piece.columns <= LARGE_BYTES and fits:
        return None
    limit = CHUNK_BYTES if allowed is None else min(CHUNK_BYTES, allowed)
    samples = max(1, limit // (each * piece.columns))
    chunks = 1 if samples > 1 else math.ceil(piece.columns / max(1, limit // each))
    columns = math.ceil(piece.columns / chunks)
    closings = []
    for step in own:
        if isinstance(step, Close):
            site = replace(step.site, columns=columns, samples=samples)
            kinds = frozenset().union(*(choice.kinds for choice in step.choices))
            step = replace(step, site=site, choices=choose(site, kinds))
        closings.append(step)
    return Tail(piece, starts[0], tuple(closings), samples, columns), own


def _starts(piece: Piece, steps: Sequence[Step]) -> list[Value]:
    """The values at which the piece begins; for columns born of a diagonal, the value of the diagonal."""
    starts: list[Value] = []
    for step in steps:
        if isinstance(step, Widen) and step.into == piece:
            starts.append(step.operation.output)
        elif isinstance(step, Gather | Average | Sample) and step.into == piece:
            starts.append(step.value)
        elif isinstance(step, Seed | Birth) and step.piece == piece:
            starts += [value for value in step.operation.tensors.values() if value.role == "result" and value.batched]
    return starts
