"""Linear layers, y = x W^T + b on [N, *positions, features]: all positions share the weight."""

from collections.abc import Mapping

import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Contraction, Op, Rule, Structure, Tensor


def forward(op: Op) -> Tensor:
    return F.linear(op.input, op.weight, op.bias)


def jac_t(op: Op, columns: Tensor) -> Tensor:
    return columns @ op.weight


def params(op: Op) -> Mapping[str, Contraction]:
    positions = len(op.shape("input")) - 1
    if positions == 0:
        return {
            "weight": Contraction("nko,ni->nkoi", operand=lambda op: op.input),
            "bias": Contraction("nko->nko"),
        }

    def columns_view(op: Op, columns: Tensor) -> Tensor:
        return columns if positions == 1 else columns.flatten(2, -2)

    def operand(op: Op) -> Tensor:
        return op.input if positions == 1 else op.input.flatten(1, -2)

    return {
        "weight": Contraction("nkpo,npi->nkoi", columns_view, operand),
        "bias": Contraction("nkpo->nko", columns_view),
    }


RULE = Rule(
    operations=["aten.linear"],
    forward=forward,
    jac_t={"input": jac_t},
    params=params,
    residual=ZERO,
    formula="S W",
    structure=Structure.CONSTANT,
    merged=True,
    cases=[
        Case({"input": (4, 5), "weight": (3, 5), "bias": (3,)}),
        Case({"input": (2, 5), "weight": (1, 5)}),
        Case({"input": (2, 4, 5), "weight": (3, 5), "bias": (3,)}),
        Case({"input": (2, 2, 3, 5), "weight": (3, 5)}),
    ],
)
