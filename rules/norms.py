"""Norms and variance over axes of a sample: each has a projection for a Hessian.

For |x| it is (I - u u^T) / |x| with u = x / |x|, for the variance 2 / (n - c) (I - 1 1^T / n). A projection is its own
factor, so a column belongs to each element. The norm of order p has (p - 1) / |x| D (I - u u^T) D, where
D = diag((|x_i| / |x|)^(p/2 - 1)) and u_i = sign(x_i) (|x_i| / |x|)^(p/2) has length 1.
"""

import math
from dataclasses import replace
from typing import Any

import torch

from hbpcompiler.rule import ZERO, Case, Factor, Noise, Op, Residual, Rule, Shape, Tensor

from .shared.reduced import axes, dtype_of, mean_jac_t, over_samples, own_dtype, spread
from .shared.simplex import positionwise


def elements(op: Op) -> Shape:
    """The reduced axes' lengths."""
    return tuple(op.shape("self")[axis] for axis in axes(op, op.dim))


def positions(op: Op) -> Shape:
    return tuple(length for axis, length in enumerate(op.shape("self")) if axis not in axes(op, op.dim))


def kept(op: Op, value: Tensor) -> Tensor:
    """The result, or a cotangent of it, with the reduced axes as ones: [N, *z]."""
    if not op.keepdim:
        for axis in axes(op, op.dim):
            value = value.unsqueeze(axis + 1)
    return value


