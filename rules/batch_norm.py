"""Batch normalisation with fixed statistics (eval mode): per channel x -> gamma (x - mean) / sqrt(var + eps) + beta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Contraction, Op, Rule, Structure, Tensor


def mixes(op: Op) -> bool:
    """Whether the statistics are the batch's own. The operation without statistics has no such argument for them."""
    return bool(getattr(op, "training", False)) or not op.has("running_mean")


def forward(op: Op) -> Tensor:
    if mixes(op):  # where no derivative passes: values only, and the running statistics stay as they are
        return F.batch_norm(op.input, None, None, op.weight, op.bias, True, 0.0, op.eps)
    return F.batch_norm(op.input, op.running_mean, op.running_var, op.weight, op.bias, False, 0.0, op.eps)


def scale(op: Op) -> Tensor:
    """gamma / sqrt(var + eps), one number per channel, with axes for the positions."""
    factor: Tensor = (op.running_var + op.eps).rsqrt()
    if op.has("weight"):
        factor = op.weight * factor
    positions = len(op.shape("input")) - 1
    return factor.reshape(-1, *[1] * positions) if positions else factor


def params(op: Op) -> Mapping[str, Contraction]:
    positions = len(op.shape("input")) - 1

    def columns_view(op: Op, columns: Tensor) -> Tensor:
        return columns.flatten(3) if positions > 1 else columns

    def operand(op: Op) -> Tensor:
        normalised = F.batch_norm(op.input, op.running_mean, op.running_var, None, None, False, 0.0, op.eps)
        return normalised.flatten(2) if positions > 1 else normalised

    if positions == 0:
        return {"weight": Contraction("nkc,nc->nkc", operand=operand), "bias": Contraction("nkc->nkc")}
    return {
        "weight": Contraction("nkcp,ncp->nkc", columns_view, operand),
        "bias": Contraction("nkcp->nkc", columns_view),
    }


def refuse(op: Op) -> str | None:
    if mixes(op):
        return (
            "batch norm in train mode (or with track_running_stats=False) mixes the samples of a batch, so per-sample "
            "quantities do not exist; call model.eval(), or eval() on that module, which needs running statistics"
        )
    return None


def case(channels: int, *positions: int, affine: bool = True, **attributes: Any) -> Case:
    each = (channels,)
    shapes = {"input": (channels, *positions), "running_mean": each, "running_var": each}
    return Case(
        {**shapes, **({"weight": each, "bias": each} if affine else {})},
        {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False, **attributes},
        make={"running_var": lambda shape: 0.5 + torch.rand(*shape, dtype=torch.float64)},
    )


RULE = Rule(
    operations=[
        "aten._native_batch_norm_legit_no_training",
        "aten._native_batch_norm_legit_functional",
        "aten._native_batch_norm_legit",
        "aten.native_batch_norm",
        "aten.batch_norm",
    ],
    forward=forward,
    jac_t={"input": lambda op, columns: columns * scale(op)},
    params=params,
    residual=ZERO,
    formula="S weight / sqrt(var + eps)",
    structure=Structure.ELEMENTWISE,
    derivative=lambda op: scale(op).expand_as(op.input),
    refuse=refuse,
    cases=[case(3), case(2, affine=False), case(3, 2), case(2, 3, 2, eps=0.1), case(2, 2, 1, 2, affine=False)],
)
