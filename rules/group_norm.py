"""Group norm and instance norm: groups of channels, with all their positions, are standardised sample by sample."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Contraction, Layout, Op, Residual, Rule, Shape, Structure, Tensor

from . import batch_norm
from .shared.standardised import CENTRED, Standardised


def groups(op: Op) -> int:
    """aten.group_norm, aten.native_group_norm and aten.instance_norm (each channel is one) say it differently."""
    channels = op.shape("input")[0 if op.has_samples("input") else 1]
    number: int = getattr(op, "num_groups", None) or getattr(op, "group", None) or channels
    return number


def layout(op: Op) -> tuple[Shape, Shape]:
    return (groups(op),), (prod(op.shape("input")) // groups(op),)


def scale(op: Op) -> Any:
    """The weight, with axes for the positions."""
    positions = len(op.shape("input")) - 1
    if not op.has("weight"):
        return None
    return op.weight.reshape(-1, *[1] * positions) if positions else op.weight


NORM = Standardised(True, layout, scale)


def in_order(weight: Tensor | None) -> Tensor | None:
    """As the kernel takes it to lie."""
    return None if weight is None else weight.contiguous()


def saving(op: Op) -> Any:
    """The output, and a mean and a reciprocal deviation for each group."""
    x, (channels, *positions) = op.input.contiguous(), op.shape("input")
    sizes = (x.shape[0], channels, prod(positions), groups(op))
    weight, bias = in_order(op.weight), in_order(op.bias)
    result = torch.native_group_norm(x, weight, bias, *sizes, op.eps)
    return result[0], {"mean": result[1].unsqueeze(-1), "rstd": result[2].unsqueeze(-1)}


def gradients(op: Op, gradient: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Of input, weight and bias. The kernel wants both images to lie channel by channel."""
    x, (channels, *positions) = op.input.contiguous(), op.shape("input")
    sizes = (x.shape[0], channels, prod(positions), groups(op))
    statistics = op.mean.squeeze(-1), op.rstd.squeeze(-1)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
        gradient.contiguous(), x, *statistics, in_order(op.weight), *sizes, wanted
    )
    return found


def back(op: Op, gradient: Tensor) -> Tensor:
    return gradients(op, gradient, [True, False, False])[0]


def of_weight(op: Op, gradient: Tensor) -> Tensor:
    """Summed over samples."""
    return gradients(op, gradient, [False, True, False])[1]


def params(op: Op) -> Mapping[str, Contraction]:
    channels, *positions = op.shape("input")

    def columns_view(op: Op, columns: Tensor) -> Tensor:
        return columns.flatten(3) if len(positions) > 1 else columns

    def operand(op: Op) -> Tensor:
        return NORM.normalised(op).reshape(-1, channels, *([prod(positions)] if positions else []))

    if not positions:
        weight = Contraction("nkc,nc->nkc", operand=operand, kernel=of_weight)
        return {"weight": weight, "bias": Contraction("nkc->nkc")}
    return {
        "weight": Contraction("nkcp,ncp->nkc", columns_view, operand, of_weight),
        "bias": Contraction("nkcp->nkc", columns_view),
    }


def group_norm(op: Op) -> Any:
    if op.index:
        return saving(op)[1]["mean" if op.index == 1 else "rstd"].squeeze(-1)
    return saving(op) if op.differentiated else F.group_norm(op.input, groups(op), op.weight, op.bias, op.eps)


def case(shape: Shape, groups: int, affine: bool = True, eps: float = 1e-5) -> Case:
    each = {"weight": shape[:1], "bias": shape[:1]} if affine else {}
    return Case({"input": shape, **each}, {"num_groups": groups, "eps": eps})


GROUP_NORM = Rule(
    operations=["aten.group_norm"],
    forward=group_norm,
    jac_t={"input": NORM.jac_t},
    backward={"input": back},
    params=params,
    residual=NORM.residual,
    formula=CENTRED,
    layout=Layout.GROUPS,
    cases=[
        case((4,), 2),
        case((2, 3), 1, eps=0.3),
        case((4, 2), 2, affine=False),
        case((4, 2, 2), 2),
        case((2, 2, 1, 2), 2, eps=0.3),
    ],
)
NATIVE_GROUP_NORM = replace(
    GROUP_NORM,
    operations=["aten.native_group_norm"],
    refuse=lambda op: "its statistics are used as values, which have no derivative here" if op.index else None,
    cases=[
        Case(
            {"input": (4, 2), "weight": (4,), "bias": (4,)}, {"N": 3, "C": 4, "HxW": 2, "group": 2, "eps": 0.1}
        )
    ],
)


# -- instance norm: its own statistics, or fixed ones as in batch norm ------------------------------------------------


def fixed(op: Op) -> bool:
    return not op.use_input_stats


def instance_norm(op: Op) -> Any:
    """Running statistics stay as they are."""
    if fixed(op):
        return F.batch_norm(op.input, op.running_mean, op.running_var, op.weight, op.bias, False, 0.0, op.eps)
    return saving(op) if op.differentiated else F.group_norm(op.input, groups(op), op.weight, op.bias, op.eps)


def jac_t(op: Op, columns: Tensor) -> Tensor:
    return columns * batch_norm.scale(op) if fixed(op) else NORM.jac_t(op, columns)


def residual(op: Op) -> Residual:
    return ZERO if fixed(op) else NORM.residual(op)


def instances(*shape: int, affine: bool = True, own: bool = True) -> Case:
    each = (shape[0],)
    parameters = {"weight": each, "bias": each} if affine else {}
    statistics = {} if own else {"running_mean": each, "running_var": each}
    return Case(
        {"input": shape, **parameters, **statistics},
        {"use_input_stats": own, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False},
        make={"running_var": lambda shape: 0.5 + torch.rand(*shape, dtype=torch.float64)},
    )


INSTANCE_NORM = Rule(
    operations=["aten.instance_norm"],
    forward=instance_norm,
    jac_t={"input": jac_t},
    backward={"input": lambda op, gradient: gradient * batch_norm.scale(op) if fixed(op) else back(op, gradient)},
    params=lambda op: batch_norm.params(op) if fixed(op) else params(op),
    residual=residual,
    formula=CENTRED,
    layout=Layout.GROUPS,
    structure=lambda op: Structure.ELEMENTWISE if fixed(op) else Structure.GENERAL,
    derivative=lambda op: batch_norm.scale(op).expand_as(op.input),
    cases=[
        instances(2, 3),
        instances(2, 2, 2, affine=False),
        instances(1, 2, 2),
        instances(2, 3, own=False),
        instances(2, 2, 2, affine=False, own=False),
    ],
)