def projected(
    op: Op, unit: Tensor, weight: Tensor, scale: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Columns sqrt|weight| (e_j - unit_j unit) for each element j, with unit [N, *z] and weight [N, *z] of ones.

    `scale` [N, *z] multiplies the elements of every column.
    """
    reduced = axes(op, op.dim)
    last = list(range(-len(reduced), 0))
    u = unit.movedim([axis + 1 for axis in reduced], last).flatten(-len(reduced))
    w = weight.movedim([axis + 1 for axis in reduced], last).flatten(-len(reduced)).unsqueeze(-1)
    columns = (torch.diag_embed(torch.ones_like(u)) - u.unsqueeze(-1) * u.unsqueeze(-2)) * w.abs().sqrt()
    whole = positionwise(columns, positions(op))  # [N, k, elements, *positions]
    whole = whole.reshape(-1, count(op), *elements(op), *positions(op))
    whole = whole.movedim(list(range(2, 2 + len(reduced))), [axis + 2 for axis in reduced])
    whole = whole if scale is None else whole * scale.unsqueeze(1)
    signs = torch.ones_like(w).copysign(w).reshape(-1, math.prod(positions(op)))
    return {"self": own_dtype(op, whole)}, own_dtype(op, signs.repeat(1, math.prod(elements(op))))


def projected_drawn(
    op: Op, unit: Tensor, weight: Tensor, noise: Noise, scale: Tensor | None = None
) -> dict[str, Tensor]:
    """Random sums of the same columns: random signs, projected."""
    signs, u = noise(*op.shape("self")), unit.unsqueeze(1)
    both = torch.cat([signs * part.sqrt().unsqueeze(1) for part in (weight.clamp(min=0), (-weight).clamp(min=0))], 1)
    columns = both - u * (u * both).sum([axis + 2 for axis in axes(op, op.dim)], True)
    return {"self": own_dtype(op, columns if scale is None else columns * scale.unsqueeze(1))}


def count(op: Op) -> int:
    return math.prod(op.shape("self"))


# -- norm ------------------------------------------------------------------------------------------------------------


def length(op: Op) -> Tensor:
    """|x|, and 1 at 0."""
    norm = kept(op, op.output)
    return norm.masked_fill(norm == 0, 1.0)


def unit(op: Op) -> Tensor:
    """x / |x|, and 0 at 0, as torch has it."""
    return op.self / length(op)


def share(op: Op, power: float) -> Tensor:
    """(|x_i| / |x|)^power."""
    relative: Tensor = op.self.abs() / length(op)
    return relative if power == 1 else relative**power


def norm_forward(op: Op) -> Tensor:
    if op.dim is None:  # of a constant whole: TorchScript has no method for it
        found: Tensor = torch.linalg.vector_norm(op.self, op.ord, None, op.keepdim, **dtype_of(op))
        return found
    norm: Tensor = op.self.norm(op.ord, [op.dim] if isinstance(op.dim, int) else op.dim, op.keepdim, **dtype_of(op))
    return norm


def norm_jac_t(op: Op, columns: Tensor) -> Tensor:
    if op.ord == math.inf:
        equal = (op.self.abs() == kept(op, op.output)).type_as(op.self)  # equals share the gradient
        slope = op.self.sign() * equal / equal.sum([axis + 1 for axis in axes(op, op.dim)], True)
    elif op.ord in (1, 2):
        slope = op.self.sign() if op.ord == 1 else unit(op)
    else:
        slope = op.self.sign() * share(op, op.ord - 1)
    return own_dtype(op, spread(op, columns) * slope.unsqueeze(1))


def norm_parts(op: Op, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """unit, weight and scale, as `projected` takes them.

    At 0 there is no curvature: infinite, as torch has it for orders up to 2, which makes NaN, or none. What does not
    reach the loss, as a row of zeros behind a mask or in F.normalize, has none all the same.
    """
    slope = kept(op, gradient)
    weight = slope / length(op)
    if op.ord <= 2:
        weight = weight.masked_fill((kept(op, op.output) == 0) & (slope != 0), math.inf)
    if op.ord == 2:
        return unit(op), weight, None
    half = op.ord / 2
    return op.self.sign() * share(op, half), weight * (op.ord - 1), share(op, half - 1)


def norm_edge(op: Op) -> Tensor:
    found: Tensor = op.output == 0
    return found


def norm_factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return projected(op, *norm_parts(op, gradient))


def norm_drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    along, weight, scale = norm_parts(op, gradient)
    return projected_drawn(op, along, weight, noise, scale)


def norm_residual(op: Op) -> Residual:
    if op.ord in (1, math.inf):
        return ZERO
    return Factor(count, norm_factor, drawn=norm_drawn, edge=norm_edge if op.ord <= 2 else None)


def norm_refused(op: Op) -> str | None:
    return over_samples(op) if op.ord >= 1 else f"the norm of order {op.ord} has no derivative at zero; take 1 or more"


SETTINGS: list[tuple[Shape, dict[str, Any]]] = [
    ((4,), {"dim": [1]}),
    ((2, 3), {"dim": [-1], "keepdim": True}),
    ((3, 2), {"dim": [1]}),
    ((2, 3, 2), {"dim": [1, 3]}),
    ((2, 2, 2), {"dim": [2, 3], "keepdim": True}),
]

ORDERS = (1, 2, 3, 4, 1.5, math.inf)
NORM = Rule(
    operations=["aten.linalg_vector_norm"],
    forward=norm_forward,
    jac_t={"self": norm_jac_t},
    residual=norm_residual,
    formula="S d,  d = sign(x) |x / y|^(p - 1);  residual: g (p - 1) / y D (I - u u^T) D,  D^2 = |x / y|^(p - 2)",
    order=("convex",),
    refuse=norm_refused,
    cases=[Case({"self": shape}, {**given, "ord": order}) for shape, given in SETTINGS for order in ORDERS],
)

# -- variance --------------------------------------------------------------------------------------------------------


def degrees(op: Op) -> float:
    """What the sum of squares is divided by."""
    correction = 1 if op.correction is None else op.correction
    return math.prod(elements(op)) - correction


def variance_jac_t(op: Op, columns: Tensor) -> Tensor:
    error = op.self - op.self.mean([axis + 1 for axis in axes(op, op.dim)], True)
    return spread(op, columns) * (error * (2 / degrees(op))).unsqueeze(1)


def variance_parts(op: Op, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """unit and weight, as `projected` takes them."""
    equal = torch.full_like(op.self, math.prod(elements(op)) ** -0.5)
    return equal, kept(op, gradient) * (2 / degrees(op))


def variance_factor(op: Op, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return projected(op, *variance_parts(op, gradient))


def variance_drawn(op: Op, gradient: Tensor, noise: Noise) -> dict[str, Tensor]:
    return projected_drawn(op, *variance_parts(op, gradient), noise)


OF_VARIANCE = Factor(count, variance_factor, drawn=variance_drawn)


def variance_refused(op: Op) -> str | None:
    return over_samples(op) or ("it divides by zero: too few elements" if degrees(op) <= 0 else None)


VARIANCE = Rule(
    operations=["aten.var.correction"],
    forward=lambda op: op.self.var(op.dim, correction=op.correction, keepdim=op.keepdim),
    jac_t={"self": variance_jac_t},
    residual=OF_VARIANCE,
    formula="S 2 (x - mean(x)) / (n - c);  residual: 2 g / (n - c) (I - 1 1^T / n)",
    refuse=variance_refused,
    cases=[
        Case({"self": shape}, {**given, "correction": correction})
        for shape, given in SETTINGS
        for correction in (None, 0)
    ],
)

# Both at once: the variance, and the mean, which is linear.
VARIANCE_AND_MEAN = Rule(
    operations=["aten.var_mean.correction"],
    forward=lambda op: (
        op.self.mean(op.dim, op.keepdim)
        if op.index
        else op.self.var(op.dim, correction=op.correction, keepdim=op.keepdim)
    ),
    jac_t={"self": lambda op, columns: mean_jac_t(op, columns) if op.index else variance_jac_t(op, columns)},
    residual=lambda op: ZERO if op.index else OF_VARIANCE,
    formula="S 2 (x - mean(x)) / (n - c), S / n of the mean;  residual: 2 g / (n - c) (I - 1 1^T / n)",
    refuse=variance_refused,
    cases=[replace(case, index=index) for case in VARIANCE.cases for index in (0, 1)],
)
