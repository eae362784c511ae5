"""Values put into a copy of a tensor, or added, where tensors of indices say: scatter, index_copy, index_add and so on.

The indices are those of each sample, or the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hbpcompiler.rule import Case, Contraction, Op, Structure, Tensor

from .shared.indices import (
    index_shape,
    indexed,
    own_places,
    picked_columns,
    picked_shape,
    refuse_indices,
    rest_of,
    without_picked,
)
from .shared.matrix_products import summed
from .shared.putting import across_samples, putting
from .shared.selecting import axis, selection

# -- by a tensor of indices, of each sample --------------------------------------------------------------------------


def scatter_index(op: Op, columns: Tensor) -> Tensor:
    """[N, K, *index], also where all is of parameters and has a sample axis of length one."""
    index: Tensor = op.argument("index").unsqueeze(1)
    return index.expand(columns.shape[0], columns.shape[1], *[-1] * len(op.shape("index")))


def scatter_take(op: Op, columns: Tensor) -> Tensor:
    return columns.gather(axis(op) + 2, scatter_index(op, columns))


def scatter_clear(op: Op, columns: Tensor) -> Tensor:
    return columns.scatter(axis(op) + 2, scatter_index(op, columns), 0)


def scatter_refused(op: Op) -> str | None:
    if not op.has_samples("index"):
        return "its index has no sample axis, so that it puts values at some samples only"
    if op.has("src") and op.shape("src") != op.shape("index"):
        return "its source is larger than its index; cut it to that size"
    return across_samples(op)


def _places(shape: Sequence[int]) -> Tensor:
    """Indices below 4 along the last axis, none twice: what is put twice is not defined."""
    return torch.rand(*shape[:-1], 4).argsort(-1)[..., : shape[-1]]


def _anywhere(shape: Sequence[int]) -> Tensor:
    return torch.randint(3, tuple(shape))


def scatter_cases(make: Callable[[Sequence[int]], Tensor]) -> list[Case]:
    settings = (((4,), (2,), 1), ((2, 4), (2, 3), -1), ((2, 4), (1, 2), 2))
    return [Case({"self": shape, "index": index, "src": index}, {"dim": dim}, ("self", "index", "src"),
                 make={"index": make}) for shape, index, dim in settings]


SCATTER = putting(
    "aten.scatter.src", "src", scatter_take, scatter_clear, scatter_cases(_places), scatter_refused,
    lambda op: op.self.scatter(op.dim, op.argument("index"), op.src),
)
SCATTER_VALUE = selection(
    "aten.scatter.value",
    lambda op: op.self.scatter(op.dim, op.argument("index"), op.value),
    scatter_clear,
    [Case({"self": case.shapes["self"], "index": case.shapes["index"]}, {**case.attributes, "value": 0.7},
          ("self", "index"), make={"index": _anywhere}) for case in scatter_cases(_places)],
    scatter_refused,
    formula="S, 0 where the value was put",
)
SCATTER_ADD = putting(
    "aten.scatter_add", "src", scatter_take, lambda op, columns: columns, scatter_cases(_anywhere),
    scatter_refused, lambda op: op.self.scatter_add(op.dim, op.argument("index"), op.src), Structure.GENERAL,
    formula="S to both; to what was added, from where it was",
)

# -- by a tensor of indices, the same for all samples ----------------------------------------------------------------


def index_take(op: Op, columns: Tensor) -> Tensor:
    return columns.index_select(axis(op) + 2, op.argument("index"))


def index_refused(op: Op) -> str | None:
    return "its index depends on the sample" if op.has_samples("index") else across_samples(op)


def index_cases(make: Callable[[Sequence[int]], Tensor], **attributes: Any) -> list[Case]:
    settings = (((4,), (2,), 1), ((2, 4), (2, 2), -1), ((4, 2), (2, 2), 1))
    return [Case({"self": shape, "index": (2,), "source": source}, {"dim": dim, **attributes}, ("self", "source"),
                 make={"index": make}) for shape, source, dim in settings]


INDEX_COPY = putting(
    "aten.index_copy",
    "source",
    index_take,
    lambda op, columns: columns.index_fill(axis(op) + 2, op.argument("index"), 0),
    index_cases(_places),
    index_refused,
    lambda op: op.self.index_copy(op.dim, op.argument("index"), op.source),
)


def index_add(op: Op) -> Tensor:
    given = {} if op.alpha == 1 else {"alpha": op.alpha}
    result: Tensor = op.self.index_add(op.dim, op.argument("index"), op.source, **given)
    return result


INDEX_ADD = putting(
    "aten.index_add",
    "source",
    lambda op, columns: index_take(op, columns) if op.alpha == 1 else index_take(op, columns) * op.alpha,
    lambda op, columns: columns,
    [*index_cases(_anywhere), *index_cases(_anywhere, alpha=-0.5)],
    index_refused,
    index_add,
    Structure.CONSTANT,
    formula="S to both; to what was added, from where it was",
)


def place_shape(op: Op) -> tuple[int, ...]:
    """What the indices pick, of one sample."""
    axes, shape = indexed(op), op.shape("self")
    if is_mask(op):
        return shape
    if own_places(op):
        return (*picked_shape(op), *[shape[axis] for axis in rest_of(op)])
    place = torch.broadcast_shapes(*[index_shape(op, axis) for axis in axes])
    return (*shape[: axes[0] - 1], *place, *shape[axes[-1] :])


def is_mask(op: Op) -> bool:
    """x[mask] = value: one boolean index, of the first axes of all samples."""
    return indexed(op) == [0] and op.is_mask("indices.0")


def masked_axes(op: Op) -> int:
    return len(op.shape("indices.0"))


def mask(op: Op, more: int = 0) -> Tensor:
    """The mask as it meets the tensor, or its columns with `more` axes after the samples."""
    found: Tensor = op.indices[0]
    rest = len(op.shape("self")) - masked_axes(op)
    found = found[(..., *[None] * rest)] if rest else found
    return found.unsqueeze(1) if more else found


def put(op: Op) -> Any:
    if not is_mask(op):
        return torch.ops.aten.index_put(op.self, op.indices, op.values, op.accumulate)
    values = op.values.squeeze(0) if len(op.shape("values")) > len(op.shape("self")) - masked_axes(op) else op.values
    return torch.where(mask(op), op.self + values if op.accumulate else values, op.self)


def put_take(op: Op, columns: Tensor) -> Tensor:
    """Columns have one more axis than the result, the second, which has no index."""
    if is_mask(op):
        taken = columns.masked_fill(~mask(op, 1), 0)
        rest = op.shape("self")[masked_axes(op) :]
        taken = taken.sum(list(range(2, 2 + masked_axes(op)))) if masked_axes(op) else taken
        own = op.shape("values")[1:] if len(op.shape("values")) > len(rest) else op.shape("values")
        return summed(taken, own, rest).reshape(columns.shape[0], -1, *op.shape("values"))
    if own_places(op):
        picked = picked_columns(op, columns)
    else:
        picked = torch.ops.aten.index(columns, [None, *op.indices])
    place, own = place_shape(op), op.shape("values")
    if not op.has_samples("values") and len(own) > len(place):
        return summed(picked, own[1:], place).unsqueeze(2)  # an axis of length one in place of samples
    return picked if own == place else summed(picked, own, place)


def put_clear(op: Op, columns: Tensor) -> Tensor:
    if op.accumulate:
        return columns
    if is_mask(op):
        return columns.masked_fill(mask(op, 1), 0)
    if own_places(op):
        return without_picked(op, columns)
    cleared: Tensor = torch.ops.aten.index_put(columns, [None, *op.indices], columns.new_zeros(1))
    return cleared


def put_refused(op: Op) -> str | None:
    if is_mask(op):
        rest = len(op.shape("self")) - masked_axes(op)
        if not op.has_samples("indices.0") or op.has_samples("values") or len(op.shape("values")) > rest + 1:
            return "its values are for one place after the other, through all samples; use torch.where(mask, values, x)"
        return None
    if (reason := refuse_indices(op)) is not None:
        return reason
    if op.has_samples("values") and len(op.shape("values")) != len(place_shape(op)):
        return "its values have fewer axes than the places they are put at, so that their samples meet another axis"
    return None


def put_structure(op: Op) -> Structure:
    if not op.accumulate:
        return Structure.SELECTION
    return Structure.GENERAL if is_mask(op) or own_places(op) else Structure.CONSTANT


def put_params(op: Op) -> Mapping[str, Contraction]:
    """Values that are a parameter: the sum over the places they are put at."""
    if op.has_samples("values"):
        return {}
    return {"values": Contraction("nko->nko", lambda op, columns: put_take(op, columns).reshape(
        columns.shape[0], columns.shape[1], -1))}


def put_case(shape: tuple[int, ...], values: tuple[int, ...], indices: list[object], accumulate: bool = False) -> Case:
    found = [None if index is None else torch.tensor(index) for index in indices]
    constant = () if values else ("values",)
    return Case({"self": shape, "values": values}, {"indices": found, "accumulate": accumulate},
                ("self", "values") if values else ("self",), constant=constant)


def own_put_case(shape: tuple[int, ...], values: tuple[int, ...], *indices: tuple[int, ...], sampled: bool = True,
                 accumulate: bool = False) -> Case:
    """At places of each sample, none twice."""
    slots = [f"indices.{axis}" for axis in range(len(indices))]
    return Case({"self": shape, "values": values, "indices": list(indices)}, {"accumulate": accumulate},
                ("self", *slots, *(["values"] if sampled else [])), make={"indices": _places},
                numbering=("indices.0",))


def mask_case(shape: tuple[int, ...], values: tuple[int, ...], *masked: int, accumulate: bool = False) -> Case:
    return Case({"self": shape, "values": values, "indices": [masked]}, {"accumulate": accumulate},
                ("self", "indices.0"), make={"indices": lambda drawn: torch.rand(tuple(drawn)) < 0.5})


INDEX_PUT = putting(
    "aten.index_put",
    "values",
    put_take,
    put_clear,
    [
        put_case((4,), (2,), [None, [2, 0]]),
        put_case((4,), (), [None, [2, 0]]),
        put_case((4,), (3,), [None, [2, 0, 2]], accumulate=True),
        put_case((2, 3), (2, 2), [None, None, [-1, 0]]),
        put_case((3, 4, 2), (2, 2), [None, [0, 2], [1, -1]]),
        put_case((2, 3), (2, 1, 2), [None, None, [[2, 0]]]),
        put_case((2, 3), (2, 1), [None, None, [-1, 0]]),
        own_put_case((4, 2), (2,), (), ()),
        own_put_case((4, 2), (3, 2), (1,), (3,)),
        own_put_case((4, 2), (3, 1), (1,), (3,), accumulate=True),
        own_put_case((4, 4, 2), (2,), (1,), (2,), (1,), sampled=False),
        mask_case((3, 2), (), 3, 2),
        mask_case((3, 2), (2,), 3),
        mask_case((3, 2), (1, 1), 3, accumulate=True),
        mask_case((), ()),
    ],
    put_refused,
    put,
    put_structure,
    alone=True,
    params=put_params,
)
