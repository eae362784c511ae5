"""Another floating-point precision: columns change theirs on the way back."""

from __future__ import annotations

import torch

from hbpcompiler.rule import ZERO, Case, Op, Rule, Structure, Tensor


def forward(op: Op) -> Tensor:
    if getattr(op, "dtype", None) is None:  # another device or layout, of which a program has one
        return op.self
    value: Tensor = op.self.to(op.dtype)
    return value


CAST = Rule(
    operations=["aten.to.dtype", "aten.to.dtype_layout", "aten._to_copy"],
    forward=forward,
    jac_t={"self": lambda op, columns: columns.type_as(op.self)},
    residual=ZERO,
    formula="S in the dtype of x",
    structure=Structure.SELECTION,
    cases=[Case({"self": (2, 3)}, {"dtype": torch.float64}), Case({"self": ()}, {"dtype": torch.float64})],
)
