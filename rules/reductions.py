"""Sums, means and extrema over axes of a sample, and running sums.

Over the sample axis they would mix samples: only a loss may end in that (see means.py).
"""

from collections.abc import Sequence
from typing import Any

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor

from .shared.reduced import axes, dtype_of, mean_jac_t, over_samples, own_dtype, spread
from .shared.selecting import selection, with_places, zeros

SETTINGS: Sequence[tuple[tuple[int, ...], dict[str, Any]]] = (
    ((4,), {"dim": [1]}),
    ((4,), {"dim": [-1], "keepdim": True}),
    ((2, 3), {"dim": [1]}),
    ((2, 3), {"dim": [2, 1]}),
    ((2, 3, 2), {"dim": [1, -1], "keepdim": True}),
)

# -- sums and means --------------------------------------------------------------------------------------------------


def sum_jac_t(op: Op, columns: Tensor) -> Tensor:
    return own_dtype(op, spread(op, columns).expand(-1, -1, *op.shape("self")))


SUM = Rule(
    operations=["aten.sum.dim_IntList"],
    forward=lambda op: op.self.sum(op.dim, op.keepdim, **dtype_of(op)),
    jac_t={"self": sum_jac_t},
    residual=ZERO,
    formula="S at each place",
    structure=Structure.CONSTANT,
    order=("increasing",),
    refuse=over_samples,
    cases=[Case({"self": shape}, given) for shape, given in SETTINGS],
)
MEAN = Rule(
    operations=["aten.mean.dim"],
    forward=lambda op: op.self.mean(op.dim, op.keepdim, **dtype_of(op)),
    jac_t={"self": mean_jac_t},
    residual=ZERO,
    formula="S / n at each of the n places",
    structure=Structure.CONSTANT,
    order=("increasing",),
    refuse=over_samples,
    cases=[Case({"self": shape}, given) for shape, given in SETTINGS],
)
CUMSUM = Rule(
    operations=["aten.cumsum"],
    forward=lambda op: op.self.cumsum(op.dim, **dtype_of(op)),
    jac_t={"self": lambda op, columns: own_dtype(op, _backwards(columns, axes(op, op.dim)[0] + 2))},
    residual=ZERO,
    formula="sum of S over the places from here on",
    structure=Structure.CONSTANT,
    order=("increasing",),
    refuse=over_samples,
    cases=[Case({"self": (4,)}, {"dim": 1}), Case({"self": (2, 3)}, {"dim": -2})],
)


def _backwards(columns: Tensor, axis: int) -> Tensor:
    return columns.flip(axis).cumsum(axis).flip(axis)


# -- extrema ---------------------------------------------------------------------------------------------------------


def shared_extremum(op: Op, columns: Tensor) -> Tensor:
    """amax and amin divide the gradient among equals."""
    kept = op.output
    if not op.keepdim:
        for axis in axes(op, op.dim):
            kept = kept.unsqueeze(axis + 1)
    equal = (op.self == kept).type_as(op.self)
    share = equal / equal.sum([axis + 1 for axis in axes(op, op.dim)], True)
    return spread(op, columns) * share.unsqueeze(1)


def chosen_extremum(op: Op, columns: Tensor) -> Tensor:
    """max and min along one axis choose one element, whose index the forward pass keeps."""
    (axis,) = axes(op, op.dim)
    index = op.indices if op.keepdim else op.indices.unsqueeze(axis + 1)
    spread_columns = spread(op, columns)
    index = index.unsqueeze(1).expand_as(spread_columns)
    return zeros(op, columns).scatter(axis + 2, index, spread_columns)


def _shared(name: str) -> Rule:
    return Rule(
        operations=[f"aten.{name}"],
        forward=lambda op: (op.self.amax if name == "amax" else op.self.amin)(op.dim, op.keepdim),
        jac_t={"self": shared_extremum},
        residual=ZERO,
        formula="S / m at the m places of the extremum, 0 elsewhere",
        order=("increasing",),
        refuse=over_samples,
        cases=[Case({"self": shape}, given) for shape, given in SETTINGS],
    )


def _chosen(name: str) -> Rule:
    def forward(op: Op) -> Any:
        return with_places(op, (op.self.max if name == "max" else op.self.min)(op.dim, op.keepdim))

    return selection(
        f"aten.{name}.dim",
        forward,
        chosen_extremum,
        [Case({"self": shape}, {**given, "dim": given["dim"][0]}) for shape, given in SETTINGS],
        over_samples,
    )


EXTREMA = [_shared("amax"), _shared("amin"), _chosen("max"), _chosen("min")]
