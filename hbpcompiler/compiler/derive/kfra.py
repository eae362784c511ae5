"""KFRA: the loss Hessian averaged over the batch, and its way back through an operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hbpcompiler.compiler.plan.steps import Average
from hbpcompiler.compiler.routes import COLUMNS
from hbpcompiler.compiler.trace.graph import Operation
from hbpcompiler.rule import Op, Rule

if TYPE_CHECKING:
    from hbpcompiler.compiler.derive.backward import Backward



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
