"""The mean or sum over the whole batch in which a user's own loss ends: l_n is what sample n adds to it, times N."""

import math

import torch

from hbpcompiler.rule import ZERO, Case, LossRule, Op, Tensor

CASES = [Case({"self": ()}), Case({"self": (3,)}), Case({"self": (2, 2)})]

MEAN = LossRule(
    operations=["aten.mean"],
    forward=lambda op: op.self.mean(),
    each=lambda op: op.self.flatten(1).mean(1) if op.shape("self") else op.self,
    gradient=lambda op: torch.full_like(op.self, 1 / math.prod(op.shape("self"))),
    residual=ZERO,
    formula="mean(x)",
    reduction=lambda op: "mean",
    positions=1,
    order=("increasing",),
    cases=CASES,
)


def _ones(op: Op) -> Tensor:
    return torch.ones_like(op.self)


SUM = LossRule(
    operations=["aten.sum"],
    forward=lambda op: op.self.sum(),
    each=lambda op: op.self.flatten(1).sum(1) if op.shape("self") else op.self,
    gradient=_ones,
    residual=ZERO,
    formula="sum(x)",
    reduction=lambda op: "sum",
    positions=1,
    order=("increasing",),
    cases=CASES,
)
