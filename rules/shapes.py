"""Operations that move elements about and change none: new shapes, new orders of axes, flips.

The sample axis stays first in all of them and may have any length, so sizes are read from the shapes of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from hbpcompiler.rule import Case, Op, Tensor

from .shared.moving import axis, given, moving, refusal

# -- new shapes, in the same order ------------------------------------------------------------------------------------


def reshape(op: Op) -> Tensor:
    if op.shape("self") == op.shape("output"):  # positions that were merged with samples, and have an axis here
        return op.self
    sizes = [*([-1] if op.has_samples("self") else []), *op.shape("output")]
    result: Tensor = op.self.reshape(*sizes) if sizes else op.self.squeeze()  # one number without axes
    return result


def reshape_back(op: Op, columns: Tensor) -> Tensor:
    if op.shape("self") == op.shape("output"):
        return columns
    return columns.reshape(columns.shape[0], -1, *op.shape("self"))


def refuse_reshape(op: Op) -> str | None:
    """A result without the sample axis in front has all elements in its shape, the batch size among them."""
    if prod(op.shape("self")) != prod(op.shape("output")):
        return refusal("moves, merges or splits", "keep it as it is, as in x.reshape(x.shape[0], ...)")
    return None


def flatten(op: Op) -> Tensor:
    """As the user wrote it, unless positions were taken out of the sample axis: then only the shapes are right."""
    first, last = axis(op, op.start_dim), axis(op, op.end_dim)
    lead, flat, rest = op.shape("self")[: first - 1], op.shape("self")[first - 1 : last], op.shape("self")[last:]
    if op.has_samples("self") and first > 0 and (*lead, prod(flat), *rest) == op.shape("output"):
        return op.self.flatten(op.start_dim, op.end_dim)
    return reshape(op)


VIEW = moving(
    ["aten.view", "aten._unsafe_view"],
    reshape,
    reshape_back,
    [given(2, 6, size=[-1, 12]), given(6, size=[-1, 2, 3]), given(1, size=[-1]), given(size=[-1, 1, 1])],
    refuse_reshape,
    merged=True,
    formula="S in the shape of x",
)
RESHAPE = moving(
    "aten.reshape",
    reshape,
    reshape_back,
    [given(2, 6, shape=[-1, 3, 4]), given(1, shape=[-1])],
    refuse_reshape,
    merged=True,
    formula="S in the shape of x",
)
FLATTEN = moving(
    "aten.flatten",
    flatten,
    reshape_back,
    [given(2, 3, 2, start_dim=1), given(2, 3, 2, start_dim=-3, end_dim=2), given(3, start_dim=1), given()],
    lambda op: (
        refusal("merges others into", "flatten from axis 1 on")
        if axis(op, op.start_dim) == 0 != axis(op, op.end_dim) and prod(op.shape("self")) != prod(op.shape("output"))
        else None
    ),
    merged=True,
    formula="S in the shape of x",
)
UNFLATTEN = moving(
    "aten.unflatten",
    lambda op: op.self.unflatten(op.dim, op.sizes),
    reshape_back,
    [given(6, 2, dim=1, sizes=[2, 3]), given(6, dim=-1, sizes=[-1, 1, 3])],
    lambda op: refusal("splits") if axis(op, op.dim) == 0 else None,
    formula="S in the shape of x",
)
# A batch of one is squeezed no more than any other, so not by torch's squeeze().
SQUEEZE = moving(
    "aten.squeeze",
    reshape,
    reshape_back,
    [given(1, 3, 1), given(1), *[given(1, 3, 1, dim=dim) for dim in (0, 1, 2, -1)]],
    formula="S in the shape of x",
)
UNSQUEEZE = moving(
    "aten.unsqueeze",
    lambda op: op.self.unsqueeze(op.dim),
    lambda op, columns: columns.squeeze(axis(op, op.dim, 1) + 1),
    [given(2, 3, dim=1), given(2, 3, dim=-1), given(2, 3, dim=-3), given(dim=1)],
    lambda op: refusal("puts an axis before") if axis(op, op.dim, 1) == 0 else None,
    formula="S in the shape of x",
)
IDENTITY = moving(
    ["aten.clone", "aten.contiguous", "aten.alias"],
    lambda op: op.self,
    lambda op, columns: columns,
    [given(2, 3)],
    merged=True,
    formula="S",
)


# -- new orders of axes -----------------------------------------------------------------------------------------------


def reorder_back(order: Sequence[int], columns: Tensor) -> Tensor:
    """Undo the order of the axes, with the column axis after the first."""
    inverse = sorted(range(len(order)), key=lambda place: order[place])
    return columns.permute(0, 1, *[place + 1 for place in inverse[1:]])


def order_of_permute(op: Op) -> list[int]:
    return [axis(op, dim) for dim in op.dims]


def order_of_movedim(op: Op) -> list[int]:
    """The order in which movedim leaves the axes."""
    source, destination = (
        [axis(op, dim) for dim in ([given] if isinstance(given, int) else given)]
        for given in (op.source, op.destination)
    )
    rank = len(op.shape("self")) + 1
    rest = iter([dim for dim in range(rank) if dim not in source])
    return [source[destination.index(place)] if place in destination else next(rest) for place in range(rank)]


PERMUTE = moving(
    "aten.permute",
    lambda op: op.self.permute(op.dims),
    lambda op, columns: reorder_back(order_of_permute(op), columns),
    [given(2, 3, 4, dims=[0, 2, 3, 1]), given(2, 3, 4, dims=[0, -1, 1, -2]), given(2, dims=[0, 1])],
    lambda op: refusal("moves") if order_of_permute(op)[0] != 0 else None,
    formula="S with its axes turned back",
)
MOVEDIM = moving(
    "aten.movedim",
    lambda op: op.self.movedim(op.source, op.destination),
    lambda op, columns: reorder_back(order_of_movedim(op), columns),
    [
        given(2, 3, 4, source=1, destination=-1),
        given(2, 3, 4, source=-1, destination=1),
        Case({"self": (2, 3, 4)}, {"source": [1, 2], "destination": [-1, 1]}),
    ],
    lambda op: refusal("moves") if order_of_movedim(op)[0] != 0 else None,
    formula="S with its axes turned back",
)
TRANSPOSE = moving(
    "aten.transpose",
    lambda op: op.self.transpose(op.dim0, op.dim1),
    lambda op, columns: columns.transpose(axis(op, op.dim0) + 1, axis(op, op.dim1) + 1),
    [given(2, 3, 4, dim0=1, dim1=3), given(2, 3, dim0=-1, dim1=1), given(2, 3, dim0=2, dim1=2)],
    lambda op: refusal("moves") if 0 in (a := {axis(op, op.dim0), axis(op, op.dim1)}) and len(a) == 2 else None,
    formula="S with its axes turned back",
)
# Of a matrix, t() moves the sample axis; of a vector it does nothing.
T = moving(
    "aten.t",
    lambda op: op.self if op.has_samples("self") else op.self.t(),
    lambda op, columns: columns,
    [given()],
    lambda op: refusal("moves") if op.shape("self") else None,
    formula="S",
)
FLIP = moving(
    "aten.flip",
    lambda op: op.self.flip(op.dims),
    lambda op, columns: columns.flip([axis(op, dim) + 1 for dim in op.dims]),
    [given(2, 3, dims=[1]), given(2, 3, dims=[-1, 1]), given(2, dims=[])],
    lambda op: refusal("reverses") if 0 in [axis(op, dim) for dim in op.dims] else None,
    formula="S flipped back",
)
