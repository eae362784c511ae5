"""What happens to the loss's curvature where the model ends: KFRA averages it, Monte-Carlo quantities may sample it.

And KFRA's own step backwards, the only one that is taken for the whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hbpcompiler.graph import Operation
from hbpcompiler.routes import COLUMNS
from hbpcompiler.rule import Op, Rule
from hbpcompiler.steps import Average, Sample
from hbpcompiler.writer import named

if TYPE_CHECKING:
    from hbpcompiler.backward import Backward


def average(backward: Backward, step: Average) -> None:
    total: Any = None
    for piece in step.pieces:
        lead = (-1, piece.columns) if piece.form == COLUMNS else (-1,)
        arrived = backward.columns[step.value.name, piece.name].reshape(*lead, math.prod(step.value.sample_shape))
        if piece.form == COLUMNS:
            weighted = arrived * backward.signs[piece.name].unsqueeze(2) if piece.signed else arrived
            part = torch.einsum("nka,nkb->ab", weighted, arrived) / backward.batch
        else:
            part = torch.diag_embed(arrived.mean(0))
        total = part if total is None else total + part
    backward.arrive(step.value, step.into, total)


def sample(backward: Backward, step: Sample) -> None:
    """Columns s with E[s s^T] the Hessian: random-sign sums of its columns, of each sign apart."""
    count, shape = backward.plan.mc_samples, step.value.sample_shape
    wanted = (1.0, -1.0) if step.into.signed else (1.0,)
    drawn = []
    for sign in wanted:
        total: Any = None
        for piece in step.pieces:
            arrived = backward.columns[step.value.name, piece.name]
            if piece.form == COLUMNS:
                flat = arrived.reshape(-1, piece.columns, math.prod(shape))
                if step.into.signed:
                    keep = backward.signs[piece.name] == sign if piece.signed else None
                    flat = flat * (keep.to(flat.dtype).unsqueeze(2) if keep is not None else (sign > 0))
                if piece.name not in backward.noise:
                    backward.noise[piece.name] = _noise(backward, arrived, (count, piece.columns))
                noise = backward.noise[piece.name]
                part = (noise @ flat / math.sqrt(count)).reshape(-1, count, *shape)
            else:
                root = (arrived * sign).clamp(min=0).sqrt().unsqueeze(1)
                part = _noise(backward, arrived, (count, *shape)) * root / math.sqrt(count)
            total = part if total is None else total + part
        drawn.append(total)
    columns = drawn[0] if len(drawn) == 1 else torch.cat(drawn, 1)
    if step.into.signed:
        half = drawn[0].new_ones(drawn[0].shape[:2])
        backward.signs[step.into.name] = named(torch.cat([half, -half], 1), f"sign_{step.into.name}")
    backward.arrive(step.value, step.into, columns)


def _noise(backward: Backward, like: Any, shape: tuple[int, ...]) -> Any:
    bits = backward.writer.call(torch.randint, 0, 2, (backward.batch, *shape), device=like.device)
    return bits.to(like.dtype) * 2 - 1


def pull_matrix(backward: Backward, operation: Operation, slot: str, matrix: Any, rule: Rule, op: Op,
                 jac_t: Callable[[Any], Any]) -> Any:
    """KFRA's step, the average over n of J_n^T G J_n (BackPACK paper, eq. 24a)."""
    if rule.elementwise_in(op):
        derivative = backward.derivative(operation).reshape(-1, math.prod(op.shape("output")))
        return matrix * (derivative.t() @ derivative / backward.batch)
    outer, inner = op.shape("output"), operation.tensors[slot].sample_shape
    size, inner_size = math.prod(outer), math.prod(inner)
    half = matrix.reshape(1, size, *outer)
    if backward.same_for_all(operation, slot):
        half = jac_t(half).reshape(size, inner_size).t()
        return jac_t(half.reshape(1, inner_size, *outer)).reshape(inner_size, inner_size)
    half = jac_t(half.expand(backward.batch, size, *outer)).reshape(-1, size, inner_size).transpose(1, 2)
    return jac_t(half.reshape(-1, inner_size, *outer)).reshape(-1, inner_size, inner_size).mean(0)
