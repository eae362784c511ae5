"""Where curvature is born on the planner's walk: at the loss, and at operations that have a curvature of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

from torch import Tensor

from hbpcompiler import schemes
from hbpcompiler.compiler.cost.decisions import decided
from hbpcompiler.compiler.cost.figures import Resources
from hbpcompiler.compiler.match.losses.endings import sign_of
from hbpcompiler.compiler.match.losses.targets import slope_of
from hbpcompiler.compiler.match.matched import Matched
from hbpcompiler.compiler.match.operation.bind import static_op
from hbpcompiler.compiler.plan.joint import Joint, joint_blocks
from hbpcompiler.compiler.plan.outputs import Outputs
from hbpcompiler.compiler.plan.precision import Precision
from hbpcompiler.compiler.plan.steps import PREFIX, Birth, Piece, Sample, Seed
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.errors import UnsupportedOpError
from hbpcompiler.options import Options
from hbpcompiler.quantities import (
    BATCH_DIAGONAL,
    CURVATURE,
    DIAGONAL,
    GGN,
    GGN_MC,
    GRADIENT,
    KFRA,
    NEGATIVE,
    POSITIVE,
    RESIDUAL,
    RESIDUAL_MC,
    RESIDUAL_PARTS,
    Closing,
)
from hbpcompiler.rule import Diagonal, Factor, LossRule, Op, Pieces, Residual, Rule, Zero
from hbpcompiler.rule.bilinear import cross_block, cross_block_missing, inputs_met, parameters_met
from hbpcompiler.rule.convexity import curvature_sign

OF_ENTRIES = frozenset({DIAGONAL, BATCH_DIAGONAL})
"""Closings that see no two parameters together."""
RESIDUALS = frozenset({RESIDUAL, RESIDUAL_MC, RESIDUAL_PARTS})
Block = Callable[[Op, Tensor], Tensor]
"""Of a residual, under a gradient [N, *out]: its diagonal in one input."""


class Births(Outputs):
    """Seeds and births, and what is drawn in their place."""

    def __init__(self, matched: Matched, closings: frozenset[Closing], options: Options, resources: Resources) -> None:
        super().__init__(matched, closings, options, resources)
        self.graph, self.active, self.rules = matched.graph, matched.active, matched.rules
        self.curvature = options.curvature
        self.slopes: dict[str, int | None] = {}
        self.dtype = self.boundary[0].dtype
        self.precision = Precision(None if options.curvature_dtype == self.dtype else options.curvature_dtype)
        self.itemsize = (self.precision.dtype or self.dtype).itemsize
        """Bytes of a number of a column."""
        self.joint = joint_blocks(matched, closings) if options.joint_bias else Joint()
        self.one_by_one = not schemes.is_signed(self.curvature) or any(
            closing.stream in (RESIDUAL, RESIDUAL_MC) and closing.kind in (POSITIVE, NEGATIVE) for closing in closings)
        """Whether each column of a residual counts, in an absolute value or a part, rather than their sum."""
        self.parts = bool(self.joint.biases) or self.one_by_one
        """Whether columns of a residual are wanted that add up to zero: positive and negative ones apart, as absolute
        values, or for blocks of two parameters."""
        self.whole = any(closing.stream in CURVATURE and (closing.stream != GGN or closing.kind not in OF_ENTRIES)
                         for closing in closings)
        """Whether anything but diagonals is made of the loss's own curvature, so that its columns are to be whole."""
        self.gradient = self._piece("g", GRADIENT, COLUMNS, 1, False)

    def _carries(self, value: Value) -> bool:
        """Whether columns travel on to this value; parameters are where they end."""
        return value.name in self.active and value.role != "parameter"

    def _static(self, operation: Operation) -> Op:
        return self.matched.static(operation)

    def _seed(self, operation: Operation, rule: LossRule) -> None:
        value = operation.tensors[rule.input]
        op = self._static(operation)
        self.steps.append(Seed(operation, self.gradient))
        self._arrive(value, self.gradient)
        residual = rule.residual_of(op)
        sign, slope = sign_of(self.matched.ending.multiples[operation.name]), slope_of(self.matched, operation)
        signed = sign != 1
        self._slope(value, sign * slope if sign and slope else None)
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
        apart = self.parts or (operation.source.in_loss and self.whole)
        self._births_of(operation, rule, op, gradient, self.streams - {RESIDUAL_PARTS}, apart)
        if RESIDUAL_PARTS in self.streams:
            self._births_of(operation, rule, op, gradient, {RESIDUAL_PARTS}, True)

    def _births_of(self, operation: Operation, rule: Rule, op: Op, gradient: Piece, streams: AbstractSet[str],
                   apart: bool) -> None:
        """In some of the streams; `apart`: with all columns, also those that add up to zero."""
        carried = tuple(slot for slot, value in operation.tensors.items() if self._carries(value))
        slots = tuple(slot for slot in carried if slot.split(".")[0] in rule.jac_t)
        residual = rule.residual_of(op)
        if isinstance(residual, Factor) and residual.own is not None and not apart:
            self._births_in_blocks(operation, residual, residual.own, slots, gradient, streams)
        else:
            self._birth(operation, residual, slots, gradient, streams)
        inputs = tuple(inputs_met(rule, op))
        for slot in parameters_met(rule, op):
            met = self._parameters_above(operation, [slot]) & self._parameters_above(operation, inputs)
            if not met or not streams & RESIDUALS:
                continue  # the block is between different parameters
            if cross_block_missing(rule, op):
                raise UnsupportedOpError(
                    f"{operation.target} in {operation.source}: its input and its '{slot}' depend on one parameter "
                    f"({', '.join(sorted(met))}), and there is no rule for the Hessian's cross terms between them; "
                    "freeze it or ask for other quantities")
            self._birth(operation, cross_block(rule, op, slot), (*inputs, slot), gradient, streams,
                        None if apart else frozenset(met))

    def _births_in_blocks(self, operation: Operation, residual: Factor, own: Mapping[str, Block],
                          slots: tuple[str, ...], gradient: Piece, streams: AbstractSet[str]) -> None:
        """Columns for the parameters that two of the arguments depend on, and the blocks on the diagonal for others."""
        met = self._met_twice(operation, slots)
        self._birth(operation, residual, slots, gradient, streams, met)
        for slot in slots:
            others = frozenset(self._parameters_above(operation, [slot]) - met)
            if slot in own and others:
                self._birth(operation, Diagonal(own[slot]), (slot,), gradient, streams,
                            others if met else None)

    def _never_negative(self, operation: Operation) -> list[str]:
        """Arguments that are known to be so."""
        return [slot for slot, value in operation.tensors.items() if value.name in self.matched.never_negative]

    def _parameters_above(self, operation: Operation, slots: Iterable[str]) -> set[str]:
        """Names of the trainable parameters that these arguments depend on."""
        return set().union(*[self.matched.parameters_above[operation.tensors[slot].name] for slot in slots])

    def _met_twice(self, operation: Operation, slots: Iterable[str]) -> frozenset[str]:
        """The keys of parameters that two of these arguments depend on, or more."""
        above = [self._parameters_above(operation, [slot]) for slot in slots]
        return frozenset(key for key in set().union(*above) if sum(key in keys for keys in above) > 1)

    def _birth(self, operation: Operation, residual: Residual, slots: tuple[str, ...], gradient: Piece,
               asked: AbstractSet[str], only: frozenset[str] | None = None) -> None:
        """`only`: for these parameters alone; None: for all."""
        streams = asked & ({GGN, GGN_MC, KFRA} if operation.source.in_loss else RESIDUALS)
        if isinstance(residual, Pieces) and streams:
            raise UnsupportedOpError(f"{operation.target} in {operation.source}: its rule is about first derivatives "
                                     "alone, and it was not taken apart")
        if isinstance(residual, Zero) or not slots or only == frozenset():
            return
        signed = schemes.is_signed(self.curvature)
        if operation.source.in_loss:
            rule = self.rules[operation.name]
            assert isinstance(rule, Rule)
            slope = self.slopes.get(operation.name)
            own = static_op(operation, self.active)
            signed = slope is None or slope != curvature_sign(rule, own, self._never_negative(operation))
        for stream in sorted(streams):
            draws = 0
            if isinstance(residual, Diagonal):
                piece = self._piece(PREFIX[stream], stream, DIAGONAL_FORM, 0, signed, only)
            else:
                count = residual.count(self._static(operation))
                kinds = schemes.signs_kept(self.curvature)
                if stream == RESIDUAL_MC and residual.drawn is not None and count > len(kinds) * self.mc_samples:
                    draws = self.mc_samples
                    count = len(kinds) * draws
                piece = self._piece(PREFIX[stream], stream, COLUMNS, count, signed, only)
            self.steps.append(Birth(operation, piece, gradient, slots, residual, draws,
                                    self.one_by_one or stream == RESIDUAL_PARTS))
            values = list({operation.tensors[slot].name: operation.tensors[slot] for slot in slots}.values())
            if stream == RESIDUAL_MC and not draws and self._is_sampled_at_once(piece, values):
                piece = self._sampled(values, piece)
            for value in values:
                self._arrive(value, piece)

    def _is_sampled_at_once(self, piece: Piece, values: Iterable[Value]) -> bool:
        """Whether a residual's own columns, where it is no diagonal, are drawn for where they are born: unless they are
        as few as what would be drawn, or too many to be there at once."""
        if piece.form != COLUMNS or piece.columns <= self._drawn(piece):
            return False
        each = piece.columns * sum(math.prod(value.sample_shape) for value in values) * self.itemsize
        return decided("drawn at birth", lambda: each <= self.resources.limits.drawn_bytes)

    def _sampled(self, values: Iterable[Value], piece: Piece) -> Piece:
        """The residual's columns replaced by random-sign sums of its positive and of its negative ones."""
        into = self._piece(PREFIX[piece.stream], piece.stream, COLUMNS, self._drawn(piece), piece.signed, piece.only)
        for value in values:
            self.steps.append(Sample(value, (piece,), into))
        return into

    def _drawn(self, piece: Piece) -> int:
        """How many columns are drawn in place of a piece."""
        return self.mc_samples * (2 if piece.signed else 1)
