"""Losses of the error e = output - target: squared, Huber's, smooth and plain absolute."""

import torch
import torch.nn.functional as F

from hbpcompiler.rule import ZERO, Case, Diagonal, LossRule, Op, Residual, Tensor
from hbpcompiler.rule.decomposition import Decomposition

from .shared.loss_terms import check_floating, check_numbers, of_samples, reduced, reduction, repeated, scaled, share

SETTINGS = ({"reduction": 1}, {"reduction": 2})


def _cases(*settings: dict[str, object]) -> list[Case]:
    shapes = ({"self": (3,), "target": (3,)}, {"self": (2, 2), "target": (2, 2)})
    return [Case(shape, {**given, **setting}) for shape in shapes for given in SETTINGS for setting in settings]


# -- mean squared error ----------------------------------------------------------------------------------------------


def mse_gradient(op: Op) -> Tensor:
    return (op.self - op.target) * (2 * share(op))


def mse_diagonal(op: Op) -> Tensor:
    return torch.full_like(op.self, 2 * share(op))


def mse_sample(op: Op, draws: int) -> Tensor:
    """The gradient at a target drawn from a normal distribution around the output: noise of the Hessian's size."""
    return torch.randn_like(repeated(op.self, draws, op.shape("self"))) * (2 * share(op) / draws) ** 0.5


MSE = LossRule(
    operations=["aten.mse_loss"],
    forward=lambda op: F.mse_loss(op.self, op.target, reduction=reduction(op)),
    each=lambda op: of_samples(op, F.mse_loss(op.self, op.target, reduction="none")),
    gradient=mse_gradient,
    residual=Diagonal(mse_diagonal),
    formula="(x - y)^2",
    reduction=reduction,
    sample=mse_sample,
    check=check_numbers,
    positions=1,
    cases=_cases({}),
)

# -- squared near 0, absolute from a limit on ------------------------------------------------------------------------


def huber_gradient(op: Op) -> Tensor:
    return scaled((op.self - op.target).clamp(-op.delta, op.delta), share(op))


def huber_diagonal(op: Op) -> Tensor:
    inside = (op.self - op.target).abs() < op.delta
    return scaled(inside.type_as(op.self), share(op))


HUBER = LossRule(
    operations=["aten.huber_loss"],
    forward=lambda op: F.huber_loss(op.self, op.target, reduction=reduction(op), delta=op.delta),
    each=lambda op: of_samples(op, F.huber_loss(op.self, op.target, reduction="none", delta=op.delta)),
    gradient=huber_gradient,
    residual=Diagonal(huber_diagonal),
    formula="e^2 / 2 if |e| < delta, else delta (|e| - delta / 2),  e = x - y",
    reduction=reduction,
    check=check_floating,
    positions=1,
    cases=_cases({}, {"delta": 0.4}),
)


def huber(output: Tensor, target: Tensor, reduction: int = 1, delta: float = 1.0) -> Tensor:
    """Where it does not end the loss: by the square of the error, which is curved at no error, as |e|^2 is not."""
    error = output - target
    size = error.abs()
    return reduced(torch.where(size < delta, error.square() / 2, delta * (size - delta / 2)), reduction)


HUBER_IN_PIECES = Decomposition(
    ["aten.huber_loss"], huber,
    [Case({"self": (2, 3), "target": (2, 3)}, {"reduction": 0, "delta": delta}) for delta in (1.0, 0.4)])


def smooth_l1(output: Tensor, target: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    error = output - target
    size = error.abs()
    if beta == 0:
        return reduced(torch.where(error == 0, -error, size), reduction)
    return reduced(torch.where(size < beta, error.square() / (2 * beta), size - beta / 2), reduction)


SMOOTH_L1_IN_PIECES = Decomposition(
    ["aten.smooth_l1_loss"], smooth_l1,
    [Case({"self": (2, 3), "target": (2, 3)}, {"reduction": 0, "beta": beta}) for beta in (1.0, 0.4)])


def smooth_l1_gradient(op: Op) -> Tensor:
    error = op.self - op.target
    if op.beta == 0:  # torch's slope at no error is that of its left
        return scaled(torch.where(error == 0, -1.0, error.sign()), share(op))
    slope = (error / op.beta).clamp(-1, 1)
    return scaled(slope, share(op))


def smooth_l1_diagonal(op: Op) -> Tensor:
    inside = (op.self - op.target).abs() < op.beta
    return scaled(inside.type_as(op.self), share(op) / op.beta)


def smooth_l1_residual(op: Op) -> Residual:
    return ZERO if op.beta == 0 else Diagonal(smooth_l1_diagonal)


SMOOTH_L1 = LossRule(
    operations=["aten.smooth_l1_loss"],
    forward=lambda op: F.smooth_l1_loss(op.self, op.target, reduction=reduction(op), beta=op.beta),
    each=lambda op: of_samples(op, F.smooth_l1_loss(op.self, op.target, reduction="none", beta=op.beta)),
    gradient=smooth_l1_gradient,
    residual=smooth_l1_residual,
    formula="e^2 / (2 beta) if |e| < beta, else |e| - beta / 2,  e = x - y",
    reduction=reduction,
    check=check_numbers,
    positions=1,
    cases=_cases({}, {"beta": 0.4}, {"beta": 0.0}),
)

# -- absolute --------------------------------------------------------------------------------------------------------


def l1_gradient(op: Op) -> Tensor:
    return scaled((op.self - op.target).sign(), share(op))


L1 = LossRule(
    operations=["aten.l1_loss"],
    forward=lambda op: F.l1_loss(op.self, op.target, reduction=reduction(op)),
    each=lambda op: of_samples(op, F.l1_loss(op.self, op.target, reduction="none")),
    gradient=l1_gradient,
    residual=ZERO,
    formula="|x - y|",
    reduction=reduction,
    check=check_numbers,
    positions=1,
    cases=_cases({}),
)
