"""The planner's backward walk over the graph, which decides what travels where, in which form, and how it closes.

The result is a list of steps without tensors. The walk knows structures and sizes, never an operation. Curvature
travels in pieces: a piece is born at one place, has one form, and is the sum of what arrives over several consumers.
Diagonals born at one value are added, columns laid side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.plan import compression
from hbpcompiler.compiler.plan.births import Births
from hbpcompiler.compiler.plan.closings import closings_at
from hbpcompiler.compiler.plan.steps import PREFIX, Gather, Piece, Pull, Step, Widen
from hbpcompiler.compiler.plan.tails import most_bytes
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM, MATRIX
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.options import Options
from hbpcompiler.quantities import (
    COLUMN_SUM,
    GGN_MC,
    GRADIENT,
    NEGATIVE,
    POSITIVE,
    RESIDUAL_MC,
    TOTALS,
    VECTORS,
    WEIGHED,
    Closing,
)
from hbpcompiler.rule import LossRule, Rule, Structure
from hbpcompiler.rule.bilinear import parameters_met
from hbpcompiler.rule.convexity import slope_sign


class Walk(Births):
    """What has been decided so far; `run` decides it all."""

    def __init__(self, matched: Matched, closings: frozenset[Closing], options: Options, resources: Resources) -> None:
        super().__init__(matched, closings, options, resources)
        self.largest = _largest_above(self.graph, self.active)

    def run(self) -> list[Step]:
        """The steps of the whole backward pass; some may be read by none."""
        left = False
        for operation in reversed(self.graph.operations):
            if operation.name not in self.active:
                continue
            rule = self.rules.get(operation.name)
            if rule is None or operation in self.matched.ending.tail:
                continue
            if not operation.source.in_loss and not left:
                self._leave_loss()
                left = True
            if isinstance(rule, LossRule):
                self._seed(operation, rule)
            else:
                self._cross(operation, rule)
        return self.steps

    # -- crossing an operation ----------------------------------------------------------------------------------------

    def _cross(self, operation: Operation, rule: Rule) -> None:
        value = operation.output
        pieces = self._gathered(value, operation)
        op = self._static(operation)
        gradient = next((piece for piece in pieces if piece.stream == GRADIENT), None)
        self.steps += closings_at(operation, rule, op, pieces, self.closings, self.dtype, self.resources,
                                   self.precision, self.joint, self.chosen)
        slots = [slot for slot, value in operation.tensors.items() if self._carries(value)]
        self._births(operation, rule, op, gradient)
        if operation.source.in_loss:
            slope = self.slopes.get(value.name)
            for slot in slots:
                own = slope_sign(rule, static_op(operation, self.active), slot, self._never_negative(operation))
                self._slope(operation.tensors[slot], slope * own if slope and own else None)
        for piece in pieces:
            if piece.form == MATRIX and (len(slots) > 1 or parameters_met(rule, op) or any(piece.name in self.at.get(
                    operation.tensors[slot].name, {}) for slot in slots)):
                raise UnsupportedOpError(f"kfra: {operation.target} in {operation.source} joins or splits branches, "
                                         "and the batch-averaged recursion is defined for chains only; use kflr")
            keeps = piece.form != DIAGONAL_FORM or (
                len(slots) == 1 and (rule.elementwise_in(op) or rule.structure_of(op) is Structure.SELECTION)
            )
            if not keeps and piece.stream == RESIDUAL_MC:
                piece, keeps = self._sampled([value], piece), True
            size = math.prod(value.sample_shape)
            into = piece if keeps else self._piece(PREFIX[piece.stream], piece.stream, COLUMNS, size, piece.signed,
                                                   piece.only)
            for slot in slots:
                self.steps.append(Pull(operation, slot, piece) if keeps else Widen(operation, slot, piece, into))
                self._arrive(operation.tensors[slot], into)

    def _gathered(self, value: Value, operation: Operation) -> list[Piece]:
        """What has arrived at a value, once all its consumers are done, in as few pieces as possible."""
        pieces = list(self.at.pop(value.name, {}).values())
        result: list[Piece] = [piece for piece in pieces if piece.stream == GRADIENT]
        for stream in sorted({piece.stream for piece in pieces} - {GRADIENT}):
            for form, only in itertools.product((COLUMNS, DIAGONAL_FORM, MATRIX), self._concerned(value, pieces)):
                group = [piece for piece in pieces if (piece.stream, piece.form) == (stream, form)
                         and self._only_above(value, piece) == only]
                # Inside the loss sampled and exact columns of one stream stay apart until `_leave_loss`.
                mixed = (stream == GGN_MC and operation.source.in_loss) or stream in WEIGHED
                if len(group) > 1 and not mixed and self._only_here(group) and not self._many(group, value):
                    signed = any(piece.signed for piece in group)
                    total = sum(piece.columns for piece in group)
                    into = self._piece(PREFIX[stream], stream, form, total, signed, only)
                    self.steps.append(Gather(value, tuple(group), into))
                    group = [into]
                if form == COLUMNS and not operation.source.in_loss:
                    group = [self._compressed(value, piece) for piece in group]
                result += group
        return result

    def _only_above(self, value: Value, piece: Piece) -> frozenset[str] | None:
        """The parameters above a value that a piece concerns; None: all of them."""
        above = self.matched.parameters_above[value.name]
        return None if piece.only is None or above <= piece.only else piece.only & above

    def _concerned(self, value: Value, pieces: Iterable[Piece]) -> list[frozenset[str] | None]:
        """The sets of parameters that pieces at a value are for: those of one set may become one piece."""
        return list(dict.fromkeys(self._only_above(value, piece) for piece in pieces))

    def _compressed(self, value: Value, piece: Piece) -> Piece:
        """As many columns as the value has numbers, where more have arrived and a long way is left (`compression`)."""
        size = math.prod(value.sample_shape)
        kinds = {closing.kind for closing in self.closings if closing.stream == piece.stream}
        worth = compression.is_worth_it(piece.columns, size, self.largest[value.name][0], self.resources.limits)
        apart = kinds & {VECTORS, POSITIVE, NEGATIVE, COLUMN_SUM, *TOTALS}
        possible = value.batched and value.dtype in compression.DTYPES and not apart
        if not (worth and possible and self._only_here([piece])) or self._many([piece], value):
            return piece
        into = self._piece(PREFIX[piece.stream], piece.stream, COLUMNS, size, piece.signed, piece.only)
        self.steps.append(Gather(value, (piece,), into))
        return into

    def _many(self, pieces: Iterable[Piece], value: Value) -> bool:
        """Whether the columns, laid side by side, would be so many that they had better travel one by one."""
        columns = sum(piece.columns for piece in pieces if piece.form == COLUMNS)
        size, vectors_only = self.largest[value.name]
        most, allowed = most_bytes(vectors_only, self.resources.limits), self.resources.temporaries
        most = most if allowed is None else min(most, allowed)
        return decided("many columns", lambda: columns * size * self.itemsize > most)

    def _only_here(self, pieces: Iterable[Piece]) -> bool:
        """Columns may be laid side by side only where no other branch still carries one of them."""
        names = {piece.name for piece in pieces}
        return not any(names & set(there) for there in self.at.values())

def _largest_above(graph: Graph, active: AbstractSet[str]) -> dict[str, tuple[int, bool]]:
    """For each value, the size of the largest one that its columns will reach on their way back, itself included; and
    whether all of them have one axis."""
    largest: dict[str, tuple[int, bool]] = {}
    for operation in graph.operations:
        if operation.name in active:
            above = [largest[value.name] for value in operation.tensors.values() if value.name in largest]
            sizes = [math.prod(operation.output.sample_shape), *(size for size, _ in above)]
            vectors_only = len(operation.output.sample_shape) <= 1 and all(flat for _, flat in above)
            largest[operation.name] = max(sizes), vectors_only
    return largest
