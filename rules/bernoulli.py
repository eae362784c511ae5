"""Binary cross-entropy, of logits and of probabilities, elementwise with broadcast weights."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Case, Diagonal, LossRule, Op, Tensor, not_negative
from hbpcompiler.rule.decomposition import Decomposition

from .shared.loss_terms import check_floating, drawable, of_samples, reduced, reduction, repeated, scaled, share


def _given(op: Op, *names: str) -> dict[str, Any]:
    return {name: getattr(op, name) for name in names if op.has(name)}


def _weighted(op: Op, value: Tensor) -> Tensor:
    """Times the user's weight and the share of the mean."""
    return scaled(value * op.weight if op.has("weight") else value, share(op))


# -- logits: the loss is weight * ((1 - t) x + (1 + (pos_weight - 1) t) softplus(-x)) --------------------------------


def loss(op: Op, reduction: str) -> Tensor:
    given = _given(op, "weight", "pos_weight")
    return F.binary_cross_entropy_with_logits(op.self, op.target, reduction=reduction, **given)


def gradient(op: Op) -> Tensor:
    p = torch.sigmoid(op.self)
    if op.has("pos_weight"):
        return _weighted(op, (1 - op.target) * p - op.pos_weight * op.target * (1 - p))
    return _weighted(op, p - op.target)


def _weights(op: Op) -> list[Tensor]:
    """What multiplies the Hessian p (1 - p), but for the share."""
    given = [op.weight] if op.has("weight") else []
    return [*given, 1 + (op.pos_weight - 1) * op.target] if op.has("pos_weight") else given


def diagonal(op: Op) -> Tensor:
    p = torch.sigmoid(op.self)
    curve = p * (1 - p)
    for weight in _weights(op):
        curve = curve * weight
    return scaled(curve, share(op))


def formula(op: Op) -> str:
    own = "pos_weight y log(1 + e^-x) + (1 - y) log(1 + e^x)" if op.has("pos_weight") else "log(1 + e^x) - y x"
    return f"weight ({own})" if op.has("weight") else own


def sample(op: Op, draws: int) -> Tensor:
    """p - t with t drawn from the output's Bernoulli distribution."""
    p = repeated(torch.sigmoid(op.self), draws, op.shape("self"))
    noise = (p - torch.bernoulli(drawable(p))) * (share(op) / draws) ** 0.5
    for weight in _weights(op):
        noise = noise * not_negative(weight).sqrt().expand_as(op.self).unsqueeze(1)
    return noise


def _positive(shape: Sequence[int]) -> Tensor:
    return 0.5 + torch.rand(*shape, dtype=torch.float64)


def _unit(shape: Sequence[int]) -> Tensor:
    return 0.05 + 0.9 * torch.rand(*shape, dtype=torch.float64)


def _cases(*weights: dict[str, tuple[int, ...]]) -> list[Case]:
    drawn = {"target": _unit, "weight": _positive, "pos_weight": _positive}
    cases = []
    for shape in ((3,), (2, 3)):
        for kind in (1, 2):
            for weight in weights:
                shapes = {"self": shape, "target": shape, **weight}
                cases.append(Case(shapes, {"reduction": kind}, make=drawn))
    batched = ("self", "target", "weight")
    cases.append(Case({"self": (3,), "target": (3,), "weight": (3,)}, batched=batched, make=drawn))
    cases.append(Case({"self": (3,), "target": (3,), "weight": (1,)}, batched=batched, make=drawn))
    return cases


WITH_LOGITS = LossRule(
    operations=["aten.binary_cross_entropy_with_logits"],
    forward=lambda op: loss(op, reduction(op)),
    each=lambda op: of_samples(op, loss(op, "none")),
    gradient=gradient,
    residual=Diagonal(diagonal),
    formula=formula,
    reduction=reduction,
    sample=sample,
    check=check_floating,
    doubts={"aten.sigmoid": "binary cross-entropy with logits makes probabilities of what it gets itself: leave the "
                            "sigmoid out, or take nn.BCELoss()"},
    positions=1,
    cases=_cases({}, {"weight": (3,)}, {"pos_weight": (3,)}, {"weight": (1,), "pos_weight": (3,)}),
)

# -- probabilities ---------------------------------------------------------------------------------------------------


def probability_loss(op: Op, reduction: str) -> Tensor:
    return F.binary_cross_entropy(op.self, op.target, reduction=reduction, **_given(op, "weight"))


def probability_gradient(op: Op) -> Tensor:
    x = op.self
    return _weighted(op, (x - op.target) / (x * (1 - x)).clamp(min=1e-12))  # the limit is torch's


def probability_diagonal(op: Op) -> Tensor:
    x, t = op.self, op.target
    return _weighted(op, (x.square() - 2 * x * t + t) / (x * (1 - x)).square().clamp(min=1e-24))


PROBABILITIES = LossRule(
    operations=["aten.binary_cross_entropy"],
    forward=lambda op: probability_loss(op, reduction(op)),
    each=lambda op: of_samples(op, probability_loss(op, "none")),
    gradient=probability_gradient,
    residual=Diagonal(probability_diagonal),
    formula=lambda op: f"-{'weight ' * op.has('weight')}(y log x + (1 - y) log(1 - x))",
    reduction=reduction,
    check=check_floating,
    positions=1,
    cases=[
        Case(case.shapes, case.attributes, case.batched, make={**case.make, "self": _unit})
        for case in _cases({}, {"weight": (3,)})
    ],
)

LIMIT = 9.999999960041972e-13
"""torch's, in single precision: x (1 - x) counts as no less in the slope."""


def probability_each(
    output: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Where it does not end the loss. At probabilities of 0 and 1 the slope is torch's: logarithms have none there."""
    at, edge = output.detach(), output.detach() * (1 - output.detach()) <= LIMIT
    inside = torch.where(edge, 0.5, output)
    between = (target - 1) * torch.log1p(-inside) - target * inside.log()
    value = (target - 1) * torch.log1p(-at).clamp(min=-100) - target * at.log().clamp(min=-100)
    slope, bend = (at - target) / LIMIT, (at.square() - 2 * at * target + target) / LIMIT**2
    off = output - at
    loss = torch.where(edge, value + off * slope + off.square() * bend / 2, between)
    return reduced(loss if weight is None else loss * weight, reduction)


def _with_edges(shape: Sequence[int]) -> Tensor:
    drawn = _unit(shape)
    drawn.view(-1)[:4] = torch.tensor([0.0, 1.0, 1.0, 0.0])[: drawn.numel()]
    return drawn


PROBABILITIES_IN_PIECES = Decomposition(
    ["aten.binary_cross_entropy"], probability_each,
    [Case({"self": (2, 3), "target": (2, 3), **weight}, {"reduction": 0},
          make={"self": drawn, "target": drawn, "weight": _positive}, constant=constant)
     for weight in ({}, {"weight": (3,)})
     # In the target torch's slopes know of one limit in float32, and their own slopes of another in float64.
     for drawn, constant in ((_with_edges, ("target", "weight")), (_unit, ("weight",)))])
