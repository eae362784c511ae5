"""Where an operation has no slope, as a norm at zero, curvature must not get lost in the 0 that stands for it.

No gradient may arrive there, as of (|x| - 0)^2 at 0, and yet the loss is curved.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import reduce
from typing import Any

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.plan.steps import Birth, Piece, Pull, Sample, Widen
from hbpcompiler.compiler.routes import COLUMNS, DIAGONAL_FORM
from hbpcompiler.quantities import GGN, GGN_MC, KFRA, RESIDUAL, RESIDUAL_MC, RESIDUAL_PARTS
from hbpcompiler.rule import Factor

CURVATURE = (GGN, GGN_MC, KFRA, RESIDUAL, RESIDUAL_MC, RESIDUAL_PARTS)


def gradient_at(backward: Backward, step: Birth) -> Any:
    """The gradient [N, 1, *out] that a residual is made under: NaN at an edge that curvature arrives at."""
    gradient = backward.columns[step.operation.name, step.gradient.name]
    if not isinstance(step.residual, Factor) or step.residual.edge is None:
        return gradient
    found = [_curved(backward, step, piece) for piece in _arriving(backward, step)]
    if not found:
        return gradient
    edge = step.residual.edge(backward.ops[step.operation.name])
    known = [curved for curved in found if curved is not None]
    if len(known) == len(found):
        edge = edge & reduce(operator.or_, known)
    return gradient.masked_fill(edge.unsqueeze(1), math.nan)


def _arriving(backward: Backward, step: Birth) -> Iterator[Piece]:
    """The pieces of curvature that cross the operation; of those that are drawn there, which is done later, those that
    they are drawn for."""
    steps, place = list(backward.plan.flat()), step.operation.name
    drawn = {own.into.name: own.pieces for own in steps if isinstance(own, Sample) and own.value.name == place}
    crossing = {own.piece.name: own.piece for own in steps
                if isinstance(own, Pull | Widen) and own.operation.name == place and own.piece.stream in CURVATURE}
    for name, piece in crossing.items():
        yield from drawn.get(name, [piece])


def _curved(backward: Backward, step: Birth, piece: Piece) -> Any | None:
    """[N, *out]: where a piece has any curvature; None where that is not at hand: a loop has it, or will make it."""
    place = step.operation.name, piece.name
    if place not in backward.columns or place in backward.positions:
        return None
    columns = backward.columns[place]
    if piece.form == DIAGONAL_FORM:
        return columns != 0
    return (columns != 0).any(1) if piece.form == COLUMNS else None
