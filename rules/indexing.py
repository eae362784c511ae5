"""x[:, index], x[arange(N), index] and table[index]: elements picked by tensors of indices."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
import torch.nn.functional as F

from hbpcompiler.rule import Case, Contraction, Op, Tensor

from .shared.indices import (
    as_places,
    flat_index,
    index_shape,
    indexed,
    own_axes,
    own_places,
    picked_shape,
    put_back,
    refuse_indices,
    rest_of,
)
from .shared.selecting import selection


def forward(op: Op) -> Tensor:
    axes = indexed(op)
    indices = list(op.indices)
    single = not own_places(op) and not any(index_shape(op, axis) for axis in axes)
    if single:  # indexing by one number would read it off the tensor
        indices[axes[0]] = indices[axes[0]].unsqueeze(0)
    picked: Tensor = op.self[tuple(slice(None) if index is None else index for index in indices)]
    return picked.squeeze(axes[0]) if single else picked


def common_index(op: Op) -> Tensor:
    """Where in the indexed axes, taken as one, each element comes from, the same for all samples."""
    flat: Tensor | None = None
    for axis in indexed(op):
        length = op.shape("self")[axis - 1]
        index = op.indices[axis] % length  # negative ones count from the end
        flat = index if flat is None else flat * length + index
    assert flat is not None
    return flat.flatten()


def jac_t(op: Op, columns: Tensor) -> Tensor:
    """Axes of picked elements and indexed axes as one each; what was picked adds up where it came from."""
    if own_places(op):
        return put_back(op, columns)
    first, last = indexed(op)[0] - 1, indexed(op)[-1]  # within a sample
    shape = op.shape("self")
    before, there, after = shape[:first], shape[first:last], shape[last:]
    picked = len(op.shape("output")) - len(before) - len(after)
    if picked != 1:
        columns = columns.flatten(first + 2, first + 1 + picked) if picked else columns.unsqueeze(first + 2)
    zeros = columns.new_zeros(columns.shape[0], columns.shape[1], *before, prod(there), *after)
    added = zeros.index_add(first + 2, common_index(op), columns)
    return added if len(there) == 1 else added.unflatten(first + 2, there)


# -- a table without samples, which meets one-hot vectors ------------------------------------------------------------


def params(op: Op) -> Mapping[str, Contraction]:
    """Where the indexed axes come first: then the entries are rows, as those of an embedding."""
    if op.has_samples("self") or own_axes(op) != list(range(len(own_axes(op)))) or not op.has_samples("indices"):
        return {}
    alone = not picked_shape(op)
    return {"self": Contraction("nkd,nv->nkvd" if alone else "nkpd,npv->nkvd", rows, one_hot, kernel, index=entry)}


def rows(op: Op, columns: Tensor) -> Tensor:
    """[N, K, P, d], or [N, K, d] of one index for each sample."""
    places = as_places(op, columns)
    rest = len(rest_of(op))
    places = places if rest == 1 else places.flatten(3) if rest else places.unsqueeze(-1)
    return places if picked_shape(op) else places.squeeze(2)


def entry(op: Op) -> Tensor:
    """[N, P], or [N] of one index for each sample: which row each place reads."""
    return flat_index(op) if picked_shape(op) else flat_index(op).squeeze(1)


def one_hot(op: Op) -> Tensor:
    """[N, P, v], or [N, v] of one index for each sample."""
    entries = prod(op.shape("self")[axis] for axis in own_axes(op))
    return F.one_hot(entry(op), entries).type_as(op.self)


def kernel(op: Op, gradient: Tensor) -> Tensor:
    entries = prod(op.shape("self")[axis] for axis in own_axes(op))
    rest = [op.shape("self")[axis] for axis in rest_of(op)]
    flat = gradient.reshape(-1, *rest)
    return gradient.new_zeros(entries, *rest).index_add(0, flat_index(op).flatten(), flat).reshape(op.shape("self"))


def case(*shape: int, indices: list[object]) -> Case:
    found = [None if index is None else torch.tensor(index) for index in indices]
    return Case({"self": shape}, {"indices": found})


def own_case(
    shape: tuple[int, ...], *indices: tuple[int, ...], common: Sequence[int] = (), numbers: bool = True
) -> Case:
    """Places of each sample: behind the samples' numbers, or in a table that has no samples."""
    sampled = [f"indices.{axis}" for axis in range(len(indices)) if axis not in common]
    return Case(
        {"self": shape, "indices": list(indices)},
        batched=(*(["self"] if numbers else []), *sampled),
        make={"indices": lambda drawn: torch.randint(-2, 2, tuple(drawn))},
        numbering=("indices.0",) if numbers else (),
    )


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
        own_case((4, 2), (), ()),
        own_case((2,), ()),
        own_case((2,), (3,)),
        own_case((4, 2), (1,), (3,)),
        own_case((2, 4, 3), (1,), (3,), (1,)),
        own_case((2, 4, 3), (1,), (3,), (3,), common=(2,)),
        own_case((4, 2, 2), (2,), (1,)),
        own_case((4, 2), (1,), (2,), common=(1,)),
        own_case((4, 2), (2,), numbers=False),
        own_case((4, 2, 3), (), (), numbers=False),
        own_case((4,), (2, 3), numbers=False),
    ],
    refuse_indices,
    params=params,
)
