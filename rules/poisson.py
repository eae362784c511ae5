"""Poisson negative log-likelihood: exp(x) - t x of a logarithmic rate x, or x - t log(x + eps) of a rate."""

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Case, Diagonal, LossRule, Op, Tensor

from .shared.loss_terms import at, check_numbers, drawable, of_samples, reduction, repeated, scaled, share


def loss(op: Op, reduction: str) -> Tensor:
    given = {} if op.log_input else {"log_input": False, "eps": op.eps}
    if op.full:
        given["full"] = True
    return F.poisson_nll_loss(op.input, op.target, reduction=reduction, **given)


def gradient(op: Op) -> Tensor:
    if op.log_input:
        return scaled(op.input.exp() - op.target, share(op, "input"))
    return scaled(1 - op.target / (op.input + op.eps), share(op, "input"))


def diagonal(op: Op) -> Tensor:
    if op.log_input:
        return scaled(op.input.exp(), share(op, "input"))
    return scaled(op.target / (op.input + op.eps).square(), share(op, "input"))


def sample(op: Op, draws: int) -> Tensor:
    """rate - t with t drawn from the output's Poisson distribution."""
    if op.log_input:
        rate = repeated(op.input.exp(), draws, op.shape("input"))
        return (rate - torch.poisson(drawable(rate))) * (share(op, "input") / draws) ** 0.5
    # The Hessian in the rate depends on the target, which no draw from the output's distribution does: plain noise.
    root = repeated((diagonal(op) / draws).sqrt(), draws, op.shape("input"))
    return torch.randn_like(root) * root


def check(op: Op, target: Tensor) -> str | None:
    if (reason := check_numbers(op, target, "input")) is not None:
        return reason
    wrong = target < 0
    return f"{at(target, wrong)}, but counts are not negative" if wrong.any() else None


RULE = LossRule(
    operations=["aten.poisson_nll_loss"],
    forward=lambda op: loss(op, reduction(op)),
    each=lambda op: of_samples(op, loss(op, "none"), "input"),
    gradient=gradient,
    residual=Diagonal(diagonal),
    formula=lambda op: "e^x - y x" if op.log_input else "x - y log x",
    reduction=reduction,
    sample=sample,
    check=check,
    positions=1,
    cases=[
        Case(
            {"input": shape, "target": shape},
            {"log_input": logarithmic, "full": full, "eps": 1e-8, "reduction": reduced},
            make={
                "input": lambda shape: 0.3 + torch.rand(*shape, dtype=torch.float64),
                "target": lambda shape: torch.randint(5, tuple(shape)).double(),
            },
        )
        for shape in ((3,), (2, 2))
        for logarithmic in (True, False)
        for full in (True, False)
        for reduced in (1, 2)
    ],
)
