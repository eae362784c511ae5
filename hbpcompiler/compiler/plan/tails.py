"""Which pieces have so many columns that the rest of their way is walked in chunks (`steps.Tail`)."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.plan.arrivals import makes
from hbpcompiler.compiler.plan.local import Local
from hbpcompiler.compiler.plan.steps import (
    Average,
    Birth,
    Close,
    Gather,
    Piece,
    Pull,
    Sample,
    Step,
    Tail,
    Tied,
    Widen,
    kinds,
)
from hbpcompiler.compiler.routes import COLUMNS, choose, seconds
from hbpcompiler.compiler.trace.graph import Value
from hbpcompiler.limits import Limits
from hbpcompiler.quantities import GRADIENT, UNDIVIDED
from hbpcompiler.rule import Factor

Place = tuple[str, str]
Own = Pull | Widen | Close


def most_bytes(vectors_only: bool, limits: Limits) -> int:
    """Bytes per sample, at its largest value, above which a piece goes in chunks.

    `vectors_only`: it meets only values of one axis (fully connected networks). The Hessian diagonal of benchmarks' MLP
    takes half the time in chunks that fit a cache; convolutions want many samples at a time.
    """
    return limits.vector_bytes if vectors_only else limits.spatial_bytes


def with_tails(steps: Sequence[Step], itemsize: int, resources: Resources,
               pools: Container[Place] = (), local: Local | None = None) -> list[Step]:
    """The steps, with those of each large piece folded into one `Tail` at the place of its first.

    `pools` are the places (value, piece) where columns are kept pooled; `local` looks for tails of local support.
    """
    result = list(steps)
    for piece in _pieces(steps):
        tail = _tail(piece, steps, itemsize, resources, pools, local)
        if tail is not None:
            replaced = {id(step) for step in tail[1]}
            first = next(index for index, step in enumerate(result) if id(step) in replaced)
            result[first] = tail[0]
            result = [step for step in result if id(step) not in replaced]
    return result


def _pieces(steps: Sequence[Step]) -> list[Piece]:
    found: dict[str, Piece] = {}
    for step in steps:
        piece = step.into if isinstance(step, Widen | Gather) else getattr(step, "piece", None)
        if piece is not None and piece.form == COLUMNS and piece.stream != GRADIENT:
            found.setdefault(piece.name, piece)
    return list(found.values())


def _tail(piece: Piece, steps: Sequence[Step], itemsize: int, resources: Resources,
          pools: Container[Place], local: Local | None) -> tuple[Tail, Sequence[Step]] | None:
    """The piece's tail and the steps that it replaces; None if it is small or goes on into another piece."""
    own = [step for step in steps if (isinstance(step, Widen) and step.into == piece)
           or (isinstance(step, Pull | Close) and step.piece == piece)]
    starts = _starts(piece, steps, own)
    if not own or not starts or not _may_be_cut(piece, steps, own):
        return None
    birth = _birth(piece, steps, itemsize)
    if local is not None and (found := local.tail(piece, own)) is not None:
        return found, own
    values = _whole_values(piece, starts, own, pools)
    size = _Size(max(math.prod(value.sample_shape) for value in values) * itemsize,
                 all(len(value.sample_shape) <= 1 for value in values), piece.columns, resources)
    # each is decided once: decisions may be followed in this order
    fits, is_small = size.fits(), size.is_small() or piece.columns <= resources.limits.few_columns
    if is_small and fits:
        return _late_tail(piece, starts, own, itemsize, resources, pools)
    samples, columns = size.chunk()
    limit_met = "" if is_small else size.limit
    inside = _in_chunks(own, samples, columns)
    if birth is not None:
        return Tail(piece, (), (birth, *inside), samples, columns, limit=limit_met), [birth, *own]
    return Tail(piece, tuple(starts), inside, samples, columns, limit=limit_met), own


