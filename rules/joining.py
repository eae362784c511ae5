"""Tensors laid side by side: cat along an axis, stack along a new one. Each gets its own part of the columns."""

from typing import Any

import torch

from hbpcompiler.rule import Case, Op, Tensor

from .shared.selecting import axis, selection


def cat_jac_t(op: Op, columns: Tensor, index: int) -> Tensor:
    shapes: Any = op.shape("tensors")
    lengths = [shape[axis(op, "tensors.0")] for shape in shapes]
    return columns.narrow(axis(op, "tensors.0") + 2, sum(lengths[:index]), lengths[index])


def stack_jac_t(op: Op, columns: Tensor, index: int) -> Tensor:
    return columns.select(axis(op, "tensors.0", 1) + 2, index)


def refused(op: Op, more: int) -> str | None:
    if any(op.has_samples(f"tensors.{i}") != op.has_samples("tensors.0") for i in range(len(op.shape("tensors")))):
        return "some of its tensors have samples and some have none; expand them first"
    if axis(op, "tensors.0", more) == -1:
        return "it joins along the sample axis; join along the axes after it"
    return None


CAT = selection(
    "aten.cat",
    lambda op: torch.cat(op.tensors, op.dim),
    {"tensors": cat_jac_t},
    [
        Case({"tensors": [(3,), (2,), (1,)]}, {"dim": 1}, ("tensors",)),
        Case({"tensors": [(2, 3), (2, 1)]}, {"dim": -1}, ("tensors",)),
        Case({"tensors": [(2, 3), (1, 3)]}, {"dim": 1}, ("tensors",), constant=("tensors.0",)),
    ],
    lambda op: refused(op, 0),
    formula="to each tensor its own part of S",
)
STACK = selection(
    "aten.stack",
    lambda op: torch.stack(op.tensors, op.dim),
    {"tensors": stack_jac_t},
    [
        Case({"tensors": [(3,), (3,)]}, {"dim": 1}, ("tensors",)),
        Case({"tensors": [(2, 3), (2, 3), (2, 3)]}, {"dim": -1}, ("tensors",)),
        Case({"tensors": [(), ()]}, {"dim": 1}, ("tensors",)),
    ],
    lambda op: refused(op, 1),
    formula="to each tensor its own part of S",
)
