"""Pieces end at parameters: the chosen routes write the closings, for one use or for several laid end to end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from hbpcompiler.clipping import ALL
from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.inputs import stream_of_inputs
from hbpcompiler.compiler.plan.phases import Total
from hbpcompiler.compiler.plan.steps import OPERAND, PREFIX, Close, Piece, Tied
from hbpcompiler.compiler.program.grams import mirror_
from hbpcompiler.compiler.program.writer import named
from hbpcompiler.compiler.routes import MATRIX, Use
from hbpcompiler.compiler.routes.building_blocks import positions_at
from hbpcompiler.compiler.routes.histograms import empty_histograms, rows_of
from hbpcompiler.compiler.trace.graph import Value
from hbpcompiler.quantities import (
    ALONG,
    BATCH_DIAGONAL,
    BLOCK,
    COLUMN_SUM,
    CROSS,
    DIAGONAL,
    DIRECTIONS,
    DOT,
    EACH,
    EIGEN,
    FACTOR,
    GRADIENT,
    GRADIENT_EDGES,
    GRAM,
    HISTOGRAM,
    HISTOGRAM_2D,
    HISTOGRAMS,
    IN_BASES,
    INPUT_FACTOR,
    NEGATIVE,
    NORM,
    PARAMETER_EDGES,
    POSITIVE,
    PROJECT,
    REDUCED_FACTOR,
    REDUCED_INPUT_FACTOR,
    SUM,
    TOTALS,
    VECTORS,
    Closing,
)
from hbpcompiler.rule import Contraction, Op

PART = {SUM: "sum", EACH: "each", NORM: "squared_norm", DIAGONAL: "squares", POSITIVE: "positive", NEGATIVE: "negative",
        FACTOR: "B", INPUT_FACTOR: "A", REDUCED_FACTOR: "reduced_B", REDUCED_INPUT_FACTOR: "reduced_A",
        BATCH_DIAGONAL: "each_square", VECTORS: "vectors", DOT: "dot", GRAM: "gram", CROSS: "cross",
        PROJECT: "projected", COLUMN_SUM: "column_sum", IN_BASES: "basis_squares",
        ALONG: "along", HISTOGRAM: "histogram", HISTOGRAM_2D: "histogram_2d"}
"""How a closing is named in generated code."""


def close(backward: Backward, step: Close) -> None:
    """A piece, or the operand alone, at one use of a parameter."""
    op, contraction, signs, alone = backward.ops[step.operation.name], step.contraction, None, None
    if step.piece is None:
        op, contraction, stream = stream_of_inputs(backward, step.operation, op, contraction)
    else:
        stream = backward.columns[step.operation.name, step.piece.name]
        if step.pooled:
            stream, index = backward.pooled[step.operation.name, step.piece.name]
            op = op.with_tensor("pooled_index", index)
        if step.piece.form == MATRIX and contraction.index is not None:  # samples' own places learn nothing
            stream = backward.weighted(stream.expand(backward.batch, -1, -1), average=True)
        signs = backward.signs_like(stream, step.piece)
        if EIGEN in step.kinds and step.site.features:
            own, its, inputs = stream_of_inputs(backward, step.operation, op, contraction, rounded=False)
            alone = Use(backward.writer, own, its, inputs, None, backward.batch, step.slot, backward.plan.by_pixels)
    other = backward.columns[step.operation.name, step.other.name] if CROSS in step.kinds and step.other else None
    _write(backward, step, Use(backward.writer, op, contraction, stream, signs, backward.batch, step.slot,
                               backward.plan.by_pixels, other, alone=alone))


def tied(backward: Backward, step: Tied) -> None:
    """Columns and operands of all uses, laid end to end along p, then closed like those of one use."""
    rights = []
    for use in step.uses:
        op, (_, right, _) = backward.ops[use.operation.name], use.site.letters
        if use.contraction.operand is not None:
            rights.append(positions_at(use.contraction.operand(op), right, 1))
    joined = {"output": joined_columns(backward, step.uses, step.piece)}
    if rights:
        joined["operand"] = torch.cat(rights, 1)
    op = Op(joined, {}, dict.fromkeys(joined, ()), batched=frozenset(joined))
    contraction = Contraction(step.site.equation, operand=(lambda op: op.operand) if rights else None)
    signs = backward.signs_like(joined["output"], step.piece)
    other = joined_columns(backward, step.uses, step.other) if CROSS in step.kinds and step.other else None
    whole = Use(backward.writer, op, contraction, joined["output"], signs, backward.batch, other=other)
    if EIGEN in step.kinds and rights:
        inputs = backward.weighted(joined["operand"], root=True, average=True)
        whole = replace(whole, alone=replace(whole, op=op.with_tensor("operand", inputs), stream=inputs))
    _write(backward, step, whole)


def joined_columns(backward: Backward, uses: Sequence[Close], piece: Piece) -> Any:
    """A piece's columns at these uses, [n, k, p, ...]."""
    parts = []
    for use in uses:
        op = backward.ops[use.operation.name]
        columns = use.contraction.columns(op, backward.columns[use.operation.name, piece.name])
        parts.append(positions_at(columns, use.site.letters[0], 2))
    return torch.cat(parts, 2)


