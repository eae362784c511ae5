"""Values put into a copy of a tensor: slice, select and diagonal assignments, scatter, index_put, index_add.

Columns of what is put are taken from where it went; columns of the tensor are zero there, or stay where it is added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor

from .indexing import index_shape, indexed
from .indexing import refuse as refuse_index
from .selections import axis, is_everything

Take = Callable[[Op, Tensor], Tensor]
"""(op, columns of the result) -> those of the place where something is put."""
Clear = Callable[[Op, Tensor], Tensor]
"""(op, columns of the result) -> the same with zeros there."""


def across_samples(op: Op) -> str | None:
    return "it puts values at samples; put them along the axes after the sample axis" if axis(op) == -1 else None


def putting(
    operation: str,
    source: str,
    take: Take,
    clear: Clear,
    cases: Sequence[Case],
    refuse: Callable[[Op], str | None] = across_samples,
    forward: Callable[[Op], Any] | None = None,
    structure: Structure | Callable[[Op], Structure] = Structure.SELECTION,
) -> Rule:
    """A rule for an operation that puts the tensor `source` into `self`."""

    def refused(op: Op) -> str | None:
        if not op.has_samples("self"):
            return "it puts samples into a tensor that has none; expand that over the batch first"
        if op.has(source) and not op.has_samples(source) and op.shape(source):
            return f"'{source}' has no sample axis of its own; expand it over the batch first"
        return refuse(op)

    return Rule(
        operations=[operation],
        forward=forward,
        jac_t={"self": clear, source: take},
        residual=ZERO,
        structure=structure,
        refuse=refused,
        cases=cases,
    )


def zeroed(put: Callable[[Op, Tensor, Tensor], Tensor], take: Take) -> Clear:
    """Clearing as putting zeros."""
    return lambda op, columns: put(op, columns, torch.zeros_like(take(op, columns)))


def case(shape: tuple[int, ...], source: tuple[int, ...], name: str = "src", constant: Sequence[str] = (),
         overload: str = "", **attributes: Any) -> Case:
    return Case({"self": shape, name: source}, attributes, ("self", name), overload, constant=constant)


# -- a slice, a place, a diagonal ------------------------------------------------------------------------------------


def slice_take(op: Op, columns: Tensor) -> Tensor:
    if is_everything(op):
        return columns
    end = None if op.end is not None and op.end >= 2**62 else op.end
    part = slice(op.start or None, end, None if op.step == 1 else op.step)
    return columns[(*[slice(None)] * (axis(op) + 2), part)]


def slice_put(op: Op, columns: Tensor, value: Tensor) -> Tensor:
    return value if is_everything(op) else columns.slice_scatter(value, axis(op) + 2, op.start, op.end, op.step)


SLICE = putting(
    "aten.slice_scatter",
    "src",
    slice_take,
    zeroed(slice_put, slice_take),
    [case((4,), (2,), dim=1, start=1, end=3), case((2, 5), (2, 2), dim=2, start=1, end=2**63 - 1, step=2),
     case((3, 2), (3, 1), dim=-1, start=-1), case((4,), (4,), dim=1),
     *[case((4,), (1,), constant=(name,), dim=1, start=1, end=2) for name in ("self", "src")],
     case((4,), (4,), dim=0, start=0, end=2**63 - 1)],
    lambda op: None if is_everything(op) else across_samples(op),
)


def select_take(op: Op, columns: Tensor) -> Tensor:
    return columns.select(axis(op) + 2, op.argument("index"))


SELECT = putting(
    "aten.select_scatter",
    "src",
    select_take,
    zeroed(lambda op, columns, value: columns.select_scatter(value, axis(op) + 2, op.argument("index")), select_take),
    [case((4,), (), dim=1, index=2), case((2, 3), (2,), dim=-1, index=-1), case((2, 3), (3,), dim=1, index=0)],
)


def diagonal_axes(op: Op) -> tuple[int, int]:
    rank = len(op.shape("self")) + (1 if op.has_samples("self") else 0)
    lead = 1 if op.has_samples("self") else 0
    return op.dim1 % rank - lead, op.dim2 % rank - lead


def diagonal_take(op: Op, columns: Tensor) -> Tensor:
    first, second = diagonal_axes(op)
    return columns.diagonal(op.offset, first + 2, second + 2)


def diagonal_put(op: Op, columns: Tensor, value: Tensor) -> Tensor:
    first, second = diagonal_axes(op)
    return columns.diagonal_scatter(value, op.offset, first + 2, second + 2)


def diagonal_refused(op: Op) -> str | None:
    if -1 in diagonal_axes(op):
        return "its diagonal runs through the samples; name two axes after the sample axis (dim1, dim2)"
    return None


DIAGONALS: list[dict[str, int]] = [
    {"dim1": 1, "dim2": 2},
    {"dim1": -1, "dim2": -2, "offset": 1},
    {"dim1": 2, "dim2": 1, "offset": -1},
]
DIAGONAL_SCATTER = putting(
    "aten.diagonal_scatter",
    "src",
    diagonal_take,
    zeroed(diagonal_put, diagonal_take),
    [
        Case({"self": shape, "src": source}, given, ("self", "src"))
        for shape, source, given in zip(((3, 3), (2, 3), (2, 4)), ((3,), (1,), (2,)), DIAGONALS, strict=True)
    ],
    diagonal_refused,
)
DIAGONAL = Rule(
    operations=["aten.diagonal"],
    forward=lambda op: op.self.diagonal(op.offset, op.dim1, op.dim2),
    jac_t={"self": lambda op, columns: diagonal_put(
        op, columns.new_zeros(columns.shape[0], columns.shape[1], *op.shape("self")), columns)},
    residual=ZERO,
    structure=Structure.SELECTION,
    refuse=diagonal_refused,
    cases=[Case({"self": shape}, given) for shape in ((3, 3), (2, 4)) for given in DIAGONALS]
    + [Case({"self": (2, 3, 3)}, {"dim1": 2, "dim2": 3})],
)

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
SCATTER_VALUE = Rule(
    operations=["aten.scatter.value"],
    forward=lambda op: op.self.scatter(op.dim, op.argument("index"), op.value),
    jac_t={"self": scatter_clear},
    residual=ZERO,
    structure=Structure.SELECTION,
    refuse=scatter_refused,
    cases=[Case({"self": case.shapes["self"], "index": case.shapes["index"]}, {**case.attributes, "value": 0.7},
                ("self", "index"), "value", make={"index": _anywhere}) for case in scatter_cases("value", _places)],
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
    if (reason := refuse_index(op)) is not None:
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
