"""The vocabulary of a plan (see `planned`): pieces that travel, and the steps of the backward pass, without tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hbpcompiler.compiler.cost.figures import Cost
from hbpcompiler.compiler.plan.neighbourhood import Neighbourhood
from hbpcompiler.compiler.plan.phases import SumEach, Total, Weigh, Weights
from hbpcompiler.compiler.plan.pieces import BEFORE_MEAN, OPERAND, PREFIX, Piece
from hbpcompiler.compiler.routes import Choice, Site, kinds_of
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.rule import Contraction, Residual

__all__ = ["BEFORE_MEAN", "OPERAND", "PREFIX", "Piece", "SumEach", "Total", "Weigh", "Weights"]

# -- steps, in order of execution ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """A stream starts at the loss's input."""

    operation: Operation
    piece: Piece
    by_position: bool = False
    """Columns of each position alone, [N, *d, k, C], of which the loop that takes them makes so many at a time."""


@dataclass(frozen=True)
class SeedOutput:
    """The stream OUTPUT starts at the model's output, with a unit column for each of its entries."""

    value: Value
    piece: Piece


@dataclass(frozen=True)
class Birth:
    """A curved operation's residual appears at some of its inputs."""

    operation: Operation
    piece: Piece
    gradient: Piece
    slots: tuple[str, ...]
    residual: Residual = field(compare=False)
    draws: int = 0
    """Where the piece is random sums of the columns: how many of each sign; 0: it is all columns, or a diagonal."""
    one_by_one: bool = False
    """Whether its columns count one by one, as absolute values do, rather than by their sum."""


@dataclass(frozen=True)
class Pull:
    """A piece crosses an operation, to one input."""

    operation: Operation
    slot: str
    piece: Piece


@dataclass(frozen=True)
class Widen:
    """A diagonal crosses an operation that is not elementwise, and so becomes columns, one per coordinate."""

    operation: Operation
    slot: str
    piece: Piece
    into: Piece


@dataclass(frozen=True)
class Gather:
    """Pieces of one form at a value become one: diagonals are added, columns laid side by side."""

    value: Value
    pieces: tuple[Piece, ...]
    into: Piece

    @property
    def compresses(self) -> bool:
        """Whether fewer columns take the place of those that arrived (see `compression`)."""
        return self.into.columns < sum(piece.columns for piece in self.pieces)


@dataclass(frozen=True)
class Unite(Gather):
    """All that a stream has at the model's outputs becomes one piece of columns, so that a column has one number
    everywhere: what inner products of columns of several parameters need."""

    parts: tuple[tuple[Piece | None, int], ...]
    """What is laid side by side: pieces, or None for one that has not arrived at this value; and their columns."""


@dataclass(frozen=True)
class AddUp(Gather):
    """The columns of a stream at one of the model's outputs become as few as a call gives vectors of weights for them,
    which go on to the parameters of one group."""


@dataclass(frozen=True)
class Average:
    """KFRA's start: the loss Hessian averaged over the batch."""

    value: Value
    pieces: tuple[Piece, ...]
    into: Piece


@dataclass(frozen=True)
class Sample:
    """Random-sign combinations of the columns of a loss that names no distribution."""

    value: Value
    pieces: tuple[Piece, ...]
    into: Piece


@dataclass(frozen=True)
class Close:
    """A piece ends at a parameter."""

    operation: Operation
    slot: str
    parameter: Value
    piece: Piece | None
    site: Site
    contraction: Contraction = field(compare=False)
    choices: tuple[Choice, ...] = field(compare=False)
    pooled: bool = False
    """Whether it takes the columns at pooled positions (see `pooled`)."""
    other: Piece | None = None
    """The gradient, for inner products of columns with it."""

    @property
    def kinds(self) -> frozenset[str]:
        """All closings that it gives."""
        return kinds_of(self.choices)

    def cost(self) -> Cost:
        """Of all its routes together."""
        total = self.choices[0].cost
        for choice in self.choices[1:]:
            total = total + choice.cost
        return total


