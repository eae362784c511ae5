"""Pieces cross operations: as they are (`Pull`), or a diagonal as columns from here on (`Widen`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.identity import matrix_of
from hbpcompiler.compiler.match.operation.bind import bind
from hbpcompiler.compiler.plan.steps import PREFIX, Pull, Widen
from hbpcompiler.compiler.program import meta as facts
from hbpcompiler.compiler.program.writer import named, otherwise_named
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM
from hbpcompiler.compiler.trace.graph import Operation, Value, meta
from hbpcompiler.rule import Op, Rule, Structure
from hbpcompiler.rule.bilinear import columns_to
from hbpcompiler.rule.crossing import alive_of, times_slope, times_square


def pull(backward: Backward, step: Pull) -> None:
    """A piece, to one input of an operation."""
    value, piece = step.operation.tensors[step.slot], step.piece
    if (value.name, piece.name) in backward.plan.pools:
        pulled = _pull_pooled(backward, step)
    else:
        pulled = _pulled(backward, step)
    if not facts.wish(pulled.node):
        otherwise_named(pulled, _name(backward, step))
    backward.arrive(value, piece, backward.leaving(step.operation, step.slot, pulled))


def _name(backward: Backward, step: Pull) -> str:
    """What columns are called that go back to an input: as those at the value there; where others have arrived at it,
    which they are added to, as what they are, columns at the operation's result that are taken back."""
    names, value = backward.matched.names, step.operation.tensors[step.slot]
    is_share = (value.name, step.piece.name) in backward.columns
    return f"{PREFIX[step.piece.stream]}_{f'{names[step.operation.name]}_back' if is_share else names[value.name]}"


def _pulled(backward: Backward, step: Pull) -> Any:
    rule, op, form = backward.rule_of(step.operation), backward.ops[step.operation.name], step.piece.form
    value = step.operation.tensors[step.slot]
    arrived = backward.columns[step.operation.name, step.piece.name]
    jac_t = backward.jac_t(step.operation, step.slot)
    # Where values lie pixel by pixel, cotangents may not: a kernel on both is slower than a product in place.
    mixed = backward.plan.by_pixels and rule.elementwise_in(op) and _may_be_image(backward, value)
    # More columns than these meet the local derivative: it is there then, and no kernel makes it again.
    serves_others = rule.elementwise_in(op) and (step.operation.name, step.slot) in backward.crossed_by_many
    known = backward.knows_slope(step.operation) or serves_others
    if step.slot in rule.backward and backward.is_single(step.piece) and not mixed and not known:
        row = rule.backward[step.slot](op, arrived.squeeze(1))
        return otherwise_named(row, f"{_name(backward, step)}_row").unsqueeze(1)
    if form == COLUMNS and rule.elementwise_in(op):
        return times_slope(arrived, backward.derivative(step.operation))
    if form == COLUMNS:
        return jac_t(arrived)
    if form == DIAGONAL_FORM and rule.elementwise_in(op):
        return times_square(arrived, backward.derivative(step.operation))
    if form == DIAGONAL_FORM:
        return jac_t(arrived.unsqueeze(1)).squeeze(1)  # coefficients 0 and 1 are their own squares
    return _pull_matrix(backward, step, arrived)


IMAGE = 3
"""Axes of a sample that may lie pixel by pixel."""


def _may_be_image(backward: Backward, value: Value) -> bool:
    """Whether a value may lie pixel by pixel: it has an image's axes and is not made by a matrix product."""
    if len(value.sample_shape) != IMAGE:
        return False
    maker = backward.matched.graph.makers.get(value.name)
    op = None if maker is None else backward.ops.get(maker.name)
    rule = None if maker is None else backward.matched.rules.get(maker.name)
    if op is None or not isinstance(rule, Rule):
        return True
    return rule.layout is not None or rule.structure_of(op) is not Structure.CONSTANT


def _pull_pooled(backward: Backward, step: Pull) -> Any:
    """The columns behind a pool, kept as they were before it too; what is elementwise scales the few entries."""
    piece, value = step.piece, step.operation.tensors[step.slot]
    pool = backward.plan.pools[value.name, piece.name]
    op, name = backward.ops[step.operation.name], backward.matched.names[value.name]
    if step.operation is pool:
        arrived = backward.columns[step.operation.name, piece.name]
        index = named(backward.rule_of(pool).selected(op), f"index_{name}")
        columns = arrived.flatten(3) if len(pool.output.sample_shape) > 2 else arrived
    else:
        before, index = backward.pooled[step.operation.name, piece.name]
        slope = backward.derivative(step.operation)
        alive = alive_of(slope)

        def at_places(whole: Any) -> Any:
            return (whole.flatten(2) if len(value.sample_shape) > 2 else whole).gather(2, index)

        own = at_places(slope)
        columns = times_slope(before, own, own if alive is slope else None if alive is None else at_places(alive))
    backward.pooled[value.name, piece.name] = named(columns, f"pooled_{PREFIX[piece.stream]}_{name}"), index
    return backward.jac_t(pool, "self")(columns.unflatten(3, pool.output.sample_shape[1:]))


