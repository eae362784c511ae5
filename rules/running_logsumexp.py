"""logcumsumexp: at place i the logsumexp of the first i elements, whose softmax p_i is its slope.

The Hessian of sum_i g_i y_i is diag(sum_i g_i p_i) - sum_i g_i p_i p_i^T: a column for each element and each place.
"""

import math

import torch

from hbpcompiler.rule import Case, Factor, Op, Rule, Tensor, called

from .shared.classes import as_columns, axis, classes, classes_last, curved, positions
from .shared.reduced import over_samples


def shares(op: Op) -> Tensor:
    """[N, *positions, i, j]: the softmax of the first i elements."""
    x, y = classes_last(op, op.self), classes_last(op, op.output)
    error = x.unsqueeze(-2) - y.unsqueeze(-1)
    return called("shares", error.clamp(max=0).exp().tril())  # x_j <= y_i wherever j <= i


def jac_t(op: Op, columns: Tensor) -> Tensor:
    last = columns if axis(op) == len(op.shape("self")) - 1 else columns.movedim(axis(op) + 2, -1)
    pulled = (last.unsqueeze(-2) @ shares(op).unsqueeze(1)).squeeze(-2)
    return pulled if axis(op) == len(op.shape("self")) - 1 else pulled.movedim(-1, axis(op) + 2)


def factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    p, g = shares(op), classes_last(op, gradient)
    total = called("total", (g.unsqueeze(-2) @ p).squeeze(-2))
    columns = torch.cat([torch.diag_embed(total.abs().sqrt()), p * g.abs().sqrt().unsqueeze(-1)], -2)
    plus = torch.ones_like(g)
    signs = torch.cat([plus.copysign(total), plus.copysign(-g)], -1)
    signs = signs.movedim(-1, 1).flatten(1) if positions(op) else signs
    return {"self": as_columns(op, columns)}, signs


def count(op: Op) -> int:
    return 2 * classes(op) * math.prod(positions(op))


RULE = Rule(
    operations=["aten.logcumsumexp"],
    forward=lambda op: torch.logcumsumexp(op.self, op.dim),
    jac_t={"self": jac_t},
    residual=curved(Factor(count, factor)),
    formula="sum_i S_i p_i,  p_i = softmax(x_1 .. x_i);  residual: sum_i g_i (diag(p_i) - p_i p_i^T)",
    refuse=over_samples,
    cases=[
        Case({"self": shape}, {"dim": dim})
        for shape, dim in (((4,), 1), ((4,), -1), ((2, 3), 2), ((3, 2), 1), ((2, 3, 2), 2), ((1,), 1))
    ],
)
