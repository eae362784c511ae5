"""repeat: copies side by side, also of a parameter over the batch (a token of a transformer)."""

from __future__ import annotations

from collections.abc import Mapping

from hbpcompiler.rule import Case, Contraction, Op, Tensor

from .shared.selecting import selection


def own_shape(op: Op) -> tuple[int, ...]:
    """The input's shape as it meets a sample's: without an axis of length one over the batch, filled up with ones."""
    shape, rank = op.shape("self"), len(op.shape("output"))
    shape = shape[1:] if len(shape) > rank else shape
    return (*[1] * (rank - len(shape)), *shape)


def jac_t(op: Op, columns: Tensor) -> Tensor:
    """The sum of all copies."""
    shape, output = own_shape(op), op.shape("output")
    for axis in reversed(range(len(output))):
        if shape[axis] != output[axis]:
            copies = columns.unflatten(axis + 2, (output[axis] // shape[axis], shape[axis]))
            columns = copies.sum(axis + 2)
    return columns


def to_self(op: Op, columns: Tensor) -> Tensor:
    """The same in the input's own shape, which may have an axis in place of samples, or lack some."""
    missing = len(own_shape(op)) - len(op.shape("self"))
    total = jac_t(op, columns)
    if missing > 0:
        return total.flatten(2, 2 + missing) if op.shape("self") else total.flatten(1)
    return total.unsqueeze(2) if missing else total


def params(op: Op) -> Mapping[str, Contraction]:
    def added(op: Op, columns: Tensor) -> Tensor:
        total = jac_t(op, columns)
        return total.flatten(2) if op.shape("output") else total.unsqueeze(2)

    return {"self": Contraction("nko->nko", added)}


def refuse(op: Op) -> str | None:
    if op.has_samples("self") and (op.repeats[0] != 1 or len(op.shape("self")) != len(op.shape("output"))):
        return "it repeats samples; repeat along the axes after the sample axis"
    return None


REPEAT = selection(
    "aten.repeat",
    None,
    to_self,
    [
        Case({"self": (3,)}, {"repeats": [1, 2]}),
        Case({"self": (2, 3)}, {"repeats": [1, 3, 2]}),
        Case({"self": (1, 3)}, {"repeats": [1, 2, 1]}),
        Case({"self": (1, 2, 3)}, {"repeats": [3, 1, 2]}, batched=(), constant=("self",)),
        Case({"self": (2,)}, {"repeats": [3, 2, 1]}, batched=(), constant=("self",)),
        *[Case({"self": shape}, {"repeats": [3, 2, 1]}, batched=()) for shape in ((1, 1, 4), (2, 1), (4,))],
    ],
    refuse,
    params=params,
    formula="S summed over the copies",
)
