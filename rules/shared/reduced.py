"""Axes that an operation reduces or runs along, and columns with these axes back."""

import math
from typing import Any

from hbpcompiler.rule import Op, Tensor


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
            "that the loss does, as in .mean(); where it must, loss.backward() has the gradient, and hbp.operator the "
            "GGN and the Hessian on one batch"
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


def dtype_of(op: Op) -> dict[str, Any]:
    return {} if getattr(op, "dtype", None) is None else {"dtype": op.dtype}


def mean_jac_t(op: Op, columns: Tensor) -> Tensor:
    count = math.prod(op.shape("self")[axis] for axis in axes(op, op.dim))
    return own_dtype(op, spread(op, columns / count).expand(-1, -1, *op.shape("self")))

