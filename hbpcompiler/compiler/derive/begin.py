"""Where columns begin: at the loss, and at every operation that has a curvature of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from hbpcompiler import schemes
from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.edges import gradient_at
from hbpcompiler.compiler.derive.residuals import columns_under, diagonal_under
from hbpcompiler.compiler.derive.sample import random_signs
from hbpcompiler.compiler.match.losses.endings import multiples
from hbpcompiler.compiler.plan.steps import PREFIX, Birth, Seed, SeedOutput
from hbpcompiler.compiler.program.writer import named, otherwise_named
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM
from hbpcompiler.compiler.trace.graph import Operation, Value
from hbpcompiler.quantities import GGN_MC, GRADIENT
from hbpcompiler.rule import Diagonal, Factor, LossRule, Op
from hbpcompiler.rule.position_columns import positionwise


def seed(backward: Backward, step: Seed) -> None:
    """The loss's own columns, diagonal or gradient, at its input."""
    rule, op, piece = backward.matched.rules[step.operation.name], backward.ops[step.operation.name], step.piece
    assert isinstance(rule, LossRule)
    value = step.operation.tensors[rule.input]
    residual = rule.residual_of(op)
    factor = _multiple(backward, step.operation)
    if piece.stream == GRADIENT:
        columns = rule.gradient(op).unsqueeze(1)
        columns = columns if factor is None else columns * factor
        backward.arrive(value, piece, backward.weighted(columns))
        return
    if factor is not None and piece.form == DIAGONAL_FORM:
        assert isinstance(residual, Diagonal)
        backward.arrive(value, piece, backward.weighted(residual.diagonal(op) * factor))
        return
    elif piece.form == COLUMNS and piece.stream == GGN_MC and rule.sample is not None:
        columns = rule.sample(op, backward.plan.mc_samples)
    elif isinstance(residual, Diagonal):
        columns = residual.diagonal(op)
    else:
        assert isinstance(residual, Factor)
        columns = _columns(backward, step, residual, op, value)
    if factor is not None:
        factor = columns.new_ones(()) * factor if piece.signed else factor  # a number has no sign()
        columns = columns * (factor.abs().sqrt() if piece.signed else factor**0.5)
        if piece.signed:
            backward.set_signs(piece, columns.new_ones(columns.shape[:2]) * factor.sign(), columns, value.name)
    elif piece.signed:
        backward.set_signs(piece, None, columns, value.name)
    if piece.form == COLUMNS:
        columns = named(columns, f"{PREFIX[piece.stream]}_{backward.matched.names[value.name]}_unweighted")
    backward.arrive(value, piece, backward.weighted(columns, root=piece.form == COLUMNS))


def _columns(backward: Backward, step: Seed, residual: Factor, op: Op, value: Value) -> Any:
    """All of a loss's columns; or those of each position alone, of which a loop makes them."""
    if not step.by_position:
        (columns,) = residual.factor(op)[0].values()
        return columns
    assert residual.by_position is not None
    backward.positions[value.name, step.piece.name] = value.sample_shape[1:]
    return residual.by_position(op)


def at_all_positions(backward: Backward, place: tuple[str, str], columns: Any) -> Any:
    """A loop's columns as columns of a sample, where they are those of each position alone so far."""
    positions = backward.positions.get(place)
    return columns if positions is None else positionwise(columns, positions)


def seed_output(backward: Backward, step: SeedOutput) -> None:
    """Unit columns at the model's output, the same for every sample."""
    output, shape = backward.ops[step.value.name].output, step.value.sample_shape
    unit = backward.writer.call(torch.eye, math.prod(shape), dtype=output.dtype, device=output.device)
    unit = unit.reshape(1, math.prod(shape), *shape)
    backward.arrive(step.value, step.piece, unit.repeat(backward.batch, *[1] * (1 + len(shape))))


def _multiple(backward: Backward, operation: Operation) -> Any:
    """What this reduction's l_n is multiplied by in the loss; None for 1."""
    if operation.name not in backward.multiples:
        ending, graph, rules = backward.matched.ending, backward.matched.graph, backward.matched.rules
        known = ending.multiples
        live = multiples(graph, rules, lambda own: backward.ops[own.name], backward.batch, ending.kind, _one(backward))
        backward.multiples = {name: known[name] if isinstance(known[name], float) else live[name] for name in live}
    found = backward.multiples[operation.name]
    return None if isinstance(found, float) and found == 1 else found


def _one(backward: Backward) -> Any:
    """The number that is sent back; as a tensor where it meets a number of another dtype, which 1.0 would take on."""
    tail, dtype = backward.matched.ending.tail, backward.matched.graph.loss.dtype
    others = any(value.dtype != dtype for operation in tail for value in operation.tensors.values())
    return backward.ops[tail[-1].name].output.new_ones(()) if others else 1.0


def _name_second_derivative(made: Any, gradient: Any, name: str) -> None:
    """Of a residual g y''(x): what stands beside the gradient."""
    reads = made.node.all_input_nodes
    if len(reads) == 2 and gradient.node in reads:
        (second,) = (read for read in reads if read is not gradient.node)
        otherwise_named(fx.Proxy(second), f"dd_{name}")


def birth(backward: Backward, step: Birth, numbers: Any = None, given: Any = None) -> None:
    """An operation's own curvature under the gradient that has arrived: its residual, at its inputs.

    `numbers` [k]: of which columns; None: of all. `given`: the gradient [N, 1, *out]; None: the one that has arrived.
    """
    op, piece, residual = backward.ops[step.operation.name], step.piece, step.residual
    op = op.counted_one_by_one() if step.one_by_one else op
    gradient = (gradient_at(backward, step) if given is None else given).squeeze(1)
    carried = {slot: step.operation.tensors[slot] for slot in step.slots}
    scheme = schemes.HESSIAN if step.operation.source.in_loss else backward.plan.curvature
    if isinstance(residual, Diagonal):
        (value,) = carried.values()
        made = residual.diagonal(op, gradient)
        _name_second_derivative(made, gradient, backward.matched.names[step.operation.name])
        backward.arrive(value, piece, diagonal_under(scheme, made))
        return
    assert isinstance(residual, Factor)
    if step.draws:
        for slot, columns in _drawn(backward, step, residual, op, gradient).items():
            if slot in carried:
                backward.arrive(carried[slot], piece, columns)
        return
    if numbers is None:
        found, signs = residual.factor(op, gradient)
    else:
        assert residual.some is not None
        found, signs = residual.some(op, gradient, numbers)
    backward.set_signs(piece, signs, next(iter(found.values())), step.operation.name)
    for slot, value in carried.items():
        axes = len(value.sample_shape)
        backward.arrive(value, piece, columns_under(scheme, found[slot], signs, axes))


def _drawn(backward: Backward, step: Birth, residual: Factor, op: Op, gradient: Any) -> Mapping[str, Any]:
    """Random sums of the residual's columns: of those that count +, then of those that count -."""
    assert residual.drawn is not None
    draws, kinds = step.draws, schemes.signs_kept(backward.plan.curvature)
    share = draws**-0.5

    def noise(*shape: int) -> Any:
        signs = random_signs(backward, gradient, step.operation.name, (draws, *shape), born=True)
        return signs if draws == 1 else signs * share

    found = residual.drawn(op, gradient, noise)
    if len(kinds) == 1:
        found = {slot: columns[:, :draws] for slot, columns in found.items()}
    if step.piece.signed:
        plus = gradient.new_ones([backward.batch, draws])
        backward.set_signs(step.piece, torch.cat([plus, -plus], 1), plus, step.operation.name)
    return found
