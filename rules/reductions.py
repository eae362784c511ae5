"""Sums, means and extrema over axes of a sample, and running sums.

Over the sample axis they would mix samples: only a loss may end in that (see means.py).
"""

import math
from collections.abc import Sequence
from typing import Any

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor


def axes(op: Op, dims: Any) -> list[int]:
    """Axes of a sample, counted from 0; the sample axis itself is -1."""
    lead = 1 if op.has_samples("self") else 0
    rank = len(op.shape("self")) + lead
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return sorted(dim % rank - lead for dim in dims) if rank else []


def over_samples(op: Op) -> str | None:
    if -1 in axes(op, op.dim):
        return (
            "it reduces over the sample axis, which mixes samples; reduce over the axes after it, or as the last thing "
            "that the loss does, as in .mean()"
        )
    return None


def spread(op: Op, columns: Tensor) -> Tensor:
    """Columns with the reduced axes back, of length one."""
    if not getattr(op, "keepdim", False):
        for axis in axes(op, op.dim):
            columns = columns.unsqueeze(axis + 2)
    return columns


def own_dtype(op: Op, columns: Tensor) -> Tensor:
    """Where the operation was told a dtype, columns go back to the input's."""
    return columns.type_as(op.self) if getattr(op, "dtype", None) is not None else columns


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


def mean_jac_t(op: Op, columns: Tensor) -> Tensor:
    count = math.prod(op.shape("self")[axis] for axis in axes(op, op.dim))
    return own_dtype(op, spread(op, columns / count).expand(-1, -1, *op.shape("self")))


def dtype_of(op: Op) -> dict[str, Any]:
    return {} if op.dtype is None else {"dtype": op.dtype}


SUM = Rule(
    operations=["aten.sum.dim_IntList"],
    forward=lambda op: op.self.sum(op.dim, op.keepdim, **dtype_of(op)),
    jac_t={"self": sum_jac_t},
    residual=ZERO,
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
    zeros = columns.new_zeros(columns.shape[0], columns.shape[1], *op.shape("self"))
    return zeros.scatter(axis + 2, index, spread_columns)


def _shared(name: str) -> Rule:
    return Rule(
        operations=[f"aten.{name}"],
        forward=lambda op: (op.self.amax if name == "amax" else op.self.amin)(op.dim, op.keepdim),
        jac_t={"self": shared_extremum},
        residual=ZERO,
        order=("increasing",),
        refuse=over_samples,
        cases=[Case({"self": shape}, given) for shape, given in SETTINGS],
    )


def _chosen(name: str) -> Rule:
    def forward(op: Op) -> Any:
        result = (op.self.max if name == "max" else op.self.min)(op.dim, op.keepdim)
        if op.index == 0 and op.differentiated:
            return result[0], {"indices": result[1]}
        return result[op.index]

    return Rule(
        operations=[f"aten.{name}.dim"],
        forward=forward,
        jac_t={"self": chosen_extremum},
        residual=ZERO,
        structure=Structure.SELECTION,
        refuse=over_samples,
        cases=[Case({"self": shape}, {**given, "dim": given["dim"][0]}, overload="dim") for shape, given in SETTINGS],
    )


EXTREMA = [_shared("amax"), _shared("amin"), _chosen("max"), _chosen("min")]
