"""Tensors of indices along some axes: x[:, index], the same for all samples; x[arange(N), index], of each sample; and
table[index], of each sample from what has none.

Whatever is picked is one axis of a sample, its indexed axes taken as one, of which a flat index names the entries.
"""

from __future__ import annotations

from math import prod

import torch

from hbpcompiler.rule import Op, Shape, Tensor


def indexed(op: Op) -> list[int]:
    """The axes of the input that have an index, the sample axis included."""
    found = [axis for axis in range(len(op.shape("self")) + 1) if op.has(f"indices.{axis}")]
    return found or [axis for axis, index in enumerate(op.indices) if index is not None]


def index_shape(op: Op, axis: int) -> Shape:
    return op.shape(f"indices.{axis}") if op.has(f"indices.{axis}") else tuple(op.indices[axis].shape)


def own_places(op: Op) -> bool:
    """Whether each sample has places of its own: x[arange(N), index], or an index that has samples."""
    return op.has_samples("indices") or not op.has_samples("self")


def refuse_indices(op: Op) -> str | None:
    axes = indexed(op)
    if op.has_samples("self") and 0 in axes and not op.numbers_samples("indices.0"):
        return ("it picks samples; keep all of them, in their order: x[torch.arange(len(x)), index], or torch.gather "
                "along the axes after the first")
    if op.has_samples("self") and 0 not in axes and op.has_samples("indices"):
        return ("it picks elements of all samples for each sample; use x[torch.arange(len(x)), index], or torch.gather "
                "along the axes after the first")
    if own_places(op):
        return _unmet(op, axes)
    if axes != list(range(axes[0], axes[-1] + 1)):
        return "its indices are not side by side, which moves the sample axis; index one axis after the other"
    return None


def _unmet(op: Op, axes: list[int]) -> str | None:
    """Why the sample axes of the indices do not meet, if they do not."""
    sampled = {axis for axis in axes if op.has_samples(f"indices.{axis}")}
    ranks = {axis: len(index_shape(op, axis)) + (axis in sampled) for axis in axes}
    longest = max(ranks.values())
    if any(ranks[axis] != longest for axis in sampled) or any(ranks[axis] == longest for axis in set(axes) - sampled):
        return ("its indices have different numbers of axes, so that the samples' numbers meet another axis; give them "
                "as many, as in x[torch.arange(len(x))[:, None], index]")
    return None


# -- places of its own for each sample -------------------------------------------------------------------------------


def own_axes(op: Op) -> list[int]:
    """The indexed axes of a sample, or of what has no samples."""
    if not op.has_samples("self"):
        return indexed(op)
    return [axis - 1 for axis in indexed(op) if axis > 0]


def rest_of(op: Op) -> list[int]:
    """The axes of a sample that have no index."""
    picked = own_axes(op)
    return [axis for axis in range(len(op.shape("self"))) if axis not in picked]


def picked_shape(op: Op) -> Shape:
    """What the indices themselves look like, of one sample: the axes of what is picked that stand in front."""
    shapes = [index_shape(op, axis) for axis in indexed(op)]
    return tuple(torch.broadcast_shapes(*shapes))


def flat_index(op: Op) -> Tensor:
    """[N, P], or [1, P] where it is the same for all samples: which entry of the indexed axes, taken as one."""
    lead = 1 if op.has_samples("self") else 0
    flat: Tensor | None = None
    sampled = False
    for axis in own_axes(op):
        length = op.shape("self")[axis]
        sampled = sampled or op.has_samples(f"indices.{axis + lead}")
        index = op.indices[axis + lead].long() % length  # negative ones count from the end
        flat = index if flat is None else flat * length + index
    picked = picked_shape(op)
    if flat is None:  # the samples' numbers alone: of each sample all
        flat, sampled = op.indices[0] * 0, True
    if not sampled:
        return flat.expand(picked).reshape(1, -1)
    return flat.reshape(-1, prod(picked)) if prod(picked) == prod(_widest(op)) else flat.expand(-1, *picked).flatten(1)


def _widest(op: Op) -> Shape:
    """The shape of the indices but for the samples' numbers, broadcast."""
    lead = 1 if op.has_samples("self") else 0
    axes = [axis + lead for axis in own_axes(op)] or [0]
    return tuple(torch.broadcast_shapes(*[index_shape(op, axis) for axis in axes]))


def flattened(op: Op, columns: Tensor) -> Tensor:
    """Columns at the input, [N, K, *self] -> [N, K, indexed axes as one, *rest]."""
    picked, rest = own_axes(op), rest_of(op)
    if not picked:
        return columns.unsqueeze(2)
    order = [0, 1, *[axis + 2 for axis in (*picked, *rest)]]
    moved = columns if order == sorted(order) else columns.permute(order)
    return moved.flatten(2, 1 + len(picked)) if len(picked) > 1 else moved


def unflattened(op: Op, columns: Tensor) -> Tensor:
    """[N, K, indexed axes as one, *rest] -> [N, K, *self]."""
    picked, rest = own_axes(op), rest_of(op)
    if not picked:
        return columns.squeeze(2)
    if len(picked) > 1:
        columns = columns.unflatten(2, [op.shape("self")[axis] for axis in picked])
    order = [*picked, *rest]
    back = [0, 1, *[order.index(axis) + 2 for axis in range(len(order))]]
    return columns if back == sorted(back) else columns.permute(back)


def as_places(op: Op, columns: Tensor) -> Tensor:
    """Columns at what was picked, [N, K, *picked, *rest] -> [N, K, P, *rest]."""
    picked = len(picked_shape(op))
    if picked == 1:
        return columns
    return columns.flatten(2, 1 + picked) if picked else columns.unsqueeze(2)


def put_back(op: Op, columns: Tensor) -> Tensor:
    """Columns at what was picked -> columns at the input, where what was picked adds up."""
    there = prod(op.shape("self")[axis] for axis in own_axes(op))
    places = as_places(op, columns)
    rest = [op.shape("self")[axis] for axis in rest_of(op)]
    zeros = columns.new_zeros(columns.shape[0], columns.shape[1], there, *rest)
    return unflattened(op, zeros.scatter_add(2, _spread(op, places), places))


def picked_columns(op: Op, columns: Tensor) -> Tensor:
    """Columns at the input -> columns at what was picked."""
    flat, picked = flattened(op, columns), picked_shape(op)
    found = flat.gather(2, _spread(op, flat))
    return found if len(picked) == 1 else found.unflatten(2, picked) if picked else found.squeeze(2)


def without_picked(op: Op, columns: Tensor) -> Tensor:
    """Columns at the input with zeros at what was picked."""
    flat = flattened(op, columns)
    return unflattened(op, flat.scatter(2, _spread(op, flat), 0))


def _spread(op: Op, columns: Tensor) -> Tensor:
    """The flat index for all columns, [N, K, P, *rest]."""
    rest = [op.shape("self")[axis] for axis in rest_of(op)]
    index, places = flat_index(op).unsqueeze(1), prod(picked_shape(op))
    if rest:
        index = index.reshape(-1, 1, places, *[1] * len(rest))
    return index.expand(columns.shape[0], columns.shape[1], places, *rest)