def _write(backward: Backward, step: Close | Tied, use: Use) -> None:
    stream = PREFIX[step.piece.stream] if step.piece is not None else OPERAND
    with use.writer.about(f"{stream}_{backward.matched.names[step.parameter.name]}"):
        for choice in sorted(step.choices, key=lambda choice: ALONG in choice.kinds):  # once the sum is there
            site, given = backward.precision.closing(step.piece, choice.kinds, step.parameter.dtype, step.site, use)
            if choice.kinds & {DOT, *TOTALS}:
                given = _with_totals(backward, step, given, choice.kinds & {DOT, *TOTALS})
            if ALONG in choice.kinds:
                given = replace(given, total=backward.closed[step.parameter.key][Closing(GRADIENT, SUM)])
            if choice.kinds & HISTOGRAMS:
                given = _with_histograms(backward, step, given, choice.kinds & HISTOGRAMS)
            if IN_BASES in choice.kinds:
                given = replace(given, bases=backward.bases(step.parameter.key))
            for kind, result in choice.route.write(site, given, choice.kinds).items():
                add(backward, step, kind, result)


def _with_totals(backward: Backward, step: Close | Tied, use: Use, kinds: Iterable[str]) -> Use:
    """With the inner products so far, the group's or zeros, that are added to; and the parameter's directions."""
    assert step.piece is not None
    found, count = {}, step.piece.columns
    rows = backward.batch * count
    if PROJECT in kinds:
        directions = named(backward.arguments[DIRECTIONS][step.parameter.key],
                           f"direction_{backward.matched.names[step.parameter.name]}")
        shape = step.site.shape
        use = replace(use, directions=directions if step.parameter.sample_shape == shape
                      else directions.reshape(_rows(directions, 0, shape), *shape))
    for kind in sorted(kinds):
        known = backward.totals.get(_group(backward, step), {}).get(Closing(step.piece.stream, kind))
        if known is None or kind not in TOTALS:
            shape = (rows, backward.batch) if kind == CROSS else (rows, rows)
            if kind == PROJECT:
                shape = (backward.batch, count, use.directions.shape[0])
            known = named(use.stream.new_zeros(shape), _called(backward, step, kind))
        found[kind] = known
    return replace(use, totals=found)


def _with_histograms(backward: Backward, step: Close | Tied, use: Use, kinds: Iterable[str]) -> Use:
    """With counts of nothing, and the edges that a call gives."""
    edges, parameter_edges = (backward.arguments.get(name) for name in (GRADIENT_EDGES, PARAMETER_EDGES))
    counts = empty_histograms(use.stream, tuple(kinds), edges, parameter_edges)
    rows = None
    if HISTOGRAM_2D in kinds:
        parameter = backward.parameters[step.parameter.key].reshape(step.site.shape)
        rows = named(rows_of(parameter, parameter_edges), f"rows_{backward.matched.names[step.parameter.name]}")
    counts = {kind: named(count, _called(backward, step, kind)) for kind, count in counts.items()}
    return replace(use, totals={**use.totals, **counts}, edges=edges, rows=rows)


