"""Kullback-Leibler divergence from log-probabilities x to a target: t (log t - x), linear in x."""

import torch

from hbpcompiler.rule import ZERO, Case, LossRule, Op, Tensor

from .shared.loss_terms import at, check_floating, of_samples, reduction, scaled, share

NONE = 0
"""torch's number for reduction="none"."""


def gradient(op: Op) -> Tensor:
    return scaled(-(op.target.exp() if op.log_target else op.target), share(op))


def check(op: Op, target: Tensor) -> str | None:
    if (reason := check_floating(op, target)) is not None or op.log_target:
        return reason
    wrong = target < 0
    return f"{at(target, wrong)}, but probabilities are not negative" if wrong.any() else None


RULE = LossRule(
    operations=["aten.kl_div"],
    forward=lambda op: torch.kl_div(op.self, op.target, op.reduction, log_target=op.log_target),
    each=lambda op: of_samples(op, torch.kl_div(op.self, op.target, NONE, log_target=op.log_target)),
    gradient=gradient,
    residual=ZERO,
    formula="y (log y - x)",
    reduction=reduction,
    check=check,
    order=("decreasing",),
    positions=1,
    cases=[
        Case(
            {"self": shape, "target": shape},
            {"reduction": reduced, "log_target": logarithmic},
            make={"target": lambda shape: torch.rand(*shape, dtype=torch.float64)},
        )
        for shape in ((3,), (2, 2))
        for reduced in (1, 2)
        for logarithmic in (True, False)
    ],
)