@dataclass(frozen=True)
class Tied:
    """A piece ends at a parameter of several uses, their contractions joined along the positions (see `tied`)."""

    parameter: Value
    uses: tuple[Close, ...]
    site: Site
    choices: tuple[Choice, ...] = field(compare=False)

    @property
    def operation(self) -> Operation:
        """The last use to be reached, under whose heading it is printed."""
        return self.uses[-1].operation

    @property
    def closed(self) -> tuple[Close, ...]:
        """The uses whose own closings it gives, and not their steps."""
        return self.uses

    @property
    def piece(self) -> Piece:
        piece = self.uses[0].piece
        assert piece is not None
        return piece

    @property
    def other(self) -> Piece | None:
        """As of a `Close`."""
        return self.uses[0].other

    @property
    def kinds(self) -> frozenset[str]:
        """All closings that it gives."""
        return kinds_of(self.choices)


@dataclass(frozen=True)
class TiedRows(Tied):
    """The parameter is looked up by an index at some uses and multiplied at others, which have closings of their own:
    what the looked-up rows add to these."""

    @property
    def closed(self) -> tuple[Close, ...]:
        """The uses with an index."""
        return tuple(use for use in self.uses if use.contraction.index is not None)


@dataclass(frozen=True)
class Tail:
    """All that is left of a piece's way, in chunks of samples and of columns, because its columns are many.

    Memory then grows neither with their number nor with the batch. The first step is the piece's `Widen` or `Birth` if
    it is born as columns here; the others are its `Pull`s and `Close`s.
    """

    piece: Piece
    values: tuple[Value, ...]
    """where the piece is when the chunks are cut: at several values, if one operation bore it at all its inputs; at
    none, if it is born here."""
    steps: tuple[Birth | Pull | Widen | Close, ...]
    samples: int
    columns: int
    limit: str = field(default="", kw_only=True, compare=False)
    """the name of the threshold (see `Limits`) that made it one; empty where the memory budget did."""


@dataclass(frozen=True)
class LocalTail(Tail):
    """A tail position by position of its first value, each with the neighbourhood that its columns live on (`local`).

    Its steps' operations make such a piece of their values; `columns` are those of a position.
    """

    widen: Widen
    """the first step, at whole values."""
    positions: tuple[int, ...]
    """their number along each axis."""
    chunk: int
    """positions at a time."""
    places: Mapping[str, Neighbourhood]
    """by value."""
    cleared: frozenset[tuple[str, str]]
    """the inputs (operation, slot) at which columns outside the image are set to zero before they go on."""


@dataclass(frozen=True)
class SampleChunks:
    """Curvature's whole way through the model in chunks of samples, where a batch's columns together are many."""

    steps: tuple[Step, ...]
    samples: int
    limit: str = field(default="", kw_only=True, compare=False)
    """as a `Tail`'s."""

    @property
    def operation(self) -> Operation:
        """The model's last operation, under whose heading the loop is printed."""
        return _operation(self.steps[0])


@dataclass(frozen=True)
class SamplePairs(SampleChunks):
    """The same for inner products of columns: `samples` at a time, two blocks of them, each two blocks once.

    So any two samples meet in some turn, and what a turn gives are the inner products among its own samples.
    """


Step = (Seed | SeedOutput | Birth | Pull | Widen | Gather | Average | Sample | Close | Tied | Tail | SampleChunks
        | Weights | Weigh | SumEach)


def kinds(steps: Iterable[Step]) -> frozenset[str]:
    """All closings that some steps give."""
    found = frozenset[str]()
    for step in steps:
        if isinstance(step, Close | Tied):
            found |= step.kinds
    return found


def flat(step: Step) -> Iterator[Step]:
    """A step, or those that it carries out in chunks."""
    if isinstance(step, Tail | SampleChunks):
        for own in step.steps:
            yield from flat(own)
    else:
        yield step


AT_A_VALUE = SeedOutput | Gather | Average | Sample | Weigh
"""Steps that have no operation of their own."""


def _operation(step: Step) -> Operation:
    return next(own.operation for own in flat(step) if not isinstance(own, AT_A_VALUE | Tail))


def place_of(step: Step, graph: Graph) -> Operation:
    """The operation under whose heading a step is printed."""
    if isinstance(step, Tail):
        made = [value for value in step.values if value.name in graph.makers]
        return graph.makers[made[0].name] if made else step.steps[0].operation
    return graph.makers[step.value.name] if isinstance(step, AT_A_VALUE) else step.operation


def title(operation: Operation) -> str:
    """The heading under which an operation's lines stand."""
    place = "loss" if operation.source.in_loss else operation.source.module
    return f"{place}: {operation.plain}" if place else operation.plain
