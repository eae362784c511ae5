"""x[:, index]: elements picked by tensors of indices that are the same for all samples."""

from math import prod

import torch

from hbpcompiler.rule import Case, Op, Tensor

from .shared.indices import index_shape, indexed, refuse_indices
from .shared.selecting import selection


def forward(op: Op) -> Tensor:
    axes = indexed(op)
    indices = list(op.indices)
    single = not any(index_shape(op, axis) for axis in axes)
    if single:  # indexing by one number would read it off the tensor
        indices[axes[0]] = indices[axes[0]].unsqueeze(0)
    picked: Tensor = op.self[tuple(slice(None) if index is None else index for index in indices)]
    return picked.squeeze(axes[0]) if single else picked


def flat_index(op: Op) -> Tensor:
    """Where in the indexed axes, taken as one, each element comes from."""
    flat: Tensor | None = None
    for axis in indexed(op):
        length = op.shape("self")[axis - 1]
        index = op.indices[axis] % length  # negative ones count from the end
        flat = index if flat is None else flat * length + index
    assert flat is not None
    return flat.flatten()


def jac_t(op: Op, columns: Tensor) -> Tensor:
    """Axes of picked elements and indexed axes as one each; what was picked adds up where it came from."""
    first, last = indexed(op)[0] - 1, indexed(op)[-1]  # within a sample
    shape = op.shape("self")
    before, there, after = shape[:first], shape[first:last], shape[last:]
    picked = len(op.shape("output")) - len(before) - len(after)
    if picked != 1:
        columns = columns.flatten(first + 2, first + 1 + picked) if picked else columns.unsqueeze(first + 2)
    zeros = columns.new_zeros(columns.shape[0], columns.shape[1], *before, prod(there), *after)
    added = zeros.index_add(first + 2, flat_index(op), columns)
    return added if len(there) == 1 else added.unflatten(first + 2, there)


def case(*shape: int, indices: list[object]) -> Case:
    found = [None if index is None else torch.tensor(index) for index in indices]
    return Case({"self": shape}, {"indices": found}, overload="Tensor")


INDEX = selection(
    "aten.index",
    forward,
    jac_t,
    [
        case(4, indices=[None, [2, 0, 2]]),
        case(3, 2, indices=[None, [-1, 1]]),
        case(2, 3, indices=[None, None, [[2, 0], [1, -3]]]),
        case(3, 4, 2, indices=[None, [0, 2, 2], [1, -1, -1]]),
        case(2, 3, 3, indices=[None, None, [[0], [2]], [1, 0, 1]]),
        case(3, 2, indices=[None, 1]),
    ],
    refuse_indices,
)
