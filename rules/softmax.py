"""Softmax, its logarithm, and the logarithm of its denominator, along one axis of a sample.

With p = softmax(z) and H = diag(p) - p p^T, the Hessian of logsumexp in z is H, that of sum_j g_j log p_j is
-(sum g) H, and that of sum_j g_j p_j is (I - p 1^T) diag(u) (I - 1 p^T) with u = p * (g - <g, p>).
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Case, Factor, Noise, Op, Rule, Tensor, covariance_root, otherwise_called

from .shared.classes import as_columns, axis, classes, classes_last, curved, positions
from .shared.reduced import axes, dtype_of, over_samples, own_dtype, spread

# -- softmax ---------------------------------------------------------------------------------------------------------


def softmax_jac_t(op: Op, columns: Tensor) -> Tensor:
    p = op.output.unsqueeze(1)
    weighted = columns * p
    return own_dtype(op, weighted - p * weighted.sum(axis(op) + 2, True))


def softmax_back(op: Op, gradient: Tensor) -> Tensor:
    """torch's kernel, unless the operation was told a dtype."""
    if dtype_of(op):
        return softmax_jac_t(op, gradient.unsqueeze(1)).squeeze(1)
    p = op.output
    pulled: Tensor = torch.ops.aten._softmax_backward_data(gradient, p, op.dim, p.dtype)
    return pulled


def softmax_factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A column sqrt|u_j| (e_j - p) for each class j."""
    p = classes_last(op, op.output)
    weighted = p * classes_last(op, gradient)
    u = otherwise_called("u", weighted - p * weighted.sum(-1, True))
    root = u.abs().sqrt()
    columns = otherwise_called("columns", torch.diag_embed(root) - root.unsqueeze(-1) * p.unsqueeze(-2))
    signs = otherwise_called("signs", torch.ones_like(u).copysign(u))
    signs = signs.movedim(-1, 1).flatten(1) if positions(op) else signs
    return {"self": own_dtype(op, as_columns(op, columns))}, own_dtype(op, signs)


def softmax_some(op: Op, gradient: Tensor, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The columns with these numbers [k], counted position by position."""
    place, label = numbers // classes(op), numbers % classes(op)
    p, g = classes_last(op, op.output), classes_last(op, gradient)
    p, g = (p.flatten(1, -2), g.flatten(1, -2)) if positions(op) else (p.unsqueeze(1), g.unsqueeze(1))
    own = p[:, place]
    weighted = own * g[:, place]
    chosen = F.one_hot(label, classes(op)).type_as(p)
    u = ((weighted - own * weighted.sum(-1, True)) * chosen).sum(-1)
    columns = u.abs().sqrt().unsqueeze(-1) * (chosen - own)
    if positions(op):
        spread_out = F.one_hot(place, math.prod(positions(op))).type_as(p).unsqueeze(-1)
        columns = (columns.unsqueeze(2) * spread_out).unflatten(2, list(positions(op)))
    if axis(op) < len(positions(op)):
        columns = columns.movedim(-1, axis(op) + 2)
    return {"self": own_dtype(op, columns)}, own_dtype(op, torch.ones_like(u).copysign(u))


def softmax_drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    p = op.output
    weighted = p * gradient
    u = weighted - p * weighted.sum(axis(op) + 1, True)
    return of_random_classes(op, p, u, noise(*op.shape("self")))


