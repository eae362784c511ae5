"""The planner's backward walk over the graph, which decides what travels where, in which form, and how it closes.

The result is a list of steps without tensors. The walk knows structures and sizes, never an operation. Curvature
travels in pieces: a piece is born at one place, has one form, and is the sum of what arrives over several consumers.
Diagonals born at one value are added, columns laid side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from hbpcompiler import schemes
from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.match.bind import static_op
from hbpcompiler.compiler.match.endings import is_positive
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.plan import compression
from hbpcompiler.compiler.plan.closings import closings_at
from hbpcompiler.compiler.plan.joint import Joint, joint_blocks
from hbpcompiler.compiler.plan.outputs import Outputs
from hbpcompiler.compiler.plan.precision import Precision
from hbpcompiler.compiler.plan.steps import (
    PREFIX,
    Birth,
    Gather,
    Piece,
    Pull,
    Sample,
    Seed,
    Step,
    Widen,
)
from hbpcompiler.compiler.plan.tails import most_bytes
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM, MATRIX
from hbpcompiler.compiler.trace.graph import Graph, Operation, Value
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.options import Options
from hbpcompiler.quantities import (
    COLUMN_SUM,
    GGN,
    GGN_MC,
    GRADIENT,
    KFRA,
    NEGATIVE,
    POSITIVE,
    RESIDUAL,
    RESIDUAL_MC,
    TOTALS,
    VECTORS,
    WEIGHED,
    Closing,
)
from hbpcompiler.rule import Diagonal, LossRule, Op, Pieces, Residual, Rule, Structure, Zero
from hbpcompiler.rule.bilinear import (
    cross_block,
    cross_block_missing,
    inputs_met,
    parameters_met,
)
from hbpcompiler.rule.convexity import curvature_sign, order_sign, slope_sign


class Walk(Outputs):
    """What has been decided so far; `run` decides it all."""

    def __init__(self, matched: Matched, closings: frozenset[Closing], options: Options, resources: Resources) -> None:
        super().__init__(matched, closings, options, resources)
        self.graph, self.active, self.rules = matched.graph, matched.active, matched.rules
        self.curvature = options.curvature
        self.gradient = self._piece("g", GRADIENT, COLUMNS, 1, False)
        self.slopes: dict[str, int | None] = {}
        self.dtype = self.boundary[0].dtype
        self.precision = Precision(None if options.curvature_dtype == self.dtype else options.curvature_dtype)
        self.itemsize = (self.precision.dtype or self.dtype).itemsize
        """Bytes of a number of a column."""
        self.largest = _largest_above(self.graph, self.active)
        self.joint = joint_blocks(matched, closings) if options.joint_bias else Joint()

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

    # -- births ----------------------------------------------------------------------------------------------------

    def _static(self, operation: Operation) -> Op:
        return self.matched.static(operation)

    def _seed(self, operation: Operation, rule: LossRule) -> None:
        value = operation.tensors[rule.input]
        op = self._static(operation)
        self.steps.append(Seed(operation, self.gradient))
        self._arrive(value, self.gradient)
        residual = rule.residual_of(op)
        signed = not is_positive(self.matched.ending.multiples[operation.name])
        self._slope(value, None if signed else order_sign(rule))
        for stream in sorted(self.streams & {GGN, GGN_MC, KFRA}):
            if stream == GGN_MC and rule.sample is not None:
                piece = self._piece("M", stream, COLUMNS, self.mc_samples, signed)
                self.sampled.add(piece.name)
            elif isinstance(residual, Zero):
                continue
            elif isinstance(residual, Diagonal):
                piece = self._piece(PREFIX[stream], stream, DIAGONAL_FORM, 0, signed)
            else:
                piece = self._piece(PREFIX[stream], stream, COLUMNS, residual.count(op), signed)
            self.steps.append(Seed(operation, piece))
            self._arrive(value, piece)

    def _slope(self, value: Value, sign: int | None) -> None:
        """Note the sign of the loss's derivative in a value, one of several ways from it to the loss."""
        self.slopes[value.name] = sign if self.slopes.get(value.name, sign) == sign else None

    def _births(self, operation: Operation, rule: Rule, op: Op, gradient: Piece | None) -> None:
        """The rule's residual, and what it leaves out where a parameter is a value (see `bilinear`)."""
        if gradient is None:
            return
        slots = tuple(slot for slot, value in operation.tensors.items() if self._carries(value))
        self._birth(operation, rule.residual_of(op), tuple(slot for slot in slots if slot.split(".")[0] in rule.jac_t),
                    gradient)
        inputs = tuple(inputs_met(rule, op))
        for slot in parameters_met(rule, op):
            met = self._parameters_above(operation, [slot]) & self._parameters_above(operation, inputs)
            if not met or not self.streams & {RESIDUAL, RESIDUAL_MC}:
                continue  # the block is between different parameters
            if cross_block_missing(rule, op):
                raise UnsupportedOpError(
                    f"{operation.target} in {operation.source}: its input and its '{slot}' depend on one parameter "
                    f"({', '.join(sorted(met))}), and there is no rule for the Hessian's cross terms between them; "
                    "freeze it or ask for other quantities")
            self._birth(operation, cross_block(rule, op, slot), (*inputs, slot), gradient)

    def _never_negative(self, operation: Operation) -> list[str]:
        """Arguments that are known to be so."""
        return [slot for slot, value in operation.tensors.items() if value.name in self.matched.never_negative]

    def _parameters_above(self, operation: Operation, slots: Iterable[str]) -> set[str]:
        """Names of the trainable parameters that these arguments depend on."""
        return set().union(*[self.matched.parameters_above[operation.tensors[slot].name] for slot in slots])

    def _birth(self, operation: Operation, residual: Residual, slots: tuple[str, ...], gradient: Piece) -> None:
        streams = (GGN, GGN_MC, KFRA) if operation.source.in_loss else (RESIDUAL, RESIDUAL_MC)
        if isinstance(residual, Pieces) and self.streams & set(streams):
            raise UnsupportedOpError(f"{operation.target} in {operation.source}: its rule is about first derivatives "
                                     "alone, and it was not taken apart")
        if isinstance(residual, Zero) or not slots:
            return
        signed = schemes.is_signed(self.curvature)
        if operation.source.in_loss:
            rule = self.rules[operation.name]
            assert isinstance(rule, Rule)
            slope = self.slopes.get(operation.name)
            own = static_op(operation, self.active)
            signed = slope is None or slope != curvature_sign(rule, own, self._never_negative(operation))
        for stream in sorted(self.streams & set(streams)):
            draws = 0
            if isinstance(residual, Diagonal):
                piece = self._piece(PREFIX[stream], stream, DIAGONAL_FORM, 0, signed)
            else:
                count = residual.count(self._static(operation))
                kinds = schemes.signs_kept(self.curvature)
                if stream == RESIDUAL_MC and residual.drawn is not None and count > len(kinds) * self.mc_samples:
                    draws = self.mc_samples
                    count = len(kinds) * draws
                piece = self._piece(PREFIX[stream], stream, COLUMNS, count, signed)
            self.steps.append(Birth(operation, piece, gradient, slots, residual, draws))
            values = list({operation.tensors[slot].name: operation.tensors[slot] for slot in slots}.values())
            if stream == RESIDUAL_MC and not draws and self._is_sampled_at_once(piece, values):
                piece = self._sampled(values, piece)
            for value in values:
                self._arrive(value, piece)

    # -- crossing an operation ----------------------------------------------------------------------------------------

    def _carries(self, value: Value) -> bool:
        """Whether columns travel on to this value; parameters are where they end."""
        return value.name in self.active and value.role != "parameter"

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
            into = piece if keeps else self._piece(PREFIX[piece.stream], piece.stream, COLUMNS, size, piece.signed)
            for slot in slots:
                self.steps.append(Pull(operation, slot, piece) if keeps else Widen(operation, slot, piece, into))
                self._arrive(operation.tensors[slot], into)

    def _gathered(self, value: Value, operation: Operation) -> list[Piece]:
        """What has arrived at a value, once all its consumers are done, in as few pieces as possible."""
        pieces = list(self.at.pop(value.name, {}).values())
        result: list[Piece] = [piece for piece in pieces if piece.stream == GRADIENT]
        for stream in sorted({piece.stream for piece in pieces} - {GRADIENT}):
            for form in (COLUMNS, DIAGONAL_FORM, MATRIX):
                group = [piece for piece in pieces if (piece.stream, piece.form) == (stream, form)]
                # Inside the loss sampled and exact columns of one stream stay apart until `_leave_loss`.
                mixed = (stream == GGN_MC and operation.source.in_loss) or stream in WEIGHED
                if len(group) > 1 and not mixed and self._only_here(group) and not self._many(group, value):
                    signed = any(piece.signed for piece in group)
                    total = sum(piece.columns for piece in group)
                    into = self._piece(PREFIX[stream], stream, form, total, signed)
                    self.steps.append(Gather(value, tuple(group), into))
                    group = [into]
                if form == COLUMNS and not operation.source.in_loss:
                    group = [self._compressed(value, piece) for piece in group]
                result += group
        return result

    def _compressed(self, value: Value, piece: Piece) -> Piece:
        """As many columns as the value has numbers, where more have arrived and a long way is left (`compression`)."""
        size = math.prod(value.sample_shape)
        kinds = {closing.kind for closing in self.closings if closing.stream == piece.stream}
        worth = compression.is_worth_it(piece.columns, size, self.largest[value.name][0], self.resources.limits)
        apart = kinds & {VECTORS, POSITIVE, NEGATIVE, COLUMN_SUM, *TOTALS}
        possible = value.batched and value.dtype in compression.DTYPES and not apart
        if not (worth and possible and self._only_here([piece])) or self._many([piece], value):
            return piece
        into = self._piece(PREFIX[piece.stream], piece.stream, COLUMNS, size, piece.signed)
        self.steps.append(Gather(value, (piece,), into))
        return into

    def _many(self, pieces: Iterable[Piece], value: Value) -> bool:
        """Whether the columns, laid side by side, would be so many that they had better travel one by one."""
        columns = sum(piece.columns for piece in pieces if piece.form == COLUMNS)
        size, vectors_only = self.largest[value.name]
        most, allowed = most_bytes(vectors_only, self.resources.limits), self.resources.temporaries
        most = most if allowed is None else min(most, allowed)
        return decided("many columns", lambda: columns * size * self.itemsize > most)

    def _is_sampled_at_once(self, piece: Piece, values: Iterable[Value]) -> bool:
        """Whether a residual's own columns, where it is no diagonal, are drawn for where they are born: unless they are
        as few as what would be drawn, or too many to be there at once."""
        if piece.form != COLUMNS or piece.columns <= self._drawn(piece):
            return False
        each = piece.columns * sum(math.prod(value.sample_shape) for value in values) * self.itemsize
        return decided("drawn at birth", lambda: each <= self.resources.limits.drawn_bytes)

    def _sampled(self, values: Iterable[Value], piece: Piece) -> Piece:
        """The residual's columns replaced by random-sign sums of its positive and of its negative ones."""
        into = self._piece(PREFIX[piece.stream], piece.stream, COLUMNS, self._drawn(piece), piece.signed)
        for value in values:
            self.steps.append(Sample(value, (piece,), into))
        return into

    def _drawn(self, piece: Piece) -> int:
        """How many columns are drawn in place of a piece."""
        return self.mc_samples * (2 if piece.signed else 1)

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
