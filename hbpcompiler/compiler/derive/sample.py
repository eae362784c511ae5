"""What Monte-Carlo quantities make of curvature that names no distribution: random-sign sums of its columns."""

from __future__ import annotations

import math
from typing import Any

import torch

from hbpcompiler.compiler.derive.backward import Backward
from hbpcompiler.compiler.plan.steps import PREFIX, Birth, Sample
from hbpcompiler.compiler.program.draws import signs_of_samples
from hbpcompiler.compiler.program.writer import named, otherwise_named
from hbpcompiler.compiler.routes import COLUMNS

PART = {1.0: "_positive", -1.0: "_negative"}
"""Behind names, by sign: of columns, of what is drawn of them, and of signs themselves."""


def sample(backward: Backward, step: Sample) -> None:
    """Columns s with E[s s^T] the Hessian: random-sign sums of its columns, of each sign apart."""
    count, shape = backward.plan.mc_samples, step.value.sample_shape
    wanted = (1.0, -1.0) if step.into.signed else (1.0,)
    births = {own.piece.name: own.operation.name for own in backward.plan.flat() if isinstance(own, Birth)}
    drawn: list[Any] = []
    for sign in wanted:
        total: Any = None
        for piece in step.pieces:
            if piece.form == COLUMNS and sign < 0 and not piece.signed:
                continue  # its columns have no negative part
            arrived = backward.columns[step.value.name, piece.name]
            if piece.form == COLUMNS:
                flat = arrived.reshape(-1, piece.columns, math.prod(shape))
                if step.into.signed and piece.signed:
                    keep = otherwise_named(backward.signs[piece.name] == sign, PART[sign])
                    flat = otherwise_named(flat * keep.to(flat.dtype).unsqueeze(2), PART[sign])
                if piece.name not in backward.noise:
                    place = births.get(piece.name)
                    backward.noise[piece.name] = random_signs(backward, arrived, place or step.value.name,
                                                              (count, piece.columns), born=place is not None)
                noise = backward.noise[piece.name]
                part = (noise @ flat / math.sqrt(count)).reshape(-1, count, *shape)
            else:
                root = (arrived if sign > 0 else -arrived).clamp(min=0).sqrt().unsqueeze(1)
                part = random_signs(backward, arrived, step.value.name, (count, *shape)) * root / math.sqrt(count)
            total = part if total is None else total + part
        if total is None:  # all that arrives here is positive, where other outputs of the loss have both signs
            total = torch.zeros_like(drawn[0])
        what = PART[sign] if step.into.signed else "_drawn"
        drawn.append(named(total, f"{PREFIX[step.into.stream]}_{backward.matched.names[step.value.name]}{what}"))
    columns = drawn[0] if len(drawn) == 1 else torch.cat(drawn, 1)
    if step.into.signed:
        half = drawn[0].new_ones(drawn[0].shape[:2])
        backward.signs[step.into.name] = named(
            torch.cat([half, -half], 1), f"sign_{backward.matched.names[step.value.name]}")
    backward.arrive(step.value, step.into, columns)


def random_signs(backward: Backward, like: Any, place: str, shape: tuple[int, ...], born: bool = False) -> Any:
    """[N, *shape] of -1 and 1, in the dtype of `like`; of the residual born at a place, or of what arrives there."""
    number, names = backward.number_of_draw(place, born), backward.matched.names
    return named(signs_of_samples(backward.draw_keys(), number, list(shape), like), f"noise_{names[place]}")