def of_random_classes(op: Op, p: Tensor, u: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Sums of columns sqrt|u_j| (e_j - p) times the `noise` [N, M, *z]: where u [N, *z] is positive, then where not."""
    both = torch.cat([noise * part.sqrt().unsqueeze(1) for part in (u.clamp(min=0), (-u).clamp(min=0))], 1)
    return {"self": own_dtype(op, both - p.unsqueeze(1) * both.sum(axis(op) + 2, True))}


def softmax_count(op: Op) -> int:
    return math.prod(op.shape("self"))


# -- what has the covariance of p for a Hessian ----------------------------------------------------------------------


def covariance_columns(op: Op, p: Tensor, total: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The factor of total * (diag(p) - p p^T), with one total for each position, [N, *positions]."""
    columns = covariance_root(p) * total.abs().sqrt().unsqueeze(-1).unsqueeze(-1)
    signs = torch.ones_like(total).copysign(total).reshape(-1, math.prod(positions(op)))
    return {"self": own_dtype(op, as_columns(op, columns))}, own_dtype(op, signs.repeat(1, classes(op) - 1))


def covariance_drawn(op: Op, p: Tensor, total: Tensor, noise: Noise) -> dict[str, Tensor]:
    """The covariance of p is that of its classes, sum_j p_j (e_j - p) (e_j - p)^T; total has an axis of length one."""
    return of_random_classes(op, p, p * total, noise(*op.shape("self")))


def covariance_count(op: Op) -> int:
    return (classes(op) - 1) * math.prod(positions(op))


def log_softmax_jac_t(op: Op, columns: Tensor) -> Tensor:
    return own_dtype(op, columns - op.output.exp().unsqueeze(1) * columns.sum(axis(op) + 2, True))


def log_softmax_factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return covariance_columns(op, classes_last(op, op.output.exp()), -gradient.sum(axis(op) + 1))


def log_softmax_drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    return covariance_drawn(op, op.output.exp(), -gradient.sum(axis(op) + 1, True), noise)


def logsumexp_jac_t(op: Op, columns: Tensor) -> Tensor:
    return spread(op, columns) * torch.softmax(op.self, axis(op) + 1).unsqueeze(1)


def logsumexp_factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    p = torch.softmax(op.self, axis(op) + 1)
    return covariance_columns(op, classes_last(op, p), gradient.squeeze(axis(op) + 1) if op.keepdim else gradient)


def logsumexp_drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    total = gradient if op.keepdim else gradient.unsqueeze(axis(op) + 1)
    return covariance_drawn(op, torch.softmax(op.self, axis(op) + 1), total, noise)


def logsumexp_refused(op: Op) -> str | None:
    if len(axes(op, op.dim)) != 1:
        return "it goes over several axes at once; flatten them into one"
    return over_samples(op)


CASES = [
    Case({"self": shape}, {"dim": dim})
    for shape, dim in (((4,), 1), ((4,), -1), ((2, 3), 2), ((3, 2), 1), ((2, 3, 2), 2), ((1,), 1))
]


SOFTMAX = Rule(
    operations=["aten.softmax", "aten._softmax"],
    forward=lambda op: torch.softmax(op.self, op.dim, **dtype_of(op)),
    jac_t={"self": softmax_jac_t},
    backward={"self": softmax_back},
    residual=curved(Factor(softmax_count, softmax_factor, softmax_some, softmax_drawn)),
    formula="p * (S - <S, p>),  p = softmax(x);  "
            "residual: (I - p 1^T) diag(u) (I - 1 p^T),  u = p * (g - <g, p>)",
    refuse=over_samples,
    cases=[replace(case, attributes={**case.attributes, "half_to_float": False}) for case in CASES],
)


def safe_softmax(op: Op) -> Tensor:
    """Zeros where all is masked, -inf: attention to nothing."""
    nothing = (op.self == float("-inf")).all(op.dim, True)
    return torch.softmax(op.self, op.dim, **dtype_of(op)).masked_fill(nothing, 0.0)


SAFE_SOFTMAX = replace(SOFTMAX, operations=["aten._safe_softmax"], forward=safe_softmax, cases=CASES[2:4])
LOG_SOFTMAX = Rule(
    operations=["aten.log_softmax", "aten._log_softmax"],
    forward=lambda op: torch.log_softmax(op.self, op.dim, **dtype_of(op)),
    jac_t={"self": log_softmax_jac_t},
    residual=curved(Factor(covariance_count, log_softmax_factor, drawn=log_softmax_drawn)),
    formula="S - p sum(S),  p = softmax(x);  residual: -sum(g) (diag(p) - p p^T)",
    order=("concave",),
    refuse=over_samples,
    cases=SOFTMAX.cases,
)
LOGSUMEXP = Rule(
    operations=["aten.logsumexp"],
    forward=lambda op: torch.logsumexp(op.self, op.dim, op.keepdim),
    jac_t={"self": logsumexp_jac_t},
    residual=curved(Factor(covariance_count, logsumexp_factor, drawn=logsumexp_drawn)),
    formula="S * p,  p = softmax(x);  residual: g (diag(p) - p p^T)",
    order=("increasing", "convex"),
    refuse=logsumexp_refused,
    cases=[
        Case(case.shapes, {"dim": [case.attributes["dim"]], "keepdim": keepdim})
        for case in CASES
        for keepdim in (False, True)
    ],
)
