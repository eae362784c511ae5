"""Parts of a tensor, and tensors made of parts: select, slice, split, gather, index_select, cat, stack.

Columns go back to where the elements came from; all else gets zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hbpcompiler.rule import Case, Contraction, Op, Rule, Tensor, spread_select, spread_slice

from . import indexing
from .shared.moving import refusal
from .shared.selecting import across_samples, axis, is_everything, is_whole_batch, range_of, selection, zeros

# -- one place, or a range -------------------------------------------------------------------------------------------


def at_place(op: Op, columns: Tensor, index: Any) -> Tensor:
    """Columns of one place along the operation's axis."""
    found: Tensor = spread_select(columns, axis(op) + 2, op.shape("self")[axis(op)], index)
    return found


SELECT = selection(
    "aten.select",
    lambda op: op.self.select(op.dim, op.argument("index")),
    lambda op, columns: at_place(op, columns, op.argument("index")),
    [
        Case({"self": shape}, {"dim": dim, "index": index})
        for shape, dim, index in (((4,), 1, 2), ((2, 3), 1, -1), ((2, 3), -1, 0))
    ],
    across_samples,
)


def slice_forward(op: Op) -> Tensor:
    """Written with torch's own notation: x[:, 1:3]."""
    before = [slice(None)] * (axis(op) + (1 if op.has_samples("self") else 0))
    return op.self if is_everything(op) else op.self[(*before, range_of(op))]


def given(op: Op) -> tuple[Any, ...]:
    """Where a range begins and ends, and its step where that is not 1."""
    return (op.start, op.end) if op.step == 1 else (op.start, op.end, op.step)


def slice_jac_t(op: Op, columns: Tensor) -> Tensor:
    if is_everything(op):
        return columns
    found: Tensor = spread_slice(columns, axis(op) + 2, op.shape("self")[axis(op)], *given(op))
    return found


SLICE = selection(
    "aten.slice",
    slice_forward,
    slice_jac_t,
    [
        Case({"self": shape}, {"dim": dim, "start": start, "end": end, "step": step})
        for shape, dim, start, end, step in (
            ((4,), 1, 1, 3, 1),
            ((4,), 1, None, -1, 1),
            ((2, 5), 2, 1, 2**63 - 1, 2),
            ((3, 2), 1, -2, None, 1),
            ((3, 2), 0, 0, 2**63 - 1, 1),
        )
    ],
    lambda op: None if is_everything(op) else across_samples(op),
)

# -- consecutive parts, of which op.index is one ----------------------------------------------------------------------


def start(op: Op, sizes: Any) -> int:
    """Where the part begins, with sizes a number or a list."""
    return sizes * op.index if isinstance(sizes, int) else sum(sizes[: op.index])


def part(operation: str, sizes: Callable[[Op], Any], cases: Sequence[Case]) -> Rule:
    """A rule for an operation that cuts `self` into parts of these sizes (the last may be shorter)."""

    def forward(op: Op) -> Tensor:
        if is_whole_batch(op):
            return op.self
        return op.self.narrow(op.dim, start(op, sizes(op)), op.shape("output")[axis(op)])

    def jac_t(op: Op, columns: Tensor) -> Tensor:
        if is_whole_batch(op):
            return columns
        begin = start(op, sizes(op))
        end = begin + op.shape("output")[axis(op)]
        found: Tensor = spread_slice(columns, axis(op) + 2, op.shape("self")[axis(op)], begin, end)
        return found

    return selection(operation, forward, jac_t, cases, lambda op: None if is_whole_batch(op) else across_samples(op))


PARTS = [
    part(
        "aten.split",
        lambda op: op.split_size,
        [
            *[Case({"self": (5,)}, {"split_size": 2, "dim": 1}, index=i) for i in (0, 1, 2)],
            Case({"self": (2, 5)}, {"split_size": [2, 3], "dim": -1}, index=1),
        ],
    ),
    part(
        "aten.split_with_sizes",
        lambda op: op.split_sizes,
        [Case({"self": (5, 2)}, {"split_sizes": [1, 3, 1], "dim": 1}, index=i) for i in (0, 1, 2)],
    ),
    part(
        "aten.chunk",
        lambda op: -(-op.shape("self")[axis(op)] // op.chunks),
        [Case({"self": (5,)}, {"chunks": 3, "dim": 1}, index=i) for i in (0, 2)],
    ),
]
UNBIND = selection(
    "aten.unbind",
    lambda op: op.self.select(op.dim, op.index),
    lambda op, columns: at_place(op, columns, op.index),
    [Case({"self": (2, 3)}, {"dim": dim}, index=1) for dim in (1, 2)],
    across_samples,
)

# -- by a tensor of indices ------------------------------------------------------------------------------------------


def gather_jac_t(op: Op, columns: Tensor) -> Tensor:
    index = op.argument("index").unsqueeze(1).expand_as(columns)
    return zeros(op, columns).scatter_add(axis(op) + 2, index, columns)


def gather_refused(op: Op) -> str | None:
    if op.has_samples("self") and not op.has_samples("index"):
        return "its index has no sample axis, so that it picks from some samples only"
    return across_samples(op)


def _index(shape: Sequence[int]) -> Tensor:
    return torch.randint(3, tuple(shape))


GATHER = selection(
    "aten.gather",
    lambda op: op.self.gather(op.dim, op.argument("index")),
    gather_jac_t,
    [
        Case({"self": shape, "index": index}, {"dim": dim}, ("self", "index"), make={"index": _index})
        for shape, index, dim in (((3,), (1,), 1), ((3,), (4,), -1), ((3, 4), (2, 4), 1), ((2, 3), (1, 5), 2))
    ],
    gather_refused,
)


def as_index(op: Op) -> Op:
    """A row of a table for each sample, as table[index]."""
    shapes = {"self": op.shape("self"), "indices.0": op.shape("index"), "output": op.shape("output")}
    return Op(lambda name: [op.argument("index")] if name == "indices" else getattr(op, name), {}, shapes,
              active=op.varying(), batched=frozenset({"indices.0", "output"}))


def index_select_jac_t(op: Op, columns: Tensor) -> Tensor:
    if op.has_samples("index"):
        return indexing.jac_t(as_index(op), columns)
    return zeros(op, columns).index_add(axis(op) + 2, op.argument("index"), columns)


def index_select_params(op: Op) -> Mapping[str, Contraction]:
    found = indexing.params(as_index(op)) if op.has_samples("index") else {}
    return {slot: Contraction(
        of_table.equation,
        lambda op, columns: indexing.rows(as_index(op), columns),
        lambda op: indexing.one_hot(as_index(op)),
        lambda op, gradient: indexing.kernel(as_index(op), gradient),
        index=lambda op: indexing.entry(as_index(op)),
    ) for slot, of_table in found.items()}


def index_select_refused(op: Op) -> str | None:
    if not op.has_samples("index"):
        return across_samples(op)
    if op.has_samples("self") and axis(op) == -1:  # torch takes roll apart into this
        return refusal("moves values along")
    return "its index depends on the sample" if op.has_samples("self") or axis(op) else None


INDEX_SELECT = selection(
    "aten.index_select",
    lambda op: op.self.index_select(op.dim, op.argument("index")),
    index_select_jac_t,
    [
        Case({"self": shape, "index": (4,)}, {"dim": dim}, ("self",), make={"index": _index})
        for shape, dim in (((3,), 1), ((2, 3), -1), ((3, 2), 1))
    ]
    + [Case({"self": (3, 2), "index": ()}, {"dim": 0}, ("index",), make={"index": _index})],
    index_select_refused,
    params=index_select_params,
)