def _called(backward: Backward, step: Close | Tied, kind: str) -> str:
    """A closing's name in generated code; that of a total begins with its group's."""
    stream = "" if step.piece is None else step.piece.stream
    if kind in TOTALS:
        return f"{_group(backward, step)}_{PART[kind]}_{stream}"
    return f"{PART[kind]}_{stream}_{backward.matched.names[step.parameter.name]}"


def _group(backward: Backward, step: Close | Tied) -> str:
    """The group of parameters whose totals a closing is part of."""
    return backward.plan.chosen.group_of(step.parameter.key) or ""


def add(backward: Backward, step: Close | Tied, kind: str, result: Any) -> None:
    """Several pieces of a stream end at one parameter: their closings add up, or are kept one by one."""
    if kind in TOTALS:
        assert step.piece is not None
        totals = backward.totals.setdefault(_group(backward, step), {})
        totals[Closing(step.piece.stream, kind)] = named(result, _called(backward, step, kind))
        return
    if kind == DOT:
        result = mirror_(named(result, _called(backward, step, kind)))
    result = _shaped(step, kind, result)
    if backward.precision.concerns(step.piece):
        result = backward.precision.widened(result, step.parameter.dtype)
    put(backward, step.parameter, Closing("" if step.piece is None else step.piece.stream, kind), result)


def put(backward: Backward, parameter: Value, closing: Closing, result: Any) -> None:
    """A parameter's closing, beside those of its other pieces, and in the totals that it is a part of."""
    closings, kind = backward.closed.setdefault(parameter.key, {}), closing.kind
    if kind in (BLOCK, EIGEN):
        closings[closing] = (*closings.get(closing, ()), result)
        return
    if closing not in closings:
        added = result
    elif kind == VECTORS:
        added = torch.cat([closings[closing], result], 1)
    else:
        added = closings[closing] + result
    closings[closing] = named(added, name_of(backward, parameter, closing))
    for total in backward.plan.sums:
        if total.closing == closing and parameter.key in total.parameters:
            backward.sums[total] = _added(backward, total, result)
            if total.group == ALL:
                backward.closed_of_batch[closing] = backward.sums[total]


def name_of(backward: Backward, parameter: Value, closing: Closing) -> str:
    """What a parameter's closing is called, once all its pieces are there."""
    stream = [closing.stream.removeprefix("sum_")] if closing.stream else []  # a column_sum, of sum_ggn
    return "_".join([PART[closing.kind], *stream, backward.matched.names[parameter.name]])


def _added(backward: Backward, total: Total, result: Any) -> Any:
    """A total with one more closing; it is one tensor from its first closing on, unless dtypes differ."""
    if len(total.parameters) == 1 and total not in backward.sums:
        return result
    if total not in backward.sums:
        added = result.clone()
    else:
        added = backward.sums[total] + result if backward.matched.mixed else backward.sums[total].add_(result)
    return named(added, f"total_{PART[total.closing.kind]}_{total.closing.stream}")


def _rows(result: Any, axis: int, shape: Sequence[int]) -> Any:
    """The length of an axis, as it is written; of a parameter without numbers torch would not find it."""
    return result.shape[axis] if 0 in shape else -1


def _shaped(step: Close | Tied, kind: str, result: Any) -> Any:
    """The closing in its parameter's shape, where the contraction has another."""
    shape = step.parameter.sample_shape
    if step.site.shape == shape:
        return result
    if kind in (EACH, BATCH_DIAGONAL, COLUMN_SUM):
        return result.reshape(_rows(result, 0, shape), *shape)
    if kind == VECTORS:
        return result.reshape(result.shape[0], _rows(result, 1, shape), *shape)
    return result.reshape(shape) if kind in (SUM, DIAGONAL, POSITIVE, NEGATIVE) else result
