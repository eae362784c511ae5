"""PReLU: x where it is positive, else x times a slope that is learned, for each channel or for all."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Contraction, Op, Rule, Structure, Tensor


def one_slope(op: Op) -> bool:
    return op.shape("weight") == (1,)


def derivative(op: Op) -> Tensor:
    positions = len(op.shape("self")) - 1
    slope = op.weight if one_slope(op) or positions == 0 else op.weight.reshape(-1, *[1] * positions)
    return torch.where(op.self > 0, 1.0, slope)


def params(op: Op) -> Mapping[str, Contraction]:
    """The slopes meet the negative parts, those of a channel together."""
    axes = len(op.shape("self"))
    if axes == 0:
        return {
            "weight": Contraction(
                "nko,no->nko",
                lambda op, columns: columns.unsqueeze(2),
                lambda op: op.self.clamp(max=0).unsqueeze(1),
            )
        }
    if one_slope(op):
        return {
            "weight": Contraction(
                "nkop,nop->nko",
                lambda op, columns: columns.flatten(2).unsqueeze(2),
                lambda op: op.self.clamp(max=0).flatten(1).unsqueeze(1),
            )
        }
    if axes == 1:
        return {"weight": Contraction("nkc,nc->nkc", operand=lambda op: op.self.clamp(max=0))}
    return {
        "weight": Contraction(
            "nkcp,ncp->nkc",
            lambda op, columns: columns.flatten(3),
            lambda op: op.self.clamp(max=0).flatten(2),
        )
    }


RULE = Rule(
    operations=["aten.prelu"],
    forward=lambda op: F.prelu(op.self, op.weight),
    params=params,
    residual=ZERO,
    formula="d S,  d = 1 where x > 0, else the slope",
    structure=Structure.ELEMENTWISE,
    derivative=derivative,
    cases=[
        Case({"self": (3,), "weight": (3,)}),
        Case({"self": (3,), "weight": (1,)}),
        Case({"self": (), "weight": (1,)}),
        Case({"self": (3, 2), "weight": (3,)}),
        Case({"self": (2, 3, 2), "weight": (2,)}),
        Case({"self": (2, 3, 2), "weight": (1,)}),
        Case({"self": (1, 3), "weight": (1,)}),
    ],
)
