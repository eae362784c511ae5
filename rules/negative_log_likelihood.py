"""Negative log-likelihood of log-probabilities [N, C, *d]: linear, so all curvature lies in what made them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, LossRule, Op, Tensor

from .shared.class_weights import counted, given, labels, of_samples, terms
from .shared.loss_terms import check_labels, check_shape, reduction


def loss(op: Op, reduction: str) -> Tensor:
    return F.nll_loss(op.self, op.target, reduction=reduction, **given(op))


def gradient(op: Op) -> Tensor:
    _, weighted = counted(op)
    return torch.zeros_like(op.self).scatter(1, labels(op), -weighted)


def check(op: Op, target: Tensor) -> str | None:
    wrong_shape = check_shape(op, target, [op.shape("self")[1:]])
    return wrong_shape or check_labels(op, target, op.shape("self")[0])


def _target(shape: Sequence[int]) -> Tensor:
    target = torch.randint(3, tuple(shape))
    target.view(-1)[1:2] = -100
    return target


def _positive(shape: Sequence[int]) -> Tensor:
    return 0.5 + torch.rand(*shape, dtype=torch.float64)


def _rule(operations: Sequence[str], *axes: tuple[int, ...]) -> LossRule:
    cases = [
        Case(
            {"self": (3, *d), "target": d, **weight},
            {"reduction": reduced},
            make={"target": _target, "weight": _positive},
        )
        for d in axes
        for weight in ({}, {"weight": (3,)})
        for reduced in (1, 2)
    ]
    return LossRule(
        operations=operations,
        forward=lambda op: loss(op, reduction(op)),
        each=lambda op: of_samples(op, loss(op, "none")),
        gradient=gradient,
        residual=ZERO,
        formula="-w x[y]",
        reduction=reduction,
        check=check,
        terms=terms,
        order=("decreasing",),
        positions=2,
        cases=cases,
    )


FLAT = _rule(["aten.nll_loss"], ())
ANY = _rule(["aten.nll_loss_nd"], (), (2,), (2, 2))
IMAGE = _rule(["aten.nll_loss2d"], (2, 2))
