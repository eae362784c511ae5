"""Softmax cross-entropy of logits [N, C, *d] with class indices [N, *d] or class probabilities [N, C, *d].

Per position the loss is -sum_c q_c log p_c with p = softmax(z): q holds target, label smoothing, weights and share. So
the gradient is total * p - q and the Hessian total * (diag(p) - p p^T), with total = sum_c q_c.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hbpcompiler.rule import (
    ZERO,
    Case,
    Factor,
    LossRule,
    Op,
    Residual,
    Tensor,
    called,
    covariance_root,
    not_negative,
    sampled_columns,
    softmax_as_laid,
)

from .shared import class_weights
from .shared.class_weights import counted, given, labels, of_samples
from .shared.loss_terms import at, check_floating, check_labels, check_shape, drawable, reduction
from .shared.simplex import positionwise


def loss(op: Op, reduction: str) -> Tensor:
    smoothed = {"label_smoothing": op.label_smoothing} if op.label_smoothing else {}
    return F.cross_entropy(op.self, op.target, reduction=reduction, **given(op), **smoothed)


def each(op: Op) -> Tensor:
    elements = loss(op, "none")
    if not has_probabilities(op):
        return of_samples(op, elements)
    if not op.shape("self")[1:]:
        return elements
    return elements.flatten(1).mean(1) if reduction(op) == "mean" else elements.flatten(1).sum(1)


def formula(op: Op) -> str:
    changed = " and ".join(["smoothed"] * bool(op.label_smoothing) + ["weighted"] * op.has("weight"))
    if not has_probabilities(op) and not changed:
        return "-log p_y,  p = softmax(x)"
    q = "y" if has_probabilities(op) else "e_y"
    return f"-sum_c q_c log p_c,  p = softmax(x),  q = {q}" + f", {changed}" * bool(changed)


def has_probabilities(op: Op) -> bool:
    return op.shape("target") == op.shape("self")


def weights(op: Op) -> Tensor:
    """The class weights, [C, *1]."""
    return op.weight.reshape(-1, *[1] * (len(op.shape("self")) - 1))


def smoothed(op: Op) -> Tensor:
    """q for class probabilities, [N, C, *d]."""
    q = op.target
    if op.label_smoothing:
        q = q * (1 - op.label_smoothing) + op.label_smoothing / op.shape("self")[0]
    if op.has("weight"):
        q = q * weights(op)
    positions = math.prod(op.shape("self")[1:])
    return q / positions if reduction(op) == "mean" and positions > 1 else q


def total(op: Op) -> Tensor:
    """sum_c q_c, [N, 1, *d]."""
    if has_probabilities(op):
        return smoothed(op).sum(1, keepdim=True)
    plain, weighted = counted(op)
    if op.label_smoothing and op.has("weight"):
        return weighted * (1 - op.label_smoothing) + plain * (op.label_smoothing * op.weight.mean())
    return weighted


def probabilities(op: Op) -> Tensor:
    return called("p", softmax_as_laid(op.self) if op.shape("self")[1:] else torch.softmax(op.self, 1))


def gradient(op: Op) -> Tensor:
    pulled = total(op) * probabilities(op)
    if has_probabilities(op):
        return pulled - smoothed(op)
    plain, weighted = counted(op)
    if op.label_smoothing:
        rest = plain * (op.label_smoothing / op.shape("self")[0])
        pulled = pulled - (rest * weights(op) if op.has("weight") else rest)
        weighted = weighted * (1 - op.label_smoothing)
    return pulled.scatter_add(1, labels(op), -weighted)


def _of_roots(op: Op, weight: Tensor) -> Tensor:
    """Weights of which roots are taken: those that a user gives, and sums of probabilities, may be negative."""
    return not_negative(weight) if op.has("weight") or has_probabilities(op) else weight


def by_position(op: Op) -> Tensor:
    positions = op.shape("self")[1:]
    p, weight = probabilities(op), total(op)
    if positions:
        p, weight = p.movedim(1, -1), weight.movedim(1, -1)
    return covariance_root(p) * _of_roots(op, weight).unsqueeze(-1).sqrt()  # [N, *d, C-1, C]


def factor(op: Op) -> tuple[dict[str, Tensor], None]:
    return {"self": positionwise(by_position(op), op.shape("self")[1:])}, None


def count(op: Op) -> int:
    classes, *positions = op.shape("self")
    return (classes - 1) * math.prod(positions)


def residual(op: Op) -> Residual:
    return Factor(count, factor, by_position=by_position) if count(op) else ZERO


def sample(op: Op, draws: int) -> Tensor:
    """p, less one at the label that is drawn from it, at each position by itself."""
    positions = op.shape("self")[1:]
    p = probabilities(op)
    rows = p.movedim(1, -1).flatten(0, -2) if positions else p
    if draws == 1:  # of one alone torch draws a number for each class, which takes twenty times as long
        drawn = called("drawn", called("drawn_twice", torch.multinomial(drawable(rows), 2, replacement=True))[:, :1])
    else:
        drawn = called("drawn", torch.multinomial(drawable(rows), draws, replacement=True))  # [N*P, M]
    if positions:
        drawn = drawn.reshape(-1, *positions, draws).movedim(-1, 1)
    found: Tensor = sampled_columns(p, drawn, _of_roots(op, total(op)))
    return found


def terms(op: Op, target: Tensor) -> int | None:
    if has_probabilities(op):
        return target.shape[0] * math.prod(op.shape("self")[1:])
    return class_weights.terms(op, target)


def check(op: Op, target: Tensor) -> str | None:
    if (reason := check_shape(op, target, [op.shape("self")[1:], op.shape("self")])) is not None:
        return reason
    if not has_probabilities(op):
        return check_labels(op, target, op.shape("self")[0])
    if (reason := check_floating(op, target)) is not None:
        return reason
    wrong = target < 0
    if not wrong.any():
        return None
    return (f"{at(target, wrong)}, but class probabilities are not negative (cross-entropy is the default; for a "
            "regression pass loss=nn.MSELoss())")


def _indices(shape: Sequence[int]) -> Tensor:
    return torch.randint(3, tuple(shape))


def _some_ignored(shape: Sequence[int]) -> Tensor:
    target = _indices(shape)
    target.view(-1)[1:2] = -100
    return target


def _probabilities(shape: Sequence[int]) -> Tensor:
    return 1.3 * torch.rand(*shape, dtype=torch.float64)


def _positive(shape: Sequence[int]) -> Tensor:
    return 0.5 + torch.rand(*shape, dtype=torch.float64)


def _cases() -> list[Case]:
    cases = []
    for reduced in (1, 2):
        for smoothing in (0.0, 0.2):
            for weight in ({}, {"weight": (3,)}):
                given = {"reduction": reduced, "label_smoothing": smoothing}
                for d in ((), (2,), (2, 2)):
                    made = {"target": _some_ignored, "weight": _positive}
                    cases.append(Case({"self": (3, *d), "target": d, **weight}, given, make=made))
                for d in ((), (2,)):
                    made = {"target": _probabilities, "weight": _positive}
                    cases.append(Case({"self": (3, *d), "target": (3, *d), **weight}, given, make=made))
    cases.append(Case({"self": (3,), "target": ()}, {"ignore_index": 1}, make={"target": _indices}))
    cases.append(Case({"self": (1,), "target": ()}, make={"target": lambda shape: torch.zeros(*shape).long()}))
    return cases


RULE = LossRule(
    operations=["aten.cross_entropy_loss"],
    forward=lambda op: loss(op, reduction(op)),
    each=each,
    gradient=gradient,
    residual=residual,
    formula=formula,
    reduction=reduction,
    sample=sample,
    check=check,
    terms=terms,
    doubts={"aten.sigmoid": "cross-entropy takes logits of any size, of which it makes probabilities itself: leave the "
                            "sigmoid out, or take nn.BCELoss() where several classes may be true at once"},
    positions=2,
    cases=_cases(),
)
