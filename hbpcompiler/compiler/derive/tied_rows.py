"""Looked-up rows of a parameter meet what it has from the uses that multiply with it."""

from __future__ import annotations

from typing import Any

import torch

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.derive.close import add, joined_columns, name_of
from hbpcompiler.compiler.plan.steps import PREFIX, TiedRows
from hbpcompiler.compiler.program.writer import named
from hbpcompiler.compiler.routes import Use
from hbpcompiler.compiler.routes.building_blocks import positions_at
from hbpcompiler.quantities import NORM, Closing
from hbpcompiler.rule import Contraction, Op
from hbpcompiler.rule.idioms import add_rows_


def tied_rows(backward: Backward, step: TiedRows) -> None:
    """Norms add up as those of any two uses; to sums of squares the rows are added in place. Neither falls below zero
    by rounding, where both uses cancel."""
    op = _both(backward, step)
    signs = backward.signs_like(op.output, step.piece)
    use = Use(backward.writer, op, Contraction(step.site.equation, operand=lambda op: op.operand), op.output, signs,
              backward.batch)
    closings = backward.closed[step.parameter.key]
    with backward.writer.about(f"{PREFIX[step.piece.stream]}_{backward.matched.names[step.parameter.name]}"):
        for choice in step.choices:
            for kind, result in choice.route.write(step.site, use, choice.kinds).items():
                closing = Closing(step.piece.stream, kind)
                if kind == NORM:
                    add(backward, step, kind, torch.maximum(result, -closings[closing]))
                    continue
                rows = backward.precision.widened(result, step.parameter.dtype)
                total = add_rows_(closings[closing], op.places, rows, None if step.site.signed else 0.0)
                closings[closing] = named(total, name_of(backward, step.parameter, closing))


def _both(backward: Backward, step: TiedRows) -> Op:
    """The tensors that `RowsOfBoth` reads: columns and index of the rows, columns and operand of the product."""
    index, operands = [], []
    multiplied = [use for use in step.uses if use.contraction.index is None]
    for use in step.closed:
        assert use.contraction.index is not None
        found = use.contraction.index(backward.ops[use.operation.name])
        index.append(found if use.site.has_positions else found.unsqueeze(1))
    for use in multiplied:
        assert use.contraction.operand is not None
        operands.append(positions_at(use.contraction.operand(backward.ops[use.operation.name]), use.site.letters[1], 1))
    tensors: dict[str, Any] = {
        "output": joined_columns(backward, step.closed, step.piece), "places": _beside(index, 1),
        "multiplied": joined_columns(backward, multiplied, step.piece), "operand": _beside(operands, 1)}
    return Op(tensors, {}, dict.fromkeys(tensors, ()), batched=frozenset(tensors))


def _beside(parts: list[Any], axis: int) -> Any:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
