"""What the planner's walk decides at the model's outputs, where the loss ends.

There all pieces of curvature are known: sampled ones take the place of exact ones, pieces of one stream become one
where their columns must have one number at all parameters, and unit columns of the outputs begin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan.closings import signed_columns
from hbpcompiler.compiler.plan.steps import (
    PREFIX,
    AddUp,
    Average,
    Gather,
    Piece,
    Sample,
    SeedOutput,
    Step,
    Unite,
)
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM, MATRIX
from hbpcompiler.compiler.trace.graph import Graph, Value
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.options import Options
from hbpcompiler.quantities import (
    GGN,
    GGN_MC,
    GRADIENT,
    KFRA,
    OUTPUT,
    QUANTITIES,
    TOTALS,
    VECTORS,
    WEIGHED,
    Closing,
)


class Outputs:
    """Pieces on their way, and what becomes of them where they leave the loss (`_leave_loss`)."""

    def __init__(self, matched: Matched, closings: frozenset[Closing], options: Options, resources: Resources) -> None:
        graph = matched.graph
        self.matched, self.closings, self.resources = matched, closings, resources
        self.mc_samples = options.mc_samples
        asked = {closing.stream for closing in self.closings if closing.stream}
        self.streams = asked | {WEIGHED[stream] for stream in asked & WEIGHED.keys()}
        self.chosen, self.quantities = options.chosen, options.quantities
        self.steps: list[Step] = []
        self.at: dict[str, dict[str, Piece]] = {}
        """By value, what has arrived there, by its name."""
        self.counter: dict[str, int] = {}
        self.sampled: set[str] = set()
        self.boundary = _boundary(graph, matched.active) if graph.has_loss_streams else [
            graph.makers[graph.end].output]
        self.indefinite = False

    def _piece(self, prefix: str, stream: str, form: str, columns: int, signed: bool,
               only: frozenset[str] | None = None) -> Piece:
        number = self.counter[prefix] = self.counter.get(prefix, 0) + 1
        return Piece(prefix if number == 1 else f"{prefix}{number}", stream, form, columns, signed, only=only)

    def _arrive(self, value: Value, piece: Piece) -> None:
        self.at.setdefault(value.name, {})[piece.name] = piece

    def _leave_loss(self) -> None:
        """At the model's outputs KFRA's pieces are averaged, and exact columns sampled where the loss cannot do it.

        Columns that the loss sends to several outputs stay one piece: their cross blocks are part of the GGN.
        """
        if KFRA in self.streams and len(self.boundary) > 1:
            raise UnsupportedOpError("kfra: the loss takes several outputs of the model, and the batch-averaged "
                                     "recursion is defined for chains only; use kflr")
        every = {name: piece for value in self.boundary for name, piece in self.at.get(value.name, {}).items()}
        self.indefinite = any(piece.signed for piece in every.values())
        exact = [piece for piece in every.values() if piece.stream == GGN_MC and piece.name not in self.sampled]
        drawn = self._sums_of(exact)
        whole = self._whole_streams()
        reached = {piece.stream for piece in every.values()}
        for value in self.boundary:
            pieces = self._with_absent(value, whole & reached)
            averaged = tuple(piece for piece in pieces if piece.stream == KFRA)
            sampled = tuple(piece for piece in pieces if piece in exact)
            result = [piece for piece in pieces if piece not in averaged and piece not in sampled]
            if averaged:
                into = self._piece("G", KFRA, MATRIX, 0, False)
                self.steps.append(Average(value, averaged, into))
                result.append(into)
            if sampled and drawn is not None:
                self.steps.append(Sample(value, sampled, drawn))
                result.append(drawn)
            self.at[value.name] = {piece.name: piece for piece in result}
        for stream in sorted(whole):
            self._unite(stream)
        for stream in sorted(self.streams & WEIGHED.keys()):
            self._add_up(stream)
        self._seed_output()

    def _sums_of(self, exact: Sequence[Piece]) -> Piece | None:
        """The piece of random sums that takes the place of exact ones, a set for each sign that they have."""
        if not exact:
            return None
        signed = any(piece.signed for piece in exact)
        return self._piece("M", GGN_MC, COLUMNS, self.mc_samples * (2 if signed else 1), signed)

    def _with_absent(self, value: Value, elsewhere: AbstractSet[str]) -> list[Piece]:
        """What has arrived at an output, and a zero diagonal of each stream that has not: a piecewise linear loss's GGN
        is zero, which is not absence, as is a product's for parameters that one factor depends on. Columns of streams
        that are `elsewhere` are zero here by themselves."""
        pieces = list(self.at.get(value.name, {}).values())
        above = self.matched.parameters_above[value.name]
        for stream in sorted((self.streams & {GGN, GGN_MC, KFRA}) - elsewhere):
            own = [piece for piece in pieces if piece.stream == stream]
            concerned = frozenset[str]().union(*(above if piece.only is None else piece.only for piece in own))
            if own and above <= concerned:
                continue
            into = self._piece(PREFIX[stream], stream, DIAGONAL_FORM, 0, False, above - concerned if own else None)
            self.steps.append(Gather(value, (), into))
            pieces.append(into)
        return pieces

    def _whole_streams(self) -> set[str]:
        """Those of which columns of several parameters meet: a column must have one number at all of them."""
        asked = {closing.stream for closing in self.closings if closing.kind in TOTALS | {VECTORS}}
        return (asked | {WEIGHED[stream] for stream in self.streams & WEIGHED.keys()}) - {GRADIENT, OUTPUT}

    def _unite(self, stream: str) -> None:
        """All pieces of a stream at the model's outputs as one piece of columns, zero where one has not arrived."""
        arrived = {value.name: {name: piece for name, piece in self.at[value.name].items()
                                if piece.stream == stream} for value in self.boundary}
        counts: dict[Piece, int] = {}
        for value in self.boundary:
            for piece in arrived[value.name].values():
                if piece.signed:
                    raise UnsupportedOpError(signed_columns([
                        name for name in self.quantities if QUANTITIES[name].needs_roots(stream)]))
                counts[piece] = piece.columns if piece.form == COLUMNS else math.prod(value.sample_shape)
        (first, *more) = counts
        if not more and first.form == COLUMNS and all(arrived.values()):
            return
        into = self._piece(PREFIX[stream], stream, COLUMNS, sum(counts.values()), False)
        for value in self.boundary:
            own = arrived[value.name]
            parts = tuple((own.get(piece.name), count) for piece, count in counts.items())
            self.steps.append(Unite(value, tuple(own.values()), into, parts))
            others = {name: piece for name, piece in self.at[value.name].items() if name not in own}
            self.at[value.name] = {**others, into.name: into}

    def _add_up(self, stream: str) -> None:
        """For each group of parameters as few columns as it has vectors of weights; they are no part of the others."""
        keys = [value.key for value in self.matched.trainable]
        for group in dict.fromkeys(filter(None, map(self.chosen.group_of, keys))):
            into = replace(self._piece(PREFIX[stream], stream, COLUMNS, self.resources.limits.typical_vectors, False),
                           group=group)
            for value in self.boundary:
                whole = [piece for piece in self.at[value.name].values() if piece.stream == WEIGHED[stream]]
                self.steps.append(AddUp(value, tuple(whole), into))
                self._arrive(value, into)

    def _seed_output(self) -> None:
        """Unit columns at the model's output, whatever the loss brings there."""
        value = self.matched.end
        if OUTPUT in self.streams and value is not None:
            piece = self._piece(PREFIX[OUTPUT], OUTPUT, COLUMNS, math.prod(value.sample_shape), False)
            self.steps.append(SeedOutput(value, piece))
            self._arrive(value, piece)


def _boundary(graph: Graph, active: AbstractSet[str]) -> list[Value]:
    """The values at which the model ends and the loss begins."""
    found: dict[str, Value] = {}
    for operation in graph.operations:
        if operation.source.in_loss and operation.name in active:
            for value in operation.tensors.values():
                maker = graph.makers.get(value.name)
                if maker is not None and not maker.source.in_loss and value.name in active:
                    found[value.name] = value
    return list(found.values())