def _may_be_cut(piece: Piece, steps: Sequence[Step], own: Sequence[Own]) -> bool:
    """Whether nothing reads all of the piece's columns at once: no other piece that it goes on into, no joined uses,
    and no closing that keeps samples or columns apart, which is as large as they are."""
    for step in steps:
        if isinstance(step, Gather | Average | Sample) and piece in step.pieces:
            return False
        if isinstance(step, Tied) and step.piece == piece:
            return False
    return not kinds(own) & UNDIVIDED


def _whole_values(piece: Piece, starts: Sequence[Value], own: Sequence[Own], pools: Container[Place]) -> list[Value]:
    """The values that the piece's columns are as large as: not those behind a pool that are only read pooled."""
    read_whole = set[str]()
    for step in own:
        pooled = step.pooled if isinstance(step, Close) else (
            isinstance(step, Pull) and (step.operation.tensors[step.slot].name, piece.name) in pools)
        if not pooled:
            read_whole.add(step.operation.name)
    values = [*starts, *(step.operation.tensors[step.slot] for step in own if isinstance(step, Pull | Widen))]
    return [value for value in values if (value.name, piece.name) not in pools or value.name in read_whole]


@dataclass(frozen=True)
class _Size:
    """How large a piece is at its largest value."""

    each: int
    """bytes of one column of one sample."""
    vectors_only: bool
    columns: int
    resources: Resources

    @property
    def limit(self) -> str:
        """The threshold of chunks, in `Limits`."""
        return "vector_bytes" if self.vectors_only else "spatial_bytes"

    def is_small(self) -> bool:
        """Whether a sample's columns are below that threshold."""
        most = most_bytes(self.vectors_only, self.resources.limits)
        return decided("small", lambda: self.each * self.columns <= most)

    def fits(self) -> bool:
        """Whether the batch's columns are within the memory that is allowed."""
        allowed, batch = self.resources.temporaries, self.resources.batch
        return decided("fits", lambda: allowed is None or self.each * self.columns * batch <= allowed)

    def chunk(self) -> tuple[int, int]:
        """Samples and columns at a time: several samples with all columns, or one sample with some."""
        limits, allowed = self.resources.limits, self.resources.temporaries
        chunk = limits.vector_chunk_bytes if self.vectors_only else limits.recycled_bytes
        limit = chunk if allowed is None else min(chunk, allowed)
        samples = decided("chunk", lambda: max(1, limit // (self.each * self.columns)))
        chunks = decided("chunks", lambda: 1 if samples > 1 else math.ceil(
            self.columns / max(1, limit // self.each)))
        return samples, math.ceil(self.columns / chunks)


def _birth(piece: Piece, steps: Sequence[Step], itemsize: int) -> Birth | None:
    """The step that bears the piece's columns, if it can bear some of them at a time, in the dtype of the gradient."""
    for step in steps:
        if isinstance(step, Birth) and step.piece == piece and not step.operation.source.in_loss:
            some = isinstance(step.residual, Factor) and step.residual.some is not None and not step.draws
            return step if some and itemsize == step.operation.output.dtype.itemsize else None
    return None


def _in_chunks(steps: Sequence[Own], samples: int, columns: int) -> tuple[Own, ...]:
    """The steps, their closings by the routes that are cheapest for so many samples and columns."""
    chosen = []
    for step in steps:
        if isinstance(step, Close):
            site = replace(step.site, columns=columns, samples=samples)
            step = replace(step, site=site, choices=choose(site, step.kinds))
        chosen.append(step)
    return tuple(chosen)


def _late_tail(piece: Piece, starts: Sequence[Value], own: Sequence[Own], itemsize: int, resources: Resources,
               pools: Container[Place]) -> tuple[Tail, Sequence[Own]] | None:
    """The end of the way of a piece of few columns, from where a whole batch of them would be large."""
    limits = resources.limits
    for index, step in enumerate(own):
        if not isinstance(step, Pull):
            continue
        value, start, rest = step.operation.tensors[step.slot], step.operation.output, own[index:]
        samples = _late_chunk(math.prod(value.sample_shape) * itemsize * piece.columns, limits)
        if samples and _enters_at(start, starts, own[:index], rest) and (start.name, piece.name) not in pools:
            tail = Tail(piece, (start,), _in_chunks(rest, samples, piece.columns), samples, piece.columns,
                        limit="recycled_bytes")
            many = piece.columns > limits.few_columns  # of which a whole batch takes much memory, too
            return (tail, rest) if many or _is_faster(tail, rest, itemsize, resources) else None
    return None


def _is_faster(tail: Tail, whole: Sequence[Own], itemsize: int, resources: Resources) -> bool:
    """Whether the tail is predicted to take less time than its steps for a whole batch: what a chunk makes is read out
    of the cache, if it fits, but each chunk reads all weights again, adds to large totals again, and its products are
    small."""
    limits, batch = resources.limits, resources.limits.typical_batch
    chunks = math.ceil(batch / tail.samples)
    moved = [tail.piece.columns * numbers * itemsize for numbers in _numbers_moved(whole)]
    slow = sum(each / (limits.cached_speedup if tail.samples * each <= limits.cache_bytes else 1) for each in moved)
    weights = itemsize * _numbers_of_weights(whole)

    def faster() -> bool:
        moving = batch * sum(moved) + weights, batch * slow + chunks * weights
        at_once, in_chunks = (each / resources.machine.bytes_per_second for each in moving)
        in_chunks += chunks * _closing_seconds(tail.steps)
        return in_chunks < limits.late_time * (at_once + _closing_seconds(whole))

    return decided("faster in chunks", faster)


def _numbers_moved(steps: Sequence[Own]) -> list[int]:
    """Numbers that one column of a sample has where it goes into each step, and where it comes out."""
    values = [value for step in steps if isinstance(step, Pull | Widen)
              for value in (step.operation.output, step.operation.tensors[step.slot])]
    return [math.prod(value.sample_shape) for value in values]


def _numbers_of_weights(steps: Sequence[Own]) -> int:
    """Numbers of the tensors without samples that the steps read."""
    return sum(math.prod(value.sample_shape) for step in steps if isinstance(step, Pull | Widen)
               for value in step.operation.tensors.values() if not value.batched)


def _closing_seconds(steps: Iterable[Step]) -> float:
    return sum(seconds(step.site, step.choices) for step in steps if isinstance(step, Close))


def _late_chunk(each: int, limits: Limits) -> int:
    """Samples in a chunk where one has so many bytes; 0 where the whole batch of them is not large."""
    large = decided("late", lambda: each * limits.typical_batch > limits.recycled_bytes)
    return decided("chunk", lambda: max(1, limits.late_chunk_bytes // each)) if large else 0


def _enters_at(start: Value, starts: Sequence[Value], before: Sequence[Own], rest: Sequence[Own]) -> bool:
    """Whether the rest of the way reads nothing that was made before but the columns at `start`, and adds to nothing.

    `starts`: where the piece begins.
    """
    made = {step.operation.tensors[step.slot].name for step in rest if isinstance(step, Pull | Widen)}
    arrived = {value.name for value in starts}
    arrived |= {step.operation.tensors[step.slot].name for step in before if isinstance(step, Pull | Widen)}
    return all(step.operation.name in made | {start.name} for step in rest) and not made & (arrived | {start.name})


def _starts(piece: Piece, steps: Sequence[Step], own: Sequence[Own]) -> list[Value]:
    """The values at which the piece begins: where others bring what its own steps read or add to.

    An operation of two inputs bears columns at both. For columns born of a diagonal, the value of the diagonal.
    """
    widened = [step.operation.output for step in own if isinstance(step, Widen)]
    touched = {step.operation.name for step in own}
    touched |= {step.operation.tensors[step.slot].name for step in own if isinstance(step, Pull)}
    of_piece = {id(step) for step in own}
    brought = [value for step in steps if id(step) not in of_piece
               for value, other in makes(step) if other == piece and value.name in touched]
    return list({value.name: value for value in (*widened, *brought)}.values())
