"""Layer norm and RMS norm, over the last axes of each position."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Case, Contraction, Op, Rule, Shape, Tensor

from .shared.standardised import CENTRED, UNCENTRED, Standardised


def layout(op: Op) -> tuple[Shape, Shape]:
    shape, normalised = op.shape("input"), len(op.normalized_shape)
    return shape[:-normalised], shape[-normalised:]


def scale(op: Op) -> Any:
    return op.weight if op.has("weight") else None


LAYER, RMS = (Standardised(centred, layout, scale) for centred in (True, False))


def params(op: Op, norm: Standardised) -> Mapping[str, Contraction]:
    """The weight meets xhat; all leading axes are positions."""
    positions, normalised = layout(op)

    def flat(op: Op, value: Tensor, lead: int) -> Tensor:
        """[..., *positions, *normalised] -> [..., p, d]."""
        value = value.flatten(-len(normalised)) if len(normalised) > 1 else value
        return value.flatten(lead, -2) if len(positions) > 1 else value

    def columns_view(op: Op, columns: Tensor) -> Tensor:
        return flat(op, columns, 2)

    def operand(op: Op) -> Tensor:
        xhat = norm.normalised(op)
        return xhat.flatten(1, -2) if len(positions) > 1 else xhat

    kernel = of_weight if norm.centred else None
    if not positions:
        return {
            "weight": Contraction("nkd,nd->nkd", columns_view, operand, kernel),
            "bias": Contraction("nkd->nkd", columns_view),
        }
    return {
        "weight": Contraction("nkpd,npd->nkd", columns_view, operand, kernel),
        "bias": Contraction("nkpd->nkd", columns_view),
    }


def layer_norm(op: Op) -> Any:
    if op.index:
        return torch.native_layer_norm(op.input, op.normalized_shape, op.weight, op.bias, op.eps)[op.index]
    if not op.differentiated:
        return F.layer_norm(op.input, op.normalized_shape, op.weight, op.bias, op.eps)
    result = torch.native_layer_norm(op.input, op.normalized_shape, op.weight, op.bias, op.eps)
    return result[0], {"mean": result[1], "rstd": result[2]}


def gradients(op: Op, gradient: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Of input, weight and bias."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        gradient, op.input, op.normalized_shape, op.mean, op.rstd, op.weight, op.bias, wanted
    )
    return found


def layer_norm_back(op: Op, gradient: Tensor) -> Tensor:
    return gradients(op, gradient, [True, False, False])[0]


def of_weight(op: Op, gradient: Tensor) -> Tensor:
    """Summed over samples."""
    return gradients(op, gradient, [False, True, False])[1]


def rms_norm(op: Op) -> Any:
    """Without eps it is the machine's, of the precision that torch computes in."""
    if not op.differentiated:
        return F.rms_norm(op.input, op.normalized_shape, op.weight, op.eps)
    result = torch.ops.aten._fused_rms_norm(op.input, op.normalized_shape, op.weight, op.eps)
    return result[0], {"rstd": result[1]}


def refuse(op: Op) -> str | None:
    return "its saved statistics are used as values, which have no derivative here" if op.index else None


SHAPES: list[tuple[Shape, int]] = [((4,), 1), ((1,), 1), ((2, 3), 1), ((3, 2), 2), ((2, 2, 3), 1), ((2, 2, 3), 2)]


def cases(*parameters: str, **attributes: Any) -> list[Case]:
    return [
        Case(
            {"input": shape, **dict.fromkeys(parameters, shape[-axes:])},
            {"normalized_shape": list(shape[-axes:]), **attributes},
        )
        for shape, axes in SHAPES
    ]


LAYER_NORM = Rule(
    operations=["aten.layer_norm", "aten.native_layer_norm"],
    forward=layer_norm,
    jac_t={"input": LAYER.jac_t},
    backward={"input": layer_norm_back},
    params=lambda op: params(op, LAYER),
    residual=LAYER.residual,
    formula=CENTRED,
    refuse=refuse,
    cases=[*cases("weight", "bias", eps=1e-5), *cases("weight", eps=0.3), *cases(eps=0.3)],
)
RMS_NORM = Rule(
    operations=["aten.rms_norm"],
    forward=rms_norm,
    jac_t={"input": RMS.jac_t},
    params=lambda op: {name: found for name, found in params(op, RMS).items() if name == "weight"},
    residual=RMS.residual,
    formula=UNCENTRED,
    cases=[*cases("weight", eps=0.3), *cases("weight", eps=None), *cases(eps=1e-5)],
)
