"""Values put into a copy of a tensor, or added, where tensors of indices say: scatter, index_copy, index_add and so on.

The indices are those of each sample, or the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hbpcompiler.rule import Case, Op, Structure, Tensor

from .shared.indices import index_shape, indexed, refuse_indices
from .shared.putting import across_samples, putting
from .shared.selecting import axis, selection

# -- by a tensor of indices, of each sample --------------------------------------------------------------------------


def scatter_index(op: Op, columns: Tensor) -> Tensor:
    index: Tensor = op.argument("index").unsqueeze(1)
    return index.expand(-1, columns.shape[1], *[-1] * len(op.shape("index")))


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


def scatter_cases(overload: str, make: Callable[[Sequence[int]], Tensor]) -> list[Case]:
    settings = (((4,), (2,), 1), ((2, 4), (2, 3), -1), ((2, 4), (1, 2), 2))
    return [Case({"self": shape, "index": index, "src": index}, {"dim": dim}, ("self", "index", "src"), overload,
                 make={"index": make}) for shape, index, dim in settings]


SCATTER = putting(
    "aten.scatter.src", "src", scatter_take, scatter_clear, scatter_cases("src", _places), scatter_refused,
    lambda op: op.self.scatter(op.dim, op.argument("index"), op.src),
)
SCATTER_VALUE = selection(
    "aten.scatter.value",
    lambda op: op.self.scatter(op.dim, op.argument("index"), op.value),
    scatter_clear,
    [Case({"self": case.shapes["self"], "index": case.shapes["index"]}, {**case.attributes, "value": 0.7},
          ("self", "index"), "value", make={"index": _anywhere}) for case in scatter_cases("value", _places)],
    scatter_refused,
)
SCATTER_ADD = putting(
    "aten.scatter_add", "src", scatter_take, lambda op, columns: columns, scatter_cases("", _anywhere),
    scatter_refused, lambda op: op.self.scatter_add(op.dim, op.argument("index"), op.src), Structure.GENERAL,
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
)


def picked_shape(op: Op) -> tuple[int, ...]:
    """What the indices pick, of one sample."""
    axes, shape = indexed(op), op.shape("self")
    place = torch.broadcast_shapes(*[index_shape(op, axis) for axis in axes])
    return (*shape[: axes[0] - 1], *place, *shape[axes[-1] :])


def put_take(op: Op, columns: Tensor) -> Tensor:
    """Columns have one more axis than the result, the second, which has no index."""
    picked: Tensor = torch.ops.aten.index(columns, [None, *op.indices])
    return picked


def put_clear(op: Op, columns: Tensor) -> Tensor:
    if op.accumulate:
        return columns
    cleared: Tensor = torch.ops.aten.index_put(columns, [None, *op.indices], columns.new_zeros(1))
    return cleared


def put_refused(op: Op) -> str | None:
    if (reason := refuse_indices(op)) is not None:
        return reason
    if op.varies("values") and op.shape("values") != picked_shape(op):
        return "its values are repeated over the places they are put at; expand them to these places first"
    return None


def put_case(shape: tuple[int, ...], values: tuple[int, ...], indices: list[object], accumulate: bool = False) -> Case:
    found = [None if index is None else torch.tensor(index) for index in indices]
    constant = () if values else ("values",)
    return Case({"self": shape, "values": values}, {"indices": found, "accumulate": accumulate},
                ("self", "values") if values else ("self",), constant=constant)


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
    ],
    put_refused,
    lambda op: torch.ops.aten.index_put(op.self, op.indices, op.values, op.accumulate),
    lambda op: Structure.CONSTANT if op.accumulate else Structure.SELECTION,
)
