"""expand: repeats the input along axes in which it has length one, or over the batch (a token of a transformer).

torch takes broadcast_tensors and broadcast_to apart into this.
"""

from __future__ import annotations

from collections.abc import Mapping

from hbpcompiler.rule import Case, Contraction, Op, Tensor

from .shared.selecting import selection


def repeated(op: Op) -> list[int]:
    """Axes of columns along which the input is repeated; those that it lacks come first."""
    shape, output = op.shape("self"), op.shape("output")
    if not op.has_samples("self") and len(shape) > len(output):
        shape = shape[1:]  # its first axis, of length one, runs over the batch
    missing = len(output) - len(shape)
    return [axis + 2 for axis, length in enumerate(output) if axis < missing or shape[axis - missing] != length]


def jac_t(op: Op, columns: Tensor) -> Tensor:
    axes = repeated(op)
    total = columns.sum(axes, True) if axes else columns
    if op.has_samples("self"):
        return total
    missing = len(op.shape("output")) - len(op.shape("self"))
    if missing > 0:
        return total.flatten(2, 2 + missing) if op.shape("self") else total.flatten(1)
    return total.unsqueeze(2) if missing else total


def params(op: Op) -> Mapping[str, Contraction]:
    def added(op: Op, columns: Tensor) -> Tensor:
        axes = repeated(op)
        total = columns.sum(axes, True) if axes else columns
        return total.flatten(2) if op.shape("output") else total.unsqueeze(2)

    return {"self": Contraction("nko->nko", added)}


def refuse(op: Op) -> str | None:
    if op.has_samples("self") and len(op.shape("self")) != len(op.shape("output")):
        return "it puts axes before the sample axis; give the input its axes of length one first, as in x.unsqueeze(1)"
    return None


RULE = selection(
    "aten.expand",
    None,
    jac_t,
    [
        Case({"self": (1, 3)}, {"size": [-1, 2, 3]}),
        Case({"self": (1, 3, 1)}, {"size": [3, 2, -1, 4]}),
        Case({"self": (2,)}, {"size": [-1, 2]}),
        Case({"self": (1, 1, 4)}, {"size": [3, -1, 4]}, batched=(), constant=("self",)),
        Case({"self": (4, 1)}, {"size": [3, 4, 2]}, batched=(), constant=("self",)),
        Case({"self": (4,)}, {"size": [3, 2, 4]}, batched=(), constant=("self",)),
        Case({"self": (1,)}, {"size": [3]}, batched=(), constant=("self",)),
        *[Case({"self": shape}, {"size": [3, 2, 4]}, batched=()) for shape in ((1, 2, 4), (1, 1, 4), (2, 1), (4,))],
    ],
    refuse,
    params=params,
    formula="S summed over what was repeated",
)