def _pull_matrix(backward: Backward, step: Pull, average: Any) -> Any:
    """KFRA's step, the average over n of J_n^T G J_n (BackPACK paper, eq. 24a)."""
    operation, op = step.operation, backward.ops[step.operation.name]
    if backward.rule_of(operation).elementwise_in(op):
        derivative = backward.derivative(operation).reshape(-1, math.prod(op.shape("output")))
        return average * (backward.weighted(derivative, average=True).t() @ derivative / backward.batch)
    jacobian = matrix(backward, operation, step.slot, op)
    if jacobian is not None:
        return jacobian.t() @ average @ jacobian
    jac_t = backward.jac_t(operation, step.slot)
    outer, inner = op.shape("output"), operation.tensors[step.slot].sample_shape
    size, inner_size = math.prod(outer), math.prod(inner)
    half = average.reshape(1, size, *outer)
    if _same_for_all(backward, operation, step.slot):
        half = jac_t(half).reshape(size, inner_size).t()
        return jac_t(half.reshape(1, inner_size, *outer)).reshape(inner_size, inner_size)
    half = jac_t(half.expand(backward.batch, size, *outer)).reshape(-1, size, inner_size).transpose(1, 2)
    each = jac_t(half.reshape(-1, inner_size, *outer)).reshape(-1, inner_size, inner_size)
    return backward.weighted(each, average=True).mean(0)


def widen(backward: Backward, step: Widen) -> None:
    """A diagonal, to one input of an operation, as a column for each of its coordinates."""
    value = step.operation.tensors[step.slot]
    root = root_of(backward, step)
    rows = matrix(backward, step.operation, step.slot, backward.ops[step.operation.name])
    if rows is not None:
        columns = over(root, value) * rows
    else:
        size = math.prod(step.operation.output.sample_shape)
        columns = born(backward, step, root, unit_vectors(backward, step, size, root))
    backward.arrive(value, step.into, columns)


def root_of(backward: Backward, step: Widen) -> Any:
    """sqrt|r| as [N, K], and the signs of r."""
    size = math.prod(step.operation.output.sample_shape)
    diagonal = otherwise_named(backward.columns[step.operation.name, step.piece.name].reshape(-1, size), "_entries")
    value = step.operation.output
    if not step.piece.signed:
        return backward.rounded(diagonal.sqrt(), value, step.into)
    if step.into.name not in backward.signs:
        backward.signs[step.into.name] = named(diagonal.sign(), f"sign_{backward.matched.names[value.name]}")
    return backward.rounded(diagonal.abs().sqrt(), value, step.into)


def unit_vectors(backward: Backward, step: Widen, size: int, like: Any) -> Any:
    """e_k as rows [size, size] at the operation's output, of the dtype and on the device of `like`."""
    unit = backward.writer.call(torch.eye, size, dtype=like.dtype, device=like.device)
    return otherwise_named(unit, f"identity_{backward.matched.names[step.operation.name]}")


def over(root: Any, value: Value) -> Any:
    """[N, K] -> [N, K, 1, ...], to scale rows [K, *value]."""
    for _ in value.sample_shape:
        root = root.unsqueeze(-1)
    return root


def born(backward: Backward, step: Widen, root: Any, unit: Any) -> Any:
    """Columns [N, K, *in] from roots [N, K] and unit vectors [K, out flattened]."""
    outer, jac_t = step.operation.output.sample_shape, backward.jac_t(step.operation, step.slot)
    value = step.operation.tensors[step.slot]
    if _same_for_all(backward, step.operation, step.slot):
        # Once for all samples.
        units = unit.unsqueeze(0).reshape(1, -1, *outer)
        rows = jac_t(otherwise_named(units, f"identity_{backward.matched.names[step.operation.name]}"))
        otherwise_named(rows, f"jacobian_{backward.matched.names[value.name]}")
        return over(root, value) * rows
    scaled = root.unsqueeze(-1) * unit
    return jac_t(scaled.reshape(scaled.shape[0], -1, *outer))


class _ReadsSamplesError(Exception):
    pass


def _same_for_all(backward: Backward, operation: Operation, slot: str) -> bool:
    """Whether the Jacobian reads nothing that has a sample axis: then one application serves the batch."""
    columns = torch.empty((1, 1, *operation.output.sample_shape), dtype=operation.output.dtype, device="meta")
    try:
        _without_samples(backward, operation, slot)(columns)
    except _ReadsSamplesError:
        return False
    return True


def matrix(backward: Backward, operation: Operation, slot: str, op: Op) -> Any | None:
    """[out, in]: what multiplies columns there, the same matrix for all samples, if that is all that happens."""
    try:
        seen = matrix_of(_without_samples(backward, operation, slot), operation.output.sample_shape)
    except _ReadsSamplesError:
        return None
    if seen is None:
        return None
    return matrix_of(columns_to(backward.rule_of(operation), op, slot), operation.output.sample_shape)


def _without_samples(backward: Backward, operation: Operation, slot: str) -> Callable[[Any], Any]:
    """The transposed Jacobian on meta tensors; _ReadsSamplesError if it reads one that has a sample axis."""

    def tensors(name: str) -> Any:
        value = operation.tensors.get(name)
        if value is None or value.batched:
            raise _ReadsSamplesError
        return meta(value)

    return columns_to(backward.rule_of(operation), bind(operation, tensors, backward.matched.active), slot)
