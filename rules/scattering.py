"""Values put into a slice, a place or a diagonal of a copy of a tensor, and that diagonal itself."""

from __future__ import annotations

from hbpcompiler.rule import Case, Op, Tensor

from .shared.putting import across_samples, case, putting, zeroed
from .shared.selecting import axis, is_everything, range_of, selection, zeros

# -- a slice, a place, a diagonal ------------------------------------------------------------------------------------


def slice_take(op: Op, columns: Tensor) -> Tensor:
    if is_everything(op):
        return columns
    return columns[(*[slice(None)] * (axis(op) + 2), range_of(op))]


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
DIAGONAL = selection(
    "aten.diagonal",
    lambda op: op.self.diagonal(op.offset, op.dim1, op.dim2),
    lambda op, columns: diagonal_put(op, zeros(op, columns), columns),
    [Case({"self": shape}, given) for shape in ((3, 3), (2, 4)) for given in DIAGONALS]
    + [Case({"self": (2, 3, 3)}, {"dim1": 2, "dim2": 3})],
    diagonal_refused,
)
